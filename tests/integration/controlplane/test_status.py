"""The factory at a glance, and how a control plane leaves."""

from moulin.controlplane.commands import ReadStatus
from moulin.controlplane.run import run
from moulin.domain.control import FactoryStatus
from moulin.domain.errors import StoreUnavailable
from moulin.domain.factory import Zone, ZoneState
from moulin.store.memory import WritePoint
from tests.integration.controlplane.bench import EURO, Bench, endpoint, factory, job
from tests.integration.controlplane.serving import Gateway, cost


def status(bench: Bench) -> FactoryStatus:
    answer = bench.tell(ReadStatus())
    assert isinstance(answer, FactoryStatus)
    return answer


def test_a_factory_at_a_glance(mill):
    mill.apply(*factory(zones=(Zone(name="west", site="hill", state=ZoneState.BUILDING),)))
    mill.submit(job(2))
    mill.turns(3, 1.0)
    mill.submit(job(None, cpus=2))
    view = mill.submit(endpoint())
    Gateway(mill).sync(wants={"guest": 1000})
    mill.turn(1)
    found = status(mill)
    assert found.counts == {"running": 2, "succeeded": 1}
    assert (found.epoch, found.sequence) == (1, mill.store.last_sequence())
    assert [(z.name, z.state, z.nodes, z.country) for z in found.zones] == [
        ("east", "open", 2, "FR"),
        ("west", "building", 0, "FR"),
    ]
    # Two nodes idle at 40 W, three of their eight CPUs held at 20 W each, and a PUE of 1.2.
    assert found.zones[0].power_held_w == 168
    assert sum(node.cpu_milli_held for node in found.nodes) == 3000
    money = {b.project: b for b in found.balances}
    assert money["guest"].granted_neur == 1000
    # What is over is not metered yet: its euro is still held.
    assert money["atelier"].reserved_neur == 3 * EURO + mill.row(view.id).reserved_neur
    assert money["atelier"].budget_neur == 100 * EURO


def test_what_a_request_settled_still_counts_as_held(mill):
    view = mill.submit(endpoint())
    mill.turns(2, 1.0)
    gate = Gateway(mill)
    gate.sync(wants={"guest": cost(1000)})
    gate.request("q1", view.id, project="guest", end=True)
    gate.sync()
    [guest] = [b for b in status(mill).balances if b.project == "guest"]
    assert guest.granted_neur == cost(1000)
    assert guest.spent_neur == 0


def test_reading_the_status_writes_nothing(mill):
    mill.turn(1)
    before = mill.store.last_sequence()
    status(mill)
    assert mill.store.last_sequence() == before


def test_who_stops_meters_what_has_ended(mill):
    view = mill.submit(job(2))
    mill.turns(3, 1.0)
    assert mill.state(view.id) == "succeeded"
    assert not mill.store.receipts(workload=view.id)
    run(mill.plane, lambda: True, lambda _s: None)
    assert mill.store.receipts(workload=view.id)


def test_who_cannot_write_while_stopping_leaves_it_to_the_next(mill):
    view = mill.submit(job(2))
    mill.turns(3, 1.0)

    def trip(point):
        if point is WritePoint.BEFORE_COMMIT:
            raise StoreUnavailable("commit: outage")

    mill.fault = trip
    run(mill.plane, lambda: True, lambda _s: None)
    mill.fault = None
    mill.reopen()
    mill.turns(15, 1.0)
    [receipt] = mill.store.receipts(workload=view.id)
    assert receipt.usage.end_ns - receipt.usage.start_ns == 2 * 10**9

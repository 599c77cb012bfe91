"""Leases in the real control plane over simulated machines: orders, money, ends that move or do not."""

from dataclasses import replace

import pytest

from moulin.controlplane.commands import ExtendLease, OrderLease, ReadOffers
from moulin.domain.errors import (
    BudgetExceeded,
    Conflict,
    EngineRefused,
    InvalidRequest,
    InvalidSpec,
    MoulinError,
    NotFound,
    QuotaExceeded,
    Refused,
)
from moulin.domain.factory import Quota, Zone, ZoneState
from moulin.domain.ids import ProjectId, WorkloadId, make_id
from moulin.domain.lease import LeaseState, LeaseWanted, lease_view
from moulin.domain.usage import Meter
from moulin.domain.workload import WorkloadState
from moulin.engines.simulated.world import World
from tests.integration.controlplane.bench import (
    ADMIN,
    EURO,
    Bench,
    Machines,
    factory,
    job,
    machines_of,
)

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDyuqZNm4MCIChZcFyQP7s4MaVIFBmnLn+SMKVR6l2oJ"
LOGIN = f"10.0.0.7:4022 mill {KEY}"
HOUR = 3600


class Rentable(Machines):
    """Machines that people can log in to; `refusal` is what they say to a longer lease."""

    refusal = ""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.limits: list[tuple[str, int]] = []

    def capacity(self):
        return tuple(replace(node, has_login=True) for node in super().capacity())

    def extend(self, step, time_limit_s):
        if self.refusal:
            raise EngineRefused(self.refusal)
        self.limits.append((step, time_limit_s))

    def _observe(self, step):
        seen = super()._observe(step)
        leased = {asked.step for asked in self.asked if asked.lease is not None}
        return replace(seen, address=LOGIN, is_ready=True) if step in leased else seen


@pytest.fixture
def yard() -> Bench:
    """A factory of two rentable machines of four CPUs, at a euro for a CPU-hour."""
    bench = Bench()

    def engine_for(pool):
        if pool.name not in bench.machines:
            nodes = machines_of(pool.name, 2, 4)
            bench.machines[pool.name] = Rentable(World(bench.clock, nodes))
        return bench.machines[pool.name]

    bench.connect = engine_for
    bench.apply(*factory())
    bench.turns(3, 1.0)
    return bench


def order(bench, *, project="atelier", **changes):
    wanted = LeaseWanted(offer="east/test-machine", time_limit_s=HOUR, ssh_keys=(KEY,))
    drawn = WorkloadId(make_id("lse", bench.clock.now_ns(), bench.dice.entropy()))
    return bench.tell(
        OrderLease(
            principal=ADMIN, project=ProjectId(project), wanted=replace(wanted, **changes), id=drawn
        )
    )


def extend(bench, view, by_s=HOUR):
    return bench.tell(ExtendLease(principal=ADMIN, workload=WorkloadId(view.id), by_s=by_s))


def shown(bench, view):
    return lease_view(bench.row(view.id), bench.clock.now_ns())


def test_offers_have_a_price_and_count_what_is_free(yard):
    def offer():
        (found,) = yard.tell(ReadOffers(project=ProjectId("atelier"))).items
        return found

    assert (offer().name, offer().country) == ("east/test-machine", "FR")
    assert (offer().nodes, offer().free, offer().cpu_milli) == (2, 2, 4000)
    assert (offer().node_hour_neur, offer().price_book) == (4 * EURO, "prices")
    yard.submit(job(60))
    yard.turns(2, 1.0)
    assert (offer().nodes, offer().free) == (2, 1)
    draining = Zone(name="east", site="hill", state=ZoneState.DRAINING)
    yard.apply(*(draining if each.name == "east" else each for each in factory()))
    assert yard.tell(ReadOffers(project=ProjectId("atelier"))).items == ()


def test_an_order_is_delivered_billed_whole_and_given_back(yard):
    view = order(yard, nodes=2)
    assert view.reserved_neur == 8 * EURO
    assert shown(yard, view).state is LeaseState.ORDERED
    waiting = yard.submit(job(1))
    yard.turns(20, 1.0)
    lease = shown(yard, view)
    assert lease.state is LeaseState.DELIVERED
    assert [node.login.host for node in lease.nodes] == ["10.0.0.7"] * 2
    assert lease.ends_at_ns - lease.started_at_ns == HOUR * 10**9
    assert yard.state(waiting.id) == WorkloadState.ADMITTED
    yard.stop(view.id)
    yard.turns(40, 1.0)
    over = shown(yard, view)
    assert over.state is LeaseState.RELEASED
    assert all(node.login is None for node in over.nodes)
    held = sum(
        receipt.usage.quantities[Meter.CPU_MILLI_MS]
        for receipt in yard.store.receipts(workload=view.id, limit=1000)
    )
    assert held == 2 * 4000 * (over.ended_at_ns - over.started_at_ns) // 10**6
    assert yard.row(view.id).reserved_neur == 0
    assert yard.state(waiting.id) == WorkloadState.SUCCEEDED


def test_a_lease_carries_what_its_node_used_and_no_task_explains(yard):
    view = order(yard, nodes=2)
    yard.turns(60, 1.0)
    rows = [
        row for row in yard.store.intervals(limit=1000) if row.end_ns - row.start_ns > 9 * 10**9
    ]
    assert rows
    began = shown(yard, view).started_at_ns
    whole = [row for row in rows if row.start_ns >= began]
    assert whole
    assert {(row.idle_mj, row.unattributed_mj) for row in whole} == {(0, 0)}


def test_all_of_an_offer_can_be_ordered_at_once(yard):
    assert order(yard, nodes=0).spec.nodes == 2


def test_an_end_is_put_off_and_held_for(yard):
    view = order(yard)
    yard.turns(5, 1.0)
    longer = extend(yard, view, 2 * HOUR)
    assert longer.spec.time_limit_s == 3 * HOUR
    assert longer.reserved_neur == 12 * EURO
    assert yard.floor.limits == [(f"{view.id}.u0.g1.t0", 3 * HOUR)]
    yard.reopen()
    yard.turn()
    yard.clock.time_ns += 2 * HOUR * 10**9
    yard.turns(3, 1.0)
    assert shown(yard, view).state is LeaseState.DELIVERED
    yard.clock.time_ns += (HOUR - 600) * 10**9
    yard.turns(3, 1.0)
    assert shown(yard, view).state is LeaseState.EXPIRING
    yard.clock.time_ns += 600 * 10**9
    yard.turns(30, 1.0)
    assert shown(yard, view).state is LeaseState.EXPIRED
    with pytest.raises(Conflict, match="it has ended"):
        extend(yard, view)


def test_a_longer_lease_needs_the_money_for_it(yard):
    view = order(yard)
    yard.turns(5, 1.0)
    with pytest.raises(BudgetExceeded, match=r"this reserves 100\.00"):
        extend(yard, view, 25 * HOUR)
    assert extend(yard, view, 23 * HOUR).reserved_neur > 95 * EURO


def test_a_lease_is_no_longer_than_others_can_wait(yard):
    view = order(yard)
    yard.turns(5, 1.0)
    waiting = yard.submit(job(1, nodes=2))
    with pytest.raises(Refused, match=f"kept for {waiting.id}"):
        extend(yard, view)
    yard.stop(waiting.id)
    yard.submit(job(1, nodes=2), project="guest")
    with pytest.raises(Refused, match="kept for other work"):
        extend(yard, view)


def test_a_project_over_its_quota_extends_nothing(yard):
    view = order(yard)
    yard.turns(5, 1.0)
    yard.apply(*factory(quota=Quota(cpu_milli=1000)))
    with pytest.raises(QuotaExceeded):
        extend(yard, view)


def test_the_engine_has_the_last_word(yard):
    view = order(yard)
    yard.turns(5, 1.0)
    yard.floor.refusal = "partition short ends jobs after 1800 s"
    with pytest.raises(MoulinError, match="partition short"):
        extend(yard, view)
    assert yard.row(view.id).spec.time_limit_s == HOUR


def test_a_lease_that_is_being_ended_or_is_none_stays_as_it_is(yard):
    view, plain = order(yard), yard.submit(job(600))
    yard.turns(3, 1.0)
    with pytest.raises(Conflict, match="it is no lease"):
        extend(yard, plain)
    with pytest.raises(InvalidRequest):
        extend(yard, view, 0)
    yard.ask(ExtendLease(principal=ADMIN, workload=WorkloadId("lse_none"), by_s=1))
    yard.turn()
    yard.stop(view.id)
    with pytest.raises(Conflict):
        extend(yard, view)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"offer": "west/none"}, NotFound),
        ({"ssh_keys": ()}, InvalidSpec),
        ({"ssh_keys": ("ssh-dss AAAA",)}, InvalidSpec),
        ({"time_limit_s": 10**9}, InvalidRequest),
        ({"nodes": 3}, Refused),
    ],
)
def test_orders_that_make_no_lease(yard, changes, error):
    with pytest.raises(error):
        order(yard, **changes)


def test_machines_without_a_login_are_not_leased(mill):
    assert mill.tell(ReadOffers(project=ProjectId("atelier"))).items == ()
    with pytest.raises(NotFound, match="no such offer"):
        order(mill)

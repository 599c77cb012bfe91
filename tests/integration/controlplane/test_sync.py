"""Gateways: journals with gaps and repeats, epochs, escrow, and the snapshot they serve from."""

import itertools
from dataclasses import replace

import pytest

from moulin.controlplane.commands import RevokeKey
from moulin.domain.errors import InvalidRequest, NotFound, StaleGeneration
from moulin.domain.events import IntervalMetered, UsagesCharged
from moulin.domain.factory import Organisation, Site
from moulin.domain.gateway_events import (
    GatewayEpochClosed,
    GatewayEpochOpened,
    GrantIssued,
    JournalRecorded,
)
from moulin.domain.ids import KeyId
from moulin.domain.reasons import ReasonCode
from moulin.domain.usage import Meter
from tests.integration.controlplane.bench import (
    ADMIN,
    EURO,
    MODEL,
    PRICES,
    Bench,
    endpoint,
    factory,
)
from tests.integration.controlplane.serving import Gateway, cost


@pytest.fixture
def served(mill):
    """A mill with a ready endpoint."""
    view = mill.submit(endpoint())
    mill.turns(2, 1.0)
    return mill, view.id


@pytest.fixture
def gate(served):
    return Gateway(served[0])


def recorded(bench):
    return [r.sequence for e in bench.events(JournalRecorded) for r in e.records]


def request_receipts(bench):
    return {r.usage.request: r for r in bench.store.receipts(limit=1000) if r.usage.request}


# -- journal --------------------------------------------------------------------------------------


def test_a_journal_is_taken_over_once_however_often_it_is_sent(served, gate):
    mill, workload = served
    gate.request("q1", workload, end=True)
    for _ in range(3):
        reply = gate.sync(records=tuple(gate.records))
        assert reply.acknowledged_sequence == 2
    assert recorded(mill) == [1, 2]


def test_nothing_behind_a_gap_is_taken(served, gate):
    mill, workload = served
    for name in ("q1", "q2"):
        gate.request(name, workload, end=True)
    one, _, three, four = gate.records
    assert gate.sync(records=(one, three, four)).acknowledged_sequence == 1
    assert gate.sync(records=(four, three)).acknowledged_sequence == 1
    assert gate.sync(records=tuple(reversed(gate.records))).acknowledged_sequence == 4
    assert recorded(mill) == [1, 2, 3, 4]


def test_acknowledged_means_durable(served, gate):
    mill, workload = served
    gate.request("q1", workload, end=True)
    gate.sync()
    mill.reopen()
    assert gate.sync(records=tuple(gate.records)).acknowledged_sequence == 2
    assert recorded(mill) == [1, 2]


def test_a_journal_below_zero_is_refused_whole(served, gate):
    mill, workload = served
    gate.request("q1", workload, end=True)
    gate.records[1] = replace(gate.records[1], amount_neur=-5)
    with pytest.raises(InvalidRequest, match="below zero"):
        gate.sync(wants={"atelier": 100})
    assert recorded(mill) == []
    assert not mill.events(GrantIssued)


# -- epochs ---------------------------------------------------------------------------------------


def test_a_new_process_ends_the_old_one(served, gate):
    gate.sync()
    Gateway(served[0], epoch=101).sync()
    with pytest.raises(StaleGeneration, match="101"):
        gate.sync()


def test_two_gateways_do_not_disturb_each_other(served, gate):
    other = Gateway(served[0], name="other", epoch=7)
    gate.sync()
    other.sync()
    gate.sync()
    assert len(served[0].plane.books.gateways.epochs) == 2


def test_a_predecessors_journal_is_finished_before_it_is_closed(served, gate):
    mill, workload = served
    gate.sync(wants={"atelier": cost(5000)})
    gate.request("q1", workload, end=True)
    gate.request("q2", workload, end=True)
    heir = Gateway(mill, epoch=101)
    heir.sync(of=gate, records=tuple(gate.records[:2]))
    assert not mill.events(GatewayEpochClosed)
    heir.sync(of=gate, is_complete=True)
    [closed] = mill.events(GatewayEpochClosed)
    assert (closed.gateway_epoch, closed.is_journal_lost) == (100, False)
    assert recorded(mill) == [1, 2, 3, 4]
    assert mill.money().granted_neur == 0
    assert mill.money().settled_neur == 2 * cost(100)


def test_what_was_begun_is_charged_from_its_reservation_when_the_journal_ends(served, gate):
    mill, workload = served
    gate.sync(wants={"atelier": cost(5000)})
    gate.request("q1", workload, hold_tokens=700)
    heir = Gateway(mill, epoch=101)
    heir.sync(of=gate, is_complete=True)
    mill.turns(15, 1.0)
    heir.sync()
    mill.turns(15, 1.0)
    receipt = request_receipts(mill)["q1"]
    assert receipt.usage.is_estimated
    assert receipt.charge.amount_neur == cost(700)
    assert mill.money().held_neur == mill.row(workload).reserved_neur


def test_a_lost_journal_is_charged_from_what_was_known(served, gate):
    mill, workload = served
    gate.sync(wants={"atelier": cost(5000)})
    gate.request("q1", workload, hold_tokens=700)
    gate.sync()
    gate.end("q1", workload)  # written, and lost with the disk
    Gateway(mill, epoch=101).sync()
    [closed] = mill.events(GatewayEpochClosed)
    assert closed.is_journal_lost
    assert mill.money().settled_neur == cost(700)
    assert mill.money().granted_neur == 0


def test_what_is_sent_of_a_closed_epoch_is_acknowledged_and_dropped(served, gate):
    mill, workload = served
    gate.request("q1", workload, end=True)
    heir = Gateway(mill, epoch=101)
    heir.sync(of=gate, is_complete=True)
    before = recorded(mill)
    reply = heir.sync(of=gate, is_complete=True, records=tuple(gate.records))
    assert reply.acknowledged_sequence == 2
    assert recorded(mill) == before


def test_journals_of_processes_that_were_never_heard_are_not_lost(served, gate):
    mill, workload = served
    gate.sync()
    unheard = [Gateway(mill, epoch=101), Gateway(mill, epoch=102)]
    for number, process in enumerate(unheard):
        process.request(f"q{number}", workload, end=True)
    heir = Gateway(mill, epoch=103)
    heir.sync(of=gate, is_complete=True)
    for process in unheard:
        for _ in range(2):
            heir.sync(of=process, is_complete=True, records=tuple(process.records))
    assert recorded(mill) == [1, 2, 1, 2]
    assert [e.gateway_epoch for e in mill.events(GatewayEpochOpened)] == [100, 103, 101, 102]
    assert [e.gateway_epoch for e in mill.events(GatewayEpochClosed)] == [100, 101, 102]


def test_a_finished_gateway_closes_its_own_epoch_and_gets_no_more_money(served, gate):
    mill, workload = served
    gate.sync(wants={"atelier": cost(1000)})
    gate.request("q1", workload, end=True)
    gate.sync(returns={"atelier": cost(900)}, is_complete=True)
    [closed] = mill.events(GatewayEpochClosed)
    assert (closed.gateway_epoch, closed.is_journal_lost) == (100, False)
    assert mill.money().granted_neur == 0
    reply = gate.sync(wants={"atelier": cost(1000)})
    assert [grant.amount_neur for grant in reply.grants] == [0]
    assert mill.money().granted_neur == 0


def test_a_gateway_that_is_gone_holds_up_no_metering_for_ever(served, gate):
    mill, workload = served
    gate.sync()
    mill.turns(15, 1.0)
    owner = [r for r in mill.store.receipts(workload=workload) if not r.usage.request]
    assert not owner
    mill.turns(5, 300.0)
    assert [r for r in mill.store.receipts(workload=workload) if not r.usage.request]


# -- escrow ---------------------------------------------------------------------------------------


def test_escrow_is_conserved_from_grant_to_charge(served, gate):
    mill, workload = served
    hold = mill.row(workload).reserved_neur
    [grant] = gate.sync(wants={"atelier": cost(1000)}).grants
    assert grant.amount_neur == cost(1000)
    assert grant.refusal is None
    assert mill.available() == 100 * EURO - hold - cost(1000)
    gate.request("q1", workload, tokens=100, end=True)
    gate.sync()
    assert mill.money().granted_neur == cost(900)
    assert mill.money().settled_neur == cost(100)
    gate.sync(returns={"atelier": cost(300)})
    assert mill.money().granted_neur == cost(600)
    mill.turns(12, 1.0)
    gate.sync()
    mill.turns(1, 1.0)
    money = mill.money()
    assert money.settled_neur == 0
    assert request_receipts(mill)["q1"].charge.amount_neur == cost(100)
    assert mill.available() == 100 * EURO - money.spent_neur - money.reserved_neur - cost(600)
    assert not mill.plane.books.balances.requests


def test_near_exhaustion_the_rest_is_given_with_the_numbers(served, gate):
    mill, _ = served
    left = mill.available()
    [first] = gate.sync(wants={"atelier": left - 1000}).grants
    [last] = gate.sync(wants={"atelier": 5000}).grants
    [none] = gate.sync(wants={"atelier": 5000}).grants
    assert (first.amount_neur, last.amount_neur, none.amount_neur) == (left - 1000, 1000, 0)
    assert first.refusal is None
    for refused in (last, none):
        assert refused.refusal is not None
        assert refused.refusal.code is ReasonCode.BUDGET_EXCEEDED
        assert refused.refusal.parameters["limit_eur"] == "100.00"
    assert mill.available() == 0


def test_two_wishes_in_one_sync_cannot_spend_the_same_euro(served, gate):
    mill, _ = served
    left = mill.available("guest")
    other = Gateway(mill, name="other")
    grants = [
        *gate.sync(wants={"guest": left}).grants,
        *other.sync(wants={"guest": left}).grants,
    ]
    assert [grant.amount_neur for grant in grants] == [left, 0]


def test_projects_without_a_limit_get_what_they_want(mill):
    mill.apply(*factory(budget_neur=-1))
    [grant] = Gateway(mill).sync(wants={"atelier": 10**15}).grants
    assert (grant.amount_neur, grant.refusal) == (10**15, None)


def test_nobodys_project_gets_nothing(mill):
    [grant] = Gateway(mill).sync(wants={"nobody": 100}).grants
    assert grant.amount_neur == 0
    assert grant.refusal is not None


def test_more_than_was_granted_cannot_come_back(served, gate):
    mill, _ = served
    gate.sync(wants={"atelier": 1000})
    gate.sync(returns={"atelier": 5000, "guest": 70, "nobody": 1})
    assert mill.money().granted_neur == 0
    assert mill.money("guest").granted_neur == 0


def test_escrow_lost_with_a_reply_goes_back_once(served, gate):
    mill, workload = served
    gate.sync(wants={"atelier": cost(1000)})
    gate.request("q1", workload, tokens=100, end=True)
    gate.sync(wants={"atelier": cost(500)})  # its reply is lost: the gateway knows of 1000
    gate.sync(returns={"atelier": cost(200)}, kept={"atelier": cost(800)})
    assert mill.money().granted_neur == cost(700)
    gate.sync(kept={"atelier": cost(800)})
    assert mill.money().granted_neur == cost(700)
    gate.sync(kept={"atelier": cost(900), "guest": 5})
    assert mill.money().granted_neur == cost(700)


def test_a_project_of_debts_gets_nothing(served, gate):
    mill, _ = served
    mill.apply(*factory(budget_neur=1))
    [grant] = gate.sync(wants={"atelier": 100}).grants
    assert grant.amount_neur == 0


# -- requests and their money ---------------------------------------------------------------------


def test_a_request_costs_what_the_gateway_was_told_whatever_the_endpoint_is_called(mill):
    dear = tuple(
        replace(price, sku=f"dear {price.sku}", subject=MODEL, unit_price_neur=9 * EURO)
        for price in PRICES[1:]
    )
    mill.apply(*factory(prices=(*PRICES, *dear)))
    view = mill.submit(endpoint(name="any name"))
    mill.turns(2, 1.0)
    gate = Gateway(mill)
    snapshot = gate.sync(wants={"atelier": EURO}).snapshot
    assert snapshot is not None
    [model] = snapshot.models
    assert model.cost_neur(100, 100) == 2 * 9000 * 100
    gate.request("q1", view.id, end=True)
    mill.turns(12, 1.0)
    gate.sync()
    mill.turns(2, 1.0)
    assert request_receipts(mill)["q1"].charge.amount_neur == model.cost_neur(100, 100)


@pytest.mark.parametrize("replica", ["", "end_unknown.u0.g1"])
def test_a_request_of_no_known_replica_is_charged_all_the_same(served, gate, replica):
    mill, workload = served
    gate.sync(wants={"atelier": cost(1000)})
    gate.request("q1", workload, replica=replica, end=True)
    gate.sync()
    mill.turns(5, 600.0)
    receipt = request_receipts(mill)["q1"]
    assert receipt.charge.amount_neur == cost(100)
    assert receipt.usage.is_estimated
    assert (receipt.usage.zone, receipt.usage.country) == ("", "")
    assert mill.money().settled_neur == 0
    assert not mill.plane.books.balances.requests


def test_energy_of_a_replica_is_shared_by_its_requests_and_its_owner(served, gate):
    mill, workload = served
    gate.sync(wants={"atelier": cost(9000), "guest": cost(9000)})
    for number, project in enumerate(("atelier", "guest", "guest")):
        gate.request(f"q{number}", workload, project=project)
        mill.turn(3)
        gate.end(f"q{number}", workload, project=project)
    gate.sync()
    mill.turns(15, 1.0)
    gate.sync()
    mill.stop(workload)
    mill.turns(15, 1.0)
    gate.sync()
    mill.turns(2, 1.0)
    receipts = mill.store.receipts(limit=1000)
    metered = sum(
        sum(e.task_energy_mj.values()) + sum(e.task_overhead_mj.values())
        for e in mill.events(IntervalMetered)
    )
    assert sum(r.usage.energy_mj for r in receipts) == metered > 0
    assert {r.project for r in receipts if r.usage.request} == {"atelier", "guest"}
    assert all(r.usage.energy_mj > 0 for r in receipts if r.usage.request)
    charged = [i for e in mill.events(UsagesCharged) for i in e.items]
    assert len(charged) == len(receipts) == len({i.usage for i in charged})


def test_requests_held_no_nodes(served, gate):
    mill, workload = served
    gate.request("q1", workload, end=True)
    gate.sync()
    mill.turns(12, 1.0)
    gate.sync()
    mill.turns(2, 1.0)
    usage = request_receipts(mill)["q1"].usage
    assert dict(usage.quantities) == {Meter.TOKENS_INPUT: 100, Meter.TOKENS_OUTPUT: 100}
    assert usage.model_digest == f"sha256:{MODEL}"
    assert (usage.zone, usage.country) == ("east", "FR")


# -- snapshot -------------------------------------------------------------------------------------


def snapshot_of(mill):
    reply = Gateway(mill).sync()
    assert reply.snapshot is not None
    return reply.snapshot


def test_the_snapshot_comes_again_only_when_its_contents_changed(served, gate):
    mill, _ = served
    first = gate.sync().snapshot
    assert first is not None
    assert gate.sync(wants={"atelier": 10}).snapshot is None
    mill.turns(12, 1.0)  # intervals were metered, events were written
    assert gate.sync().snapshot is None
    mill.create_key("k2")
    second = gate.sync().snapshot
    assert second is not None
    assert second.version > first.version


def test_a_revoked_key_leaves_the_snapshot(mill):
    key = mill.create_key()
    assert [k.id for k in snapshot_of(mill).keys] == [key.id]
    revoked = mill.tell(RevokeKey(principal=ADMIN, key=key.id))
    assert revoked.revoked_at_ns
    assert snapshot_of(mill).keys == ()
    again = mill.tell(RevokeKey(principal=ADMIN, key=key.id))
    assert again.revoked_at_ns == revoked.revoked_at_ns
    [stored] = mill.store.keys()
    assert stored.revoked_at_ns == revoked.revoked_at_ns


def test_keys_are_only_made_for_projects_there_are(mill):
    with pytest.raises(NotFound, match="nobody"):
        mill.create_key(project="nobody")
    with pytest.raises(NotFound):
        mill.tell(RevokeKey(principal=ADMIN, key=KeyId("key_nobody")))


def test_the_keys_of_a_removed_project_leave_the_snapshot(mill):
    mill.create_key(project="guest")
    mill.apply(*(o for o in factory() if o.name not in ("guest", "other")))
    assert snapshot_of(mill).keys == ()


def test_only_ready_replicas_are_served_from(mill):
    view = mill.submit(endpoint(replicas=2))
    mill.floor.unready.add(view.id)
    mill.turns(3, 1.0)
    [model] = snapshot_of(mill).models
    assert (model.name, model.replicas) == ("chat", ())
    mill.floor.unready.clear()
    mill.plane.due_ns.clear()
    mill.turn(1)
    [model] = snapshot_of(mill).models
    assert [r.attempt for r in model.replicas] == [f"{view.id}.u{n}.g1" for n in (0, 1)]
    for replica in model.replicas:
        assert replica.key == f"key of {replica.attempt}"
        assert (replica.zone, replica.country) == ("east", "FR")


def test_a_replica_that_is_being_stopped_is_not_served_from(served):
    mill, workload = served
    mill.floor.world.set_engine_reachable(False)
    mill.scale(workload, 0)
    mill.turn(1)
    [model] = snapshot_of(mill).models
    assert model.replicas == ()


def test_an_ended_endpoint_leaves_the_snapshot(served):
    mill, workload = served
    mill.stop(workload)
    mill.turns(3, 1.0)
    assert snapshot_of(mill).models == ()


def test_what_organisations_and_sites_forbid_is_in_the_snapshot():
    bench = Bench()
    objects = [
        replace(o, countries=("FR", "SE"))
        if isinstance(o, Organisation) and o.name == "lab"
        else replace(o, carbon_location_ng_per_kwh=7_200_000)
        if isinstance(o, Site)
        else o
        for o in factory()
    ]
    bench.apply(*objects)
    bench.submit(endpoint())
    bench.turns(2, 1.0)
    snapshot = snapshot_of(bench)
    assert {p.name: p.countries for p in snapshot.projects} == {
        "atelier": ("FR", "SE"),
        "guest": (),
    }
    assert snapshot.models[0].replicas[0].carbon_ng_per_j == 2


def only_replica(gate):
    gate.snapshot_version = 0
    snapshot = gate.sync().snapshot
    assert snapshot is not None
    [replica] = snapshot.models[0].replicas
    return replica


def test_provisional_figures_are_estimated_then_follow_what_was_measured(served, gate):
    mill, workload = served
    guess = only_replica(gate)
    assert (guess.energy_class, guess.energy_uncertainty_ppm) == ("estimated", 2_000_000)
    assert guess.energy_uj_per_token_output > guess.energy_uj_per_token_input > 0
    gate.request("q1", workload)
    mill.turn(5)
    gate.end("q1", workload)
    for _ in range(3):
        gate.sync()
        mill.turns(12, 1.0)
    replica = only_replica(gate)
    assert replica.energy_uj_per_token_output > replica.energy_uj_per_token_input > 0
    assert replica.energy_uj_per_token_output != guess.energy_uj_per_token_output
    receipt = request_receipts(mill)["q1"].usage
    assert replica.energy_class == receipt.energy_quality.value
    assert replica.energy_uncertainty_ppm == receipt.energy_uncertainty_ppm < 2_000_000
    mill.stop(workload)
    mill.turns(20, 1.0)
    other = mill.submit(endpoint())
    mill.turns(2, 1.0)
    gate.request("q2", other.id, end=True)
    for _ in range(3):
        gate.sync()
        mill.turns(12, 1.0)
    assert workload not in mill.plane.provisional_uj
    assert all(name in mill.plane.books.schedule.attempts for name in mill.plane.priors)


@pytest.mark.parametrize("why", ["no figures of the model", "weights that are gone"])
def test_what_cannot_be_estimated_is_not_shown(mill, why):
    if why == "no figures of the model":
        mill.shelf.work = None
    mill.submit(endpoint())
    mill.turns(2, 1.0)
    if why != "no figures of the model":
        mill.shelf.memory_bytes = {}
    replica = only_replica(Gateway(mill))
    assert (replica.energy_uj_per_token_input, replica.energy_uj_per_token_output) == (0, 0)
    assert (replica.energy_class, replica.energy_uncertainty_ppm) == ("", 0)


def test_versions_grow_over_restarts(served, gate):
    mill, _ = served
    versions = []
    for number in range(3):
        gate.snapshot_version = 0
        snapshot = gate.sync().snapshot
        assert snapshot is not None
        versions.append(snapshot.version)
        mill.create_key(f"more{number}")
        mill.reopen()
    assert all(a < b for a, b in itertools.pairwise(versions))


def test_what_gateways_told_is_forgotten_with_them(served, gate):
    mill, _ = served
    for epoch in range(101, 130):
        Gateway(mill, epoch=epoch).sync()
    assert len(mill.plane.journal_until_ns) == 1
    assert len(mill.plane.books.gateways.epochs) == 1

"""Admission, refusal with numbers, idempotency, and the money that work may cost."""

import sys
from dataclasses import replace

import pytest

from moulin.controlplane.commands import ExplainWorkload, StopWorkload, Trial, TryWorkload
from moulin.domain.errors import (
    BudgetExceeded,
    Conflict,
    IdempotencyMismatch,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    Refused,
)
from moulin.domain.events import WorkloadRefused, WorkloadScaled, WorkloadSubmitted
from moulin.domain.factory import Pool, Quota, Site, Zone, ZoneState
from moulin.domain.ids import ProjectId, WorkloadId
from moulin.domain.reasons import ReasonCode
from moulin.domain.workload import EndpointSpec, Resources, Where, WorkloadKind
from tests.integration.controlplane.bench import (
    ADMIN,
    BIG_MODEL,
    EURO,
    MODEL,
    PRICES,
    Bench,
    endpoint,
    factory,
    job,
)

# The package's `fold` is the function, which hides the module of that name.
FOLD = sys.modules["moulin.scheduler.fold"]


def first_reason(caught):
    reasons = caught.value.details["reasons"]
    return reasons[0]["code"], reasons[0]["parameters"]


def test_an_admitted_job_is_held_run_and_charged(mill):
    view = mill.submit(job(36, time_limit_s=360))
    assert view.reserved_neur == EURO // 10
    assert mill.available() == 100 * EURO - EURO // 10
    mill.turns(60, 1.0)
    row = mill.row(view.id)
    assert (row.state, row.reserved_neur) == ("succeeded", 0)
    assert mill.available() == 100 * EURO - mill.money().spent_neur
    assert mill.money().spent_neur == sum(
        r.charge.amount_neur for r in mill.store.receipts(workload=view.id)
    )
    assert abs(mill.money().spent_neur - EURO // 100) <= 4  # each interval is rounded once
    assert mill.money().held_neur == 0


# -- idempotency ----------------------------------------------------------------------------------


def test_the_same_key_makes_one_workload(mill):
    first = mill.submit(key="k")
    again = mill.submit(key="k")
    assert again.id == first.id
    assert len(mill.events(WorkloadSubmitted)) == 1


def test_the_same_key_twice_in_one_cycle_makes_one_workload(mill):
    one = mill.ask(mill.submission(key="k"))
    two = mill.ask(mill.submission(key="k"))
    mill.turn()
    assert one.result(0) == two.result(0)
    assert len(mill.events(WorkloadSubmitted)) == 1


def test_the_same_key_after_a_restart_makes_one_workload(mill):
    first = mill.submit(key="k")
    mill.reopen()
    assert mill.submit(key="k").id == first.id


def test_the_same_key_long_after_is_found_in_the_store(mill, monkeypatch):
    monkeypatch.setattr("moulin.controlplane.books.REPEATS_KEPT", 2)
    monkeypatch.setattr(FOLD, "FINISHED_KEPT", 2)
    first = mill.submit(job(0.1), key="k0")
    for number in range(1, 6):
        mill.submit(job(0.1), key=f"k{number}")
        mill.turns(2, 1.0)
    assert ("atelier", "k0") not in mill.plane.books.repeats.made
    assert first.id not in mill.plane.books.schedule.workloads
    again = mill.submit(job(0.1), key="k0")
    assert (again.id, again.state) == (first.id, "succeeded")
    with pytest.raises(IdempotencyMismatch):
        mill.submit(job(0.1), key="k0", body="another")


def test_the_same_key_of_another_project_is_another(mill):
    first = mill.submit(key="k")
    assert mill.submit(key="k", project="guest").id != first.id


def test_the_same_key_with_another_body_is_told(mill):
    mill.submit(key="k")
    with pytest.raises(IdempotencyMismatch, match="another body"):
        mill.submit(key="k", body="another")


def test_a_refused_key_may_be_tried_again(mill):
    mill.apply(*factory(budget_neur=EURO))
    with pytest.raises(BudgetExceeded):
        mill.submit(job(1, cpus=4), key="k")
    mill.apply(*factory(budget_neur=100 * EURO))
    assert mill.submit(job(1, cpus=4), key="k").state


# -- refusals -------------------------------------------------------------------------------------


def test_more_than_the_budget_is_refused_with_the_numbers(mill):
    mill.apply(*factory(budget_neur=3 * EURO))
    with pytest.raises(BudgetExceeded) as caught:
        mill.submit(job(1, cpus=4))
    code, numbers = first_reason(caught)
    assert code == ReasonCode.BUDGET_EXCEEDED
    assert numbers["project"] == "atelier"
    assert [numbers[k].split(".")[0] for k in ("left_eur", "limit_eur", "wanted_eur")] == [
        "3",
        "3",
        "4",
    ]
    assert caught.value.hint
    [refused] = mill.events(WorkloadRefused)
    assert refused.submission.project == "atelier"
    assert mill.money().held_neur == 0


def test_promises_count_before_anything_is_spent(mill):
    mill.apply(*factory(budget_neur=5 * EURO))
    mill.submit(job(1, cpus=3))
    with pytest.raises(BudgetExceeded):
        mill.submit(job(1, cpus=3))
    assert mill.submit(job(1, cpus=2)).state


def test_over_quota_waits_and_says_so(mill):
    mill.apply(*factory(quota=Quota(cpu_milli=2000)))
    running = mill.submit(job(20, cpus=2))
    waiting = mill.submit(job(2, cpus=2))
    mill.turn(1)
    assert (mill.state(running.id), mill.state(waiting.id)) == ("running", "admitted")
    answer = mill.tell(ExplainWorkload(workload=WorkloadId(waiting.id)))
    [reason] = answer.reasons
    assert reason.code is ReasonCode.INSUFFICIENT_QUOTA
    assert reason.parameters["limit"]
    mill.turns(40, 1.0)
    assert mill.state(waiting.id) == "succeeded"


@pytest.mark.parametrize(
    ("spec", "error", "code"),
    [
        (job(1, cpus=5), Refused, ReasonCode.EXCEEDS_NODE),
        (job(1, nodes=3), Refused, ReasonCode.EXCEEDS_FACTORY),
        (job(1, where=Where(countries=("SE",))), Refused, ReasonCode.JURISDICTION_FORBIDS),
        (job(1, where=Where(zones=("moon",))), Refused, ReasonCode.UNKNOWN_ZONE),
        (
            job(1, cpus=1).__class__(kind=WorkloadKind.SESSION, name="qubits"),
            Refused,
            ReasonCode.KIND_NOT_SERVED,
        ),
        (endpoint(model=BIG_MODEL), Refused, ReasonCode.MODEL_TOO_LARGE),
    ],
)
def test_the_impossible_is_refused_at_once_with_its_reason(mill, spec, error, code):
    with pytest.raises(error) as caught:
        mill.submit(spec)
    found, numbers = first_reason(caught)
    assert found == code
    assert all(value and "?" not in value for value in numbers.values())
    assert mill.events(WorkloadRefused)[-1].reasons[0].code is code


def test_a_model_that_fits_no_node_is_refused_with_both_sizes(mill):
    with pytest.raises(Refused) as caught:
        mill.submit(endpoint(model=BIG_MODEL))
    _, numbers = first_reason(caught)
    assert numbers["model"] == BIG_MODEL
    assert numbers["needed"] == "966.4 GB"
    assert numbers["largest"] == "17.1 GB"
    assert "966.4 GB of memory" in caught.value.message


def test_more_than_a_quota_can_ever_hold_is_refused(mill):
    mill.apply(*factory(quota=Quota(cpu_milli=1000)))
    with pytest.raises((QuotaExceeded, Refused)) as caught:
        mill.submit(job(1, cpus=2))
    assert first_reason(caught)[0] == ReasonCode.EXCEEDS_QUOTA


def test_a_zone_that_is_not_open_yet_is_waited_for_or_refused_with_its_state(mill):
    west = Zone(name="west", site="hill", state=ZoneState.BUILDING)
    mill.apply(*factory(zones=(west,)))
    spec = job(1, where=Where(zones=("west",)))
    trial = mill.tell(TryWorkload(principal=ADMIN, project=ProjectId("atelier"), spec=spec))
    assert trial.reasons[0].code is ReasonCode.ZONE_NOT_OPEN
    assert trial.reasons[0].parameters == {"zone": "west", "state": "building"}


def test_a_model_that_is_not_here_is_refused(mill):
    with pytest.raises(Refused, match="not on disk"):
        mill.submit(endpoint(model="unheard of"))


def test_an_endpoint_keeps_the_variant_it_was_admitted_with(mill):
    spec = mill.submit(endpoint()).spec
    assert spec.endpoint.variant == "q8"
    assert spec.resources.memory_bytes == mill.shelf.memory_bytes[MODEL]
    own = replace(endpoint(), endpoint=EndpointSpec(model=MODEL, variant="f16"))
    assert mill.submit(own).spec.endpoint.variant == "f16"


def test_an_unknown_project_is_told(mill):
    with pytest.raises(NotFound, match="nobody"):
        mill.submit(project="nobody")


# -- trials ---------------------------------------------------------------------------------------


def trial(mill, spec) -> Trial:
    before = mill.store.last_sequence()
    answer = mill.tell(TryWorkload(principal=ADMIN, project=ProjectId("atelier"), spec=spec))
    assert mill.store.last_sequence() == before
    assert isinstance(answer, Trial)
    return answer


def test_a_trial_says_where_for_how_much_and_changes_nothing(mill):
    mill.turn(1)
    answer = trial(mill, job(1, cpus=2, time_limit_s=1800))
    assert answer.is_possible
    assert answer.zones == ("east",)
    assert len(answer.nodes) == 1
    assert answer.reserved_neur == EURO
    assert answer.time_limit_s == 1800
    # Half of 120 W for half an hour, times 1.2.
    assert answer.energy_mj == 60_000 * 1800 * 12 // 10


def test_a_trial_of_an_endpoint_speaks_of_its_first_hour(mill):
    answer = trial(mill, endpoint())
    assert answer.reserved_neur == EURO
    assert answer.energy_mj == 30_000 * 3600 * 12 // 10


def test_a_trial_of_what_must_wait_says_why(mill):
    mill.submit(job(None, cpus=4))
    mill.submit(job(None, cpus=4))
    mill.turn(1)
    answer = trial(mill, job(1, cpus=4))
    assert answer.is_possible
    assert not answer.nodes
    assert answer.reasons


def test_a_trial_of_the_impossible_says_why(mill):
    answer = trial(mill, job(1, cpus=64))
    assert not answer.is_possible
    assert answer.reasons[0].code is ReasonCode.EXCEEDS_NODE


def test_a_job_without_a_time_limit_gets_its_projects(mill):
    answer = trial(mill, job(1, time_limit_s=0))
    assert answer.time_limit_s == 3600
    assert answer.reserved_neur == EURO


def test_or_the_longest_that_it_can_get(mill):
    settings = {"cpus": "64", "asked_time_limit_s": "1800"}
    short = Pool(
        name="short",
        zone="east",
        engine="simulated",
        machine_class="test-machine",
        settings=settings,
    )
    mill.apply(*factory(pools=(short,)))
    mill.turn(1)
    large = trial(mill, job(1, cpus=64, time_limit_s=0))
    assert (large.is_possible, large.time_limit_s) == (True, 1800)
    assert trial(mill, job(1, time_limit_s=0)).time_limit_s == 3600
    refused = trial(mill, job(1, cpus=64, time_limit_s=1801))
    assert refused.reasons[0].code is ReasonCode.EXCEEDS_TIME_LIMIT


# -- money of what has no end ---------------------------------------------------------------------


def test_an_endpoint_holds_an_hour_then_lives_on_what_is_left(mill):
    mill.apply(*factory(budget_neur=3 * EURO))
    view = mill.submit(endpoint())
    assert view.reserved_neur == EURO
    mill.turn(1)
    held = mill.submit(job(None, time_limit_s=3600))
    assert mill.available() == EURO
    for _ in range(5 * 360):
        mill.turn(10)
        if mill.state(view.id) == "failed":
            break
    else:
        pytest.fail("the endpoint was never stopped")
    assert mill.row(view.id).reasons[0].code is ReasonCode.BUDGET_EXCEEDED
    mill.turns(3, 700.0)
    money = mill.money()
    # Both ran for what they were promised, the endpoint for the free euro too; the rest is debt.
    assert mill.state(held.id) == "failed"
    assert mill.row(held.id).reasons[0].code is ReasonCode.TIME_LIMIT_REACHED
    assert 3 * EURO <= money.spent_neur < 3 * EURO + EURO // 10
    assert money.held_neur == 0


def test_a_job_keeps_what_it_was_promised_while_an_endpoint_runs_dry(mill):
    mill.apply(*factory(budget_neur=2 * EURO + EURO // 10))
    served = mill.submit(endpoint())
    mill.turn(1)
    promised = mill.submit(job(3500, time_limit_s=3600))
    mill.turns(600, 10.0)
    assert mill.state(served.id) == "failed"
    assert mill.state(promised.id) == "succeeded"


def test_a_spent_budget_stops_everything_of_its_project_only(mill):
    mine = mill.submit(job(None))
    theirs = mill.submit(job(None), project="guest")
    mill.turns(30, 1.0)
    mill.apply(*factory(budget_neur=1))
    mill.turns(30, 1.0)
    assert mill.row(mine.id).reasons[0].code is ReasonCode.BUDGET_EXCEEDED
    assert mill.state(theirs.id) == "running"


def test_work_without_a_budget_is_never_refused_for_money(mill):
    mill.apply(*factory(budget_neur=-1))
    assert mill.submit(job(1, cpus=4, time_limit_s=10**7)).state


def test_a_lease_holds_the_price_of_a_whole_node(mill):
    lease = replace(job(1, time_limit_s=3600), kind=WorkloadKind.LEASE, resources=Resources())
    assert mill.submit(lease).reserved_neur == 4 * EURO


def test_prices_of_a_model_apply_to_its_reservation(mill):
    dear = replace(PRICES[0], sku="dear cpu", subject=MODEL, unit_price_neur=5 * EURO)
    mill.apply(*factory(prices=(*PRICES, dear)))
    assert mill.submit(endpoint()).reserved_neur == 5 * EURO


# -- stop, scale, explain -------------------------------------------------------------------------


def test_stopping_twice_is_stopping_once(mill):
    view = mill.submit(job(None))
    mill.turn(1)
    mill.stop(view.id)
    mill.stop(view.id)
    mill.turns(3, 1.0)
    assert mill.stop(view.id).state == "cancelled"
    assert sum(e.kind == "workload.stop_requested" for e in mill.log()) == 1


def test_what_waits_is_stopped_without_an_engine(mill):
    mill.submit(job(None, cpus=4))
    mill.submit(job(None, cpus=4))
    view = mill.submit(job(None, cpus=4))
    mill.stop(view.id)
    mill.turn()
    assert mill.state(view.id) == "cancelled"
    assert not mill.floor.stopped


@pytest.mark.parametrize("command", [StopWorkload, ExplainWorkload])
def test_nobody_knows_an_unknown_workload(mill, command):
    fields = {"principal": ADMIN} if command is StopWorkload else {}
    with pytest.raises(NotFound, match="job_nothing"):
        mill.tell(command(workload=WorkloadId("job_nothing"), **fields))


def test_what_ended_long_ago_is_read_from_the_store(mill, monkeypatch):
    monkeypatch.setattr(FOLD, "FINISHED_KEPT", 1)
    first = mill.submit(job(0.1, exit_code=3))
    mill.turns(3, 1.0)
    for _ in range(2):
        mill.submit(job(0.1))
        mill.turns(3, 1.0)
    assert first.id not in mill.plane.books.schedule.workloads
    assert mill.stop(first.id).state == "failed"
    answer = mill.tell(ExplainWorkload(workload=WorkloadId(first.id)))
    assert answer.reasons[0].code is ReasonCode.PROGRAM_FAILED


def replicas(mill, workload):
    return [unit.state for unit in mill.row(workload).units]


def test_endpoints_are_scaled_up_and_down(mill):
    view = mill.submit(endpoint())
    mill.turn(1)
    mill.scale(view.id, 3)
    mill.turns(3, 1.0)
    assert replicas(mill, view.id) == ["running"] * 3
    mill.scale(view.id, 0)
    mill.turns(5, 1.0)
    assert mill.state(view.id) in ("admitted", "placed")
    assert not mill.plane.books.schedule.steps
    mill.scale(view.id, 1)
    mill.turns(3, 1.0)
    assert replicas(mill, view.id) == ["running"]


def test_more_replicas_than_the_budget_has_an_hour_for_are_refused(mill):
    mill.apply(*factory(budget_neur=4 * EURO))
    view = mill.submit(endpoint())
    with pytest.raises(BudgetExceeded):
        mill.scale(view.id, 5)
    assert mill.scale(view.id, 4)
    assert len(mill.events(WorkloadScaled)) == 1


def test_what_cannot_be_scaled(mill):
    work = mill.submit(job(None))
    with pytest.raises(InvalidRequest, match="job"):
        mill.scale(work.id, 2)
    served = mill.submit(endpoint())
    for wrong in (-1, 1001):
        with pytest.raises(InvalidRequest, match="0 to 1000"):
            mill.scale(served.id, wrong)
    with pytest.raises(NotFound):
        mill.scale("end_nothing", 1)
    mill.stop(served.id)
    mill.turns(3, 1.0)
    with pytest.raises(Conflict, match="cancelled"):
        mill.scale(served.id, 2)


def test_sites_in_other_countries_are_found_by_where():
    bench = Bench()
    north = Site(name="north", country="SE")
    zone = Zone(name="fjord", site="north", state=ZoneState.CLOSED)
    bench.apply(*factory(zones=(zone,)), north)
    spec = job(1, where=Where(countries=("SE",)))
    answer = bench.tell(TryWorkload(principal=ADMIN, project=ProjectId("atelier"), spec=spec))
    assert any(reason.code is ReasonCode.ZONE_NOT_OPEN for reason in answer.reasons)

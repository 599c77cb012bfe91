"""Reasons with numbers, in the order of constraints: why it waits, never could, or where it would go."""

import pytest

from moulin.domain.events import (
    NodeReachabilityChanged,
    UnitRequeued,
    WorkloadFinished,
    WorkloadStopRequested,
)
from moulin.domain.factory import (
    CountryBasis,
    Organisation,
    Pool,
    Project,
    Quota,
    Site,
    Zone,
    ZoneState,
)
from moulin.domain.ids import NodeId, WorkloadId
from moulin.domain.plan import Place
from moulin.domain.reasons import Reason, sentence
from moulin.domain.workload import (
    Resources,
    Retry,
    Where,
    WorkloadKind,
    WorkloadSpec,
    WorkloadState,
)
from moulin.scheduler import SchedulerPolicy, decide, explain, possible, trial
from tests.unit.scheduler.world import SECOND, World, endpoint, job, node, submission, world

SOON = Zone(name="soon", site="lyon", state=ZoneState.BUILDING)
OVER = Zone(name="over", site="lyon", state=ZoneState.CLOSED)
LIMITED = Project(name="small", organisation="acme", quota=Quota(cpu_milli=2000, workloads=1))


def codes(reasons: Place | tuple[Reason, ...]) -> list[str]:
    assert not isinstance(reasons, Place)
    assert all("?" not in sentence(reason) for reason in reasons), (
        "every number of a reason is given"
    )
    return [reason.code.value for reason in reasons]


def why(here: World, name: str) -> list[str]:
    return codes(explain(here.state, WorkloadId(name), here.now_ns, here.policy))


def impossible(here: World, spec: WorkloadSpec, project: str = "web") -> list[str]:
    return codes(possible(here.state, submission("new", spec, here.now_ns, project), here.policy))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (job(4, nodes=2), []),
        (job(kind=WorkloadKind.SESSION), ["KindNotServed"]),
        (job(kind=WorkloadKind.LEASE), []),
        (job(kind=WorkloadKind.LEASE, task=None), ["KindNotServed"]),
        (job(where=Where(zones=("nowhere",))), ["UnknownZone"]),
        (job(where=Where(zones=("a", "nowhere"))), ["UnknownZone"]),
        (job(where=Where(countries=("DE",))), ["JurisdictionForbids"] * 3),
        (job(where=Where(countries=("DE",), zones=("a",))), ["JurisdictionForbids"]),
        (job(where=Where(zones=("over",))), ["ZoneNotOpen"]),
        (job(where=Where(zones=("soon",))), []),
        (job(99, where=Where(zones=("soon",))), []),
        (job(99, where=Where(zones=("a", "soon"))), []),
        (job(99), ["ExceedsNode"]),
        (job(1, memory=99), ["ExceedsNode"]),
        (job(1, devices=1), ["NoSuchHardware"]),
        (job(1, nodes=3), ["ExceedsFactory"]),
        (endpoint(500), []),
    ],
)
def test_what_no_waiting_can_cure_is_refused(spec: WorkloadSpec, expected: list[str]):
    here = world(node("n1"), node("n2"), more=(SOON, OVER))
    assert impossible(here, spec) == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (job(2), []),
        (job(3), ["ExceedsQuota"]),
        (job(1, nodes=3), ["ExceedsQuota"]),
        (endpoint(3), ["ExceedsQuota"]),
        (endpoint(2), []),
        (job(99, devices=1), ["NoSuchHardware", "ExceedsQuota"]),
    ],
)
def test_more_than_the_quota_could_ever_hold_is_refused(spec: WorkloadSpec, expected: list[str]):
    here = world(*(node(f"n{i}") for i in range(4)), more=(LIMITED,))
    assert impossible(here, spec, "small") == expected


def test_a_guessed_country_is_named_as_the_reason():
    here = world(node("n1"))
    here.declare(Site(name="lyon", country="FR", country_basis=CountryBasis.GUESSED))
    assert impossible(here, job(where=Where(countries=("FR",)))) == ["CountryNotAsserted"]
    assert impossible(here, job()) == []


def test_an_organisation_kept_out_of_every_zone_is_refused():
    here = world(node("n1"))
    here.declare(Organisation(name="acme", countries=("SE",)))
    [reason] = possible(here.state, submission("new", job()), here.policy)
    assert reason.parameters == {"allowed": "SE", "zone": "a", "country": "FR"}


def test_a_wrong_accelerator_class_is_no_such_hardware_and_too_many_is_a_node_too_small():
    here = world(node("n1", devices=4))
    assert impossible(here, job(1, devices=8)) == ["ExceedsNode"]
    resources = Resources(accelerators=1, accelerator_class="b300")
    assert impossible(here, job(resources=resources)) == ["NoSuchHardware"]


def test_a_gang_no_single_zone_could_ever_hold_is_refused():
    here = world(
        node("n1"),
        node("n2"),
        more=(
            Zone(name="b", site="lyon"),
            Pool(name="pb", zone="b", engine="local", machine_class="cpu"),
        ),
    )
    here.join(node("m1"), node("m2"), pool="pb")
    assert impossible(here, job(1, nodes=2)) == []
    assert impossible(here, job(1, nodes=3)) == ["ExceedsFactory"]


def test_a_gang_no_envelope_could_ever_carry_is_refused_with_the_watts():
    here = world(*(node(f"n{i}", idle_mw=100_000, peak_mw=500_000) for i in range(2)))
    here.declare(Site(name="lyon", country="FR", power_envelope_w=700, pue_ppm=1_100_000))
    here.submit("x", job(4))
    here.cycle()
    assert impossible(here, job(4, nodes=1)) == []
    [reason] = possible(here.state, submission("new", job(4, nodes=2)), here.policy)
    assert reason.parameters == {
        "site": "lyon",
        "limit_w": "700",
        "held_w": "220",
        "wanted_w": "880",
    }


def test_a_spent_budget_refuses():
    here = world(node("n1"))
    here.declare(Project(name="web", organisation="acme", budget_neur=10**9))
    here.policy = SchedulerPolicy(projects_exhausted=("web",))
    assert impossible(here, job()) == ["BudgetExceeded"]


def test_unreachable_nodes_count_as_hardware_that_exists():
    here = world(node("n1"))
    here.add(NodeReachabilityChanged(node=NodeId("n1"), is_reachable=False))
    assert impossible(here, job(4)) == []
    here.submit("x", job(4))
    assert why(here, "x") == ["InsufficientCapacity", "NodeUnreachable"]


def test_waiting_for_capacity_says_how_many_nodes_have_room():
    here = world(node("n1"), node("n2"))
    here.submit("a", job(4))
    here.cycle()
    here.submit("x", job(1, nodes=2))
    [reason] = explain(here.state, WorkloadId("x"), 0, here.policy)
    assert reason.parameters == {"wanted": "2", "free": "1"}
    assert why(here, "a") == []


def test_a_zone_that_is_not_open_yet_is_the_reason_for_waiting_there():
    here = world(node("n1"), more=(SOON,))
    here.submit("x", job(where=Where(zones=("soon",))))
    assert why(here, "x") == ["ZoneNotOpen"]
    answer = trial(here.state, submission("y", job(where=Where(zones=("soon",)))), 0, here.policy)
    assert codes(answer) == ["ZoneNotOpen"]


def test_waiting_for_power_says_watts():
    here = world(node("n1", idle_mw=100_000, peak_mw=500_000))
    here.declare(Site(name="lyon", country="FR", power_envelope_w=200))
    here.submit("a", job(1))
    here.cycle()
    here.submit("x", job(1))
    [reason] = explain(here.state, WorkloadId("x"), 0, here.policy)
    assert reason.parameters == {
        "site": "lyon",
        "limit_w": "200",
        "held_w": "200",
        "wanted_w": "100",
    }


def test_waiting_for_quota_says_what_is_held():
    here = world(node("n1"), more=(LIMITED,))
    here.submit("a", job(2), project="small")
    here.cycle()
    here.submit("x", job(1), project="small")
    reasons = explain(here.state, WorkloadId("x"), 0, here.policy)
    assert codes(reasons) == ["InsufficientQuota", "InsufficientQuota"]
    assert reasons[0].parameters["held"] == "2000"
    assert reasons[1].parameters["resource"] == "workloads"


def test_several_constraints_are_given_in_their_order():
    here = world(node("n1"), more=(LIMITED,))
    here.submit("a", job(2), project="small")
    here.cycle()
    here.submit("b", job(2))
    here.cycle()
    here.submit("x", job(1), project="small")
    assert why(here, "x") == ["InsufficientCapacity", "InsufficientQuota", "InsufficientQuota"]


def test_backing_off_says_for_how_long():
    here = world(node("n1"))
    here.submit("x", job(retry=Retry(attempts_max=2, backoff_s=30)))
    here.cycle()
    here.exit("x.u0.g1.t0", 1)
    here.cycle()
    here.now_ns = 5 * SECOND
    [reason] = explain(here.state, WorkloadId("x"), here.now_ns, here.policy)
    assert reason.parameters == {"generation": "2", "left_s": "25"}


def test_work_kept_out_only_by_what_comes_first_says_so():
    here = world(node("n1"), node("n2"))
    here.submit("first", job(1))
    here.cycle()
    here.submit("gang", job(4, nodes=2))
    here.submit("small", job(1))
    here.cycle()
    reasons = explain(here.state, WorkloadId("small"), 0, here.policy)
    assert [(reason.code.value, reason.parameters) for reason in reasons] == [
        ("BehindOthers", {"count": "1"})
    ]
    assert codes(trial(here.state, submission("new", job(1)), 0, here.policy)) == ["BehindOthers"]


def test_a_retry_whose_time_has_come_counts_among_those_that_come_first():
    here = world(node("n1"))
    here.submit("a", job(4, retry=Retry(attempts_max=2, backoff_s=1)))
    here.cycle()
    here.exit("a.u0.g1.t0", 1)
    here.cycle()
    here.now_ns = SECOND
    here.submit("b", job(1))
    [reason] = explain(here.state, WorkloadId("b"), here.now_ns, here.policy)
    assert (reason.code.value, reason.parameters) == ("BehindOthers", {"count": "1"})


def test_nothing_keeps_a_workload_that_the_next_cycle_places():
    here = world(node("n1"))
    here.submit("a", job(1))
    here.submit("b", job(1))
    assert (why(here, "b"), here.placed()) == ([], ["a", "b"])


def test_an_ended_workload_says_why_it_ended_and_an_unknown_one_nothing():
    here = world()
    here.submit("x", job())
    here.add(WorkloadStopRequested(workload=WorkloadId("x"), by="ada"))
    here.cycle()
    assert why(here, "x") == ["CancelledBy"]
    assert why(here, "y") == []


def test_a_running_workload_says_which_nodes_are_out_of_reach():
    here = world(node("n1"), node("n2"))
    here.submit("x", job(3, nodes=2))
    here.cycle()
    here.add(NodeReachabilityChanged(node=NodeId("n2"), is_reachable=False))
    [reason] = explain(here.state, WorkloadId("x"), 0, here.policy)
    assert (reason.code.value, reason.parameters) == ("NodeUnreachable", {"count": "1"})


def test_a_waiting_workload_of_a_spent_budget_says_so():
    here = world(node("n1"))
    here.declare(Project(name="web", organisation="acme", budget_neur=10**9))
    here.submit("x", job())
    here.policy = SchedulerPolicy(projects_exhausted=("web",))
    assert why(here, "x") == ["BudgetExceeded"]


def test_a_trial_says_where_and_changes_nothing():
    here = world(node("n1"), node("n2"))
    here.submit("a", job(3))
    before = here.state.digest()
    place = trial(here.state, submission("new", job(2)), 0, here.policy)
    assert isinstance(place, Place)
    assert [task.node for task in place.tasks] == ["n2"]
    assert here.state.digest() == before
    here.submit("new", job(2))
    [_, decided] = decide(here.state, 0, here.policy).places
    assert decided == place


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (job(99), ["ExceedsNode"]),
        (job(4), ["InsufficientCapacity"]),
    ],
)
def test_a_trial_that_fails_gives_reasons(spec: WorkloadSpec, expected: list[str]):
    here = world(node("n1"))
    here.submit("a", job(1))
    here.cycle()
    assert codes(trial(here.state, submission("new", spec), 0, here.policy)) == expected


def test_a_trial_that_would_use_up_room_taken_by_earlier_work_says_behind():
    here = world(node("n1"))
    here.submit("a", job(3))
    assert codes(trial(here.state, submission("new", job(2), 1), 1, here.policy)) == [
        "BehindOthers"
    ]


def test_reasons_of_a_retry_stay_on_the_row_until_the_end():
    here = world(node("n1"))
    here.submit("x", job(retry=Retry(attempts_max=2)))
    here.cycle()
    here.exit("x.u0.g1.t0", 9)
    [requeue] = here.cycle().requeues
    row = here.state.workloads[WorkloadId("x")]
    assert list(row.reasons) == [requeue.reason]
    stale = UnitRequeued(
        workload=WorkloadId("x"), unit=0, generation=2, not_before_ns=0, reason=requeue.reason
    )
    here.add(stale)
    assert row.units[0].not_before_ns == requeue.not_before_ns
    here.add(WorkloadFinished(workload=WorkloadId("x"), state=WorkloadState.SUCCEEDED))
    assert list(row.reasons) == []

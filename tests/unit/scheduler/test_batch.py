"""Arrays, what waits for others, holds, priorities and alternatives: who may start, and what ends."""

from collections import Counter
from typing import Any

import pytest

from moulin.domain.batch_events import WorkloadAdjusted
from moulin.domain.events import WorkloadStopRequested
from moulin.domain.factory import Project, Quota
from moulin.domain.ids import AttemptId, WorkloadId
from moulin.domain.plan import StopCause
from moulin.domain.reasons import ReasonCode
from moulin.domain.workload import (
    After,
    AfterWhen,
    JobArray,
    Resources,
    Retry,
    When,
    WorkloadState,
)
from moulin.scheduler import (
    SchedulerPolicy,
    explain,
    possible,
    start_step,
    trial,
    unit_views,
    workload_view,
)
from moulin.scheduler.views import UNITS_SHOWN_MAX
from tests.unit.scheduler.world import SECOND, World, endpoint, job, node, submission, world

X = WorkloadId("x")


def array(size: int, at_most: int = 0, **more: Any) -> World:
    """A world with room for eight elements of array x."""
    here = world(node("n0", cpus=4), node("n1", cpus=4))
    here.submit("x", job(array=JobArray(size=size, at_most=at_most), **more))
    return here


def units_placed(here: World) -> list[int]:
    return [place.unit for place in here.cycle().places]


def codes(here: World, workload: str = "x") -> list[str]:
    found = explain(here.state, WorkloadId(workload), here.now_ns, here.policy)
    return [reason.code.value for reason in found]


def end_of(here: World, workload: str = "x") -> tuple[str, str]:
    row = here.state.workloads[WorkloadId(workload)]
    return row.state.value, row.reasons[0].code.value if row.reasons else ""


def counts(here: World) -> dict[str, int]:
    return dict(workload_view(here.state, X).counts)


# -- arrays ---------------------------------------------------------------------------------------


def test_elements_start_as_far_as_there_is_room():
    here = array(10)
    assert units_placed(here) == list(range(8))
    assert counts(here) == {"placed": 8, "waiting": 2}
    assert codes(here) == ["InsufficientCapacity"]
    here.exit("x.u3.g1.t0")
    assert units_placed(here) == [8]


def test_no_more_than_at_most_hold_anything():
    here = array(5, at_most=2)
    assert units_placed(here) == [0, 1]
    assert codes(here) == ["ArrayLimit"]
    here.exit("x.u1.g1.t0")
    assert units_placed(here) == [2]
    assert units_placed(here) == []


def test_a_retry_keeps_to_at_most_as_well():
    here = array(3, at_most=1, retry=Retry(attempts_max=2, backoff_s=5))
    units_placed(here)
    here.exit("x.u0.g1.t0", 1)
    assert units_placed(here) == [1]
    here.now_ns += 10 * SECOND
    assert units_placed(here) == []
    here.exit("x.u1.g1.t0")
    assert len(units_placed(here)) == 1


@pytest.mark.parametrize(
    ("ends", "state", "reason"),
    [
        ((0, 0, 0), "succeeded", ""),
        ((0, 1, 0), "failed", "ArrayPart"),
        ((1, 1, 1), "failed", "ArrayPart"),
    ],
)
def test_an_array_ends_with_its_last_element(ends, state, reason):
    here = array(len(ends))
    units_placed(here)
    for unit, exit_code in enumerate(ends):
        assert end_of(here)[0] in ("placed", "admitted")
        here.exit(f"x.u{unit}.g1.t0", exit_code)
        here.cycle()
    assert end_of(here) == (state, reason)
    assert here.decide().is_empty
    failed = sum(map(bool, ends))
    assert Counter(counts(here)) == Counter(succeeded=len(ends) - failed, failed=failed)


def test_partial_failures_are_counted_in_the_reason():
    here = array(3)
    units_placed(here)
    for unit in range(3):
        here.exit(f"x.u{unit}.g1.t0", unit)
    here.cycle()
    [reason] = here.state.workloads[X].reasons
    assert dict(reason.parameters) == {
        "size": "3",
        "succeeded": "1",
        "failed": "2",
        "cancelled": "0",
    }


def test_an_element_fails_alone_and_is_tried_again_alone():
    here = array(2, retry=Retry(attempts_max=2, backoff_s=0))
    units_placed(here)
    here.exit("x.u0.g1.t0", 7)
    [requeue] = here.cycle().requeues
    assert (requeue.unit, requeue.generation) == (0, 2)
    assert [place.attempt for place in here.cycle().places] == ["x.u0.g2"]
    here.exit("x.u0.g2.t0", 7)
    [finish] = here.cycle().unit_finishes
    assert (finish.unit, finish.state) == (0, WorkloadState.FAILED)
    here.exit("x.u1.g1.t0")
    here.cycle()
    assert end_of(here) == ("failed", "ArrayPart")


def test_part_of_an_array_is_stopped_whether_it_runs_or_waits():
    here = array(9)
    units_placed(here)
    here.add(WorkloadStopRequested(workload=X, by="ada", units=(1, 8)))
    plan = here.cycle()
    assert [(stop.attempt, stop.cause) for stop in plan.stops] == [("x.u1.g1", StopCause.CANCELLED)]
    assert [(end.unit, end.state) for end in plan.unit_finishes] == [(8, WorkloadState.CANCELLED)]
    here.exit("x.u1.g1.t0", 143)
    [end] = here.cycle().unit_finishes
    assert (end.unit, end.state) == (1, WorkloadState.CANCELLED)
    for unit in (0, *range(2, 8)):
        here.exit(f"x.u{unit}.g1.t0")
    here.cycle()
    assert end_of(here) == ("cancelled", "ArrayPart")


def test_an_element_that_succeeded_before_its_stop_has_succeeded():
    here = array(1)
    units_placed(here)
    here.add(WorkloadStopRequested(workload=X, by="ada", units=(0,)))
    here.cycle()
    here.exit("x.u0.g1.t0", 0)
    here.cycle()
    assert end_of(here)[0] == "cancelled"  # a stop was decided: nobody knows what it left undone


def test_a_whole_array_is_stopped():
    here = array(10)
    units_placed(here)
    here.exit("x.u0.g1.t0")
    here.add(WorkloadStopRequested(workload=X, by="ada"))
    plan = here.cycle()
    assert len(plan.stops) == 7
    assert not plan.places
    for unit in range(1, 8):
        here.exit(f"x.u{unit}.g1.t0", 143)
    here.cycle()
    assert end_of(here) == ("cancelled", "CancelledBy")
    assert counts(here) == {"cancelled": 9, "succeeded": 1}


def test_an_array_is_one_workload_of_its_quota_and_holds_nobody_else_up():
    here = world(node("n0", cpus=8))
    here.declare(Project(name="web", organisation="acme", quota=Quota(workloads=1)))
    here.submit("x", job(array=JobArray(size=3)))
    here.submit("y", job())
    assert here.placed() == ["x", "x", "x"]
    assert codes(here, "y") == ["InsufficientQuota"]


def test_an_array_of_gangs_places_each_gang_whole():
    here = world(node("n0", cpus=1), node("n1", cpus=1), node("n2", cpus=1))
    here.submit("x", job(nodes=2, array=JobArray(size=2)))
    [place] = here.cycle().places
    assert len(place.tasks) == 2
    here.exit("x.u0.g1.t0")
    here.exit("x.u0.g1.t1")
    assert units_placed(here) == [1]


def test_an_array_may_be_larger_than_its_quota_at_one_time():
    here = world(node("n0", cpus=4))
    here.declare(Project(name="web", organisation="acme", quota=Quota(cpu_milli=2000)))
    spec = job(array=JobArray(size=100))
    assert possible(here.state, submission("x", spec), SchedulerPolicy()) == ()


def test_a_large_array_shows_what_runs_and_what_failed_first():
    here = world(node("n0", cpus=2))
    here.submit("x", job(array=JobArray(size=200, first=1000, step=5)))
    here.cycle()
    here.exit("x.u0.g1.t0", 1)
    here.cycle()
    view = workload_view(here.state, X)
    assert len(view.units) == UNITS_SHOWN_MAX
    states = {unit.unit: unit.state for unit in view.units}
    assert states[0] == "failed"
    assert {number for number, state in states.items() if state == "placed"} == {1, 2}
    assert [unit.index for unit in view.units[:3]] == [1000, 1005, 1010]
    assert len(unit_views(here.state, X)) == 200
    assert [unit.unit for unit in unit_views(here.state, X, states=("failed",))] == [0]
    assert [unit.unit for unit in unit_views(here.state, X, (150, 199))] == [150, 199]


def test_an_element_knows_its_index_and_its_try():
    here = world(node("n0", cpus=2))
    spec = job(array=JobArray(size=2, listed=(4, 9)), retry=Retry(attempts_max=2, backoff_s=0))
    here.submit("x", spec)
    here.cycle()
    env = start_step(here.state, AttemptId("x.u1.g1"), 0).env
    assert (env["MOULIN_ARRAY_INDEX"], env["SLURM_ARRAY_TASK_ID"]) == ("9", "9")
    assert (env["MOULIN_ARRAY_SIZE"], env["SLURM_ARRAY_TASK_COUNT"]) == ("2", "2")
    assert (env["SLURM_ARRAY_TASK_MIN"], env["SLURM_ARRAY_TASK_MAX"]) == ("4", "9")
    assert env["MOULIN_RESTART_COUNT"] == "0"
    here.exit("x.u1.g1.t0", 1)
    here.cycle()
    here.cycle()
    assert start_step(here.state, AttemptId("x.u1.g2"), 0).env["MOULIN_RESTART_COUNT"] == "1"


def test_elements_that_wait_past_the_deadline_fail_and_the_others_go_on():
    here = array(3, at_most=2, when=When(deadline_s=30))
    units_placed(here)
    here.now_ns += 31 * SECOND
    [end] = here.cycle().unit_finishes
    assert (end.unit, end.state) == (2, WorkloadState.FAILED)
    for unit in (0, 1):
        here.exit(f"x.u{unit}.g1.t0")
    here.cycle()
    assert counts(here) == {"failed": 1, "succeeded": 2}
    assert end_of(here) == ("failed", "ArrayPart")


# -- what comes first -----------------------------------------------------------------------------


def after(when: AfterWhen = AfterWhen.OK, **more: Any) -> World:
    """A world in which y runs and x waits for it."""
    here = world(node("n0"))
    here.submit("y", job())
    here.submit("x", job(after=(After(workload="y", when=when),), **more))
    assert here.placed() == ["y"]
    here.run("y.u0.g1.t0")
    return here


@pytest.mark.parametrize(
    ("when", "exit_code", "is_started"),
    [
        (AfterWhen.OK, 0, True),
        (AfterWhen.ANY, 0, True),
        (AfterWhen.OK, 1, False),
        (AfterWhen.ANY, 1, True),
    ],
)
def test_a_job_starts_when_what_it_waits_for_has_ended_as_it_has_to(when, exit_code, is_started):
    here = after(when)
    assert codes(here) == ["WaitsFor"]
    here.now_ns += 5 * SECOND
    here.exit("y.u0.g1.t0", exit_code)
    here.cycle()
    assert here.placed() == (["x"] if is_started else [])
    if is_started:
        assert workload_view(here.state, X).eligible_at_ns == 5 * SECOND
    else:
        assert end_of(here) == ("cancelled", "DependencyFailed")
    assert not here.state.dependents


def test_what_waits_for_a_failure_ends_with_all_that_waits_for_it():
    here = after()
    here.submit("z", job(after=(After(workload="x"),)))
    here.exit("y.u0.g1.t0", 1)
    for _ in range(3):
        here.cycle()
    assert end_of(here, "z") == ("cancelled", "DependencyFailed")


def test_a_job_waits_for_every_one_of_several():
    here = after()
    here.submit("z", job())
    here.submit("w", job(after=(After(workload="y"), After(workload="z", when=AfterWhen.ANY))))
    here.cycle()
    here.exit("y.u0.g1.t0")
    here.cycle()
    assert "w" not in here.placed()
    here.exit("z.u0.g1.t0", 3)
    here.cycle()
    assert here.placed() == ["w"]


def test_what_ended_before_is_not_waited_for():
    here = after()
    here.exit("y.u0.g1.t0")
    here.cycle()
    here.submit("z", job(after=(After(workload="y"),)))
    assert here.placed() == ["x", "z"]


def test_a_stopped_job_waits_for_nothing_any_more():
    here = after()
    here.add(WorkloadStopRequested(workload=X, by="ada"))
    here.cycle()
    assert end_of(here) == ("cancelled", "CancelledBy")
    assert not here.state.dependents


def test_a_trial_says_what_it_would_wait_for():
    here = after()
    spec = job(after=(After(workload="y"),), is_held=True)
    found = trial(here.state, submission("z", spec), here.now_ns, here.policy)
    assert isinstance(found, tuple)
    assert [getattr(each, "code", "") for each in found] == [
        ReasonCode.HELD,
        ReasonCode.WAITS_FOR,
    ]


# -- holds and priorities -------------------------------------------------------------------------


def adjust(here: World, workload: str = "x", **more: Any) -> None:
    here.add(WorkloadAdjusted(workload=WorkloadId(workload), by="ada", **more))


def test_a_held_job_starts_when_it_is_released():
    here = world(node("n0"))
    here.submit("x", job(is_held=True))
    assert here.placed() == []
    assert codes(here) == ["Held"]
    assert workload_view(here.state, X).eligible_at_ns == 0
    here.now_ns += SECOND
    adjust(here, is_held=False)
    assert here.placed() == ["x"]
    assert workload_view(here.state, X).eligible_at_ns == SECOND


def test_a_hold_keeps_what_waits_and_leaves_what_runs():
    here = array(3, at_most=1)
    units_placed(here)
    adjust(here, is_held=True)
    here.exit("x.u0.g1.t0")
    assert units_placed(here) == []
    assert counts(here) == {"succeeded": 1, "waiting": 2}
    adjust(here, is_held=False)
    assert units_placed(here) == [1]


def test_a_hold_takes_a_job_out_of_its_back_off_and_a_release_ends_that():
    here = world(node("n0"))
    here.submit("x", job(retry=Retry(attempts_max=2, backoff_s=60)))
    here.cycle()
    here.exit("x.u0.g1.t0", 1)
    here.cycle()
    adjust(here, is_held=True)
    here.now_ns += 100 * SECOND
    assert here.placed() == []
    adjust(here, is_held=False)
    assert here.placed() == ["x"]


def test_another_priority_changes_the_order_of_what_waits():
    here = world(node("n0", cpus=1))
    here.submit("y", job())
    here.submit("x", job())
    adjust(here, priority=90)
    assert here.placed() == ["x"]
    assert workload_view(here.state, X).spec.priority == 90
    here.exit("x.u0.g1.t0")
    here.cycle()
    adjust(here, "y", priority=10)
    assert here.state.workloads[WorkloadId("y")].demand.priority == 10


def test_an_endpoint_changes_its_priority_too():
    here = world(node("n0", cpus=1))
    here.submit("x", endpoint(2))
    adjust(here, priority=70)
    assert here.placed() == ["x"]
    assert [demand.priority for demand in here.state.waiting.lines] == [70]


# -- alternatives ---------------------------------------------------------------------------------


def choosy() -> World:
    """Two accelerators are wanted, or else four CPUs."""
    here = world(node("n0", cpus=4), node("n1", cpus=2, devices=2))
    wanted = job(2, devices=2, alternatives=(Resources(cpu_milli=4000, memory_bytes=10**9),))
    here.submit("a", wanted)
    here.submit("b", wanted)
    here.submit("c", wanted)
    return here


def test_the_first_alternative_that_fits_is_taken_and_recorded():
    here = choosy()
    plan = here.cycle()
    assert [(p.workload, p.choice, p.tasks[0].node) for p in plan.places] == [
        ("a", 0, "n1"),
        ("b", 1, "n0"),
    ]
    step = start_step(here.state, AttemptId("b.u0.g1"), 0)
    assert (step.resources.cpu_milli, step.resources.accelerators) == (4000, 0)
    assert workload_view(here.state, WorkloadId("b")).units[0].choice == 1
    assert set(codes(here, "c")) == {"InsufficientCapacity"}


def test_a_job_is_refused_only_when_no_alternative_could_ever_run():
    here = world(node("n0", cpus=2))
    possible_one = job(8, alternatives=(Resources(cpu_milli=1000, memory_bytes=10**9),))
    never = job(8, alternatives=(Resources(cpu_milli=9000, memory_bytes=10**9),))
    assert possible(here.state, submission("x", possible_one), here.policy) == ()
    reasons = possible(here.state, submission("x", never), here.policy)
    assert {reason.code for reason in reasons} == {ReasonCode.EXCEEDS_NODE}
    assert len(reasons) == 2


def test_an_alternative_may_fit_the_quota_that_the_first_one_does_not():
    here = world(node("n0", cpus=8))
    here.declare(Project(name="web", organisation="acme", quota=Quota(cpu_milli=2000)))
    here.submit("x", job(4, alternatives=(Resources(cpu_milli=2000, memory_bytes=10**9),)))
    [place] = here.cycle().places
    assert place.choice == 1

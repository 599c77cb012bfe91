"""What follows from ends, requests and limits: stops, retries, final states and their reasons."""

import pytest

from moulin.domain.events import (
    NodeJoined,
    NodeReachabilityChanged,
    WorkloadScaled,
    WorkloadStopRequested,
)
from moulin.domain.factory import Project, Zone, ZoneState
from moulin.domain.ids import NodeId, WorkloadId
from moulin.domain.observation import Claim, TaskPhase
from moulin.domain.plan import StopCause
from moulin.domain.reasons import ReasonCode
from moulin.domain.workload import AttemptState, Retry, When, WorkloadKind, WorkloadState
from moulin.scheduler import SchedulerPolicy, next_due_ns, workload_view
from tests.unit.scheduler.world import SECOND, World, endpoint, job, node, world


def running(spec: object = None, nodes: int = 1) -> World:
    """A world in which workload x runs on every node's worth of tasks."""
    here = world(*(node(f"n{i}") for i in range(max(nodes, 1))))
    here.submit("x", spec or job(nodes=nodes))  # type: ignore[arg-type]
    for place in here.cycle().places:
        for task in place.tasks:
            here.run(f"{place.attempt}.t{task.rank}")
    return here


def state_of(here: World) -> tuple[str, str]:
    row = here.state.workloads[WorkloadId("x")]
    return row.state.value, row.reasons[0].code.value if row.reasons else ""


def stops(here: World) -> list[tuple[str, str]]:
    return [(stop.attempt, stop.cause.value) for stop in here.cycle().stops]


def test_success():
    here = running()
    here.exit("x.u0.g1.t0")
    here.cycle()
    assert state_of(here) == ("succeeded", "")
    assert here.decide().is_empty


def test_failure_names_the_exit_code():
    here = running()
    here.exit("x.u0.g1.t0", 3)
    here.cycle()
    assert state_of(here) == ("failed", "ProgramFailed")
    [reason] = here.state.workloads[WorkloadId("x")].reasons
    assert reason.parameters["how"] == "exit code 3"
    assert reason.parameters["generation"] == "1"


def test_retries_double_their_back_off_and_end_after_the_last():
    here = running(job(retry=Retry(attempts_max=3, backoff_s=5)))
    for generation, delay_s in ((1, 5), (2, 10)):
        here.run(f"x.u0.g{generation}.t0")
        here.exit(f"x.u0.g{generation}.t0", 1)
        [requeue] = here.cycle().requeues
        assert (requeue.generation, requeue.not_before_ns) == (
            generation + 1,
            here.now_ns + delay_s * SECOND,
        )
        assert here.placed() == []
        here.now_ns = requeue.not_before_ns - 1
        assert next_due_ns(here.state) == requeue.not_before_ns
        assert here.placed() == []
        here.now_ns += 1
        assert here.placed() == ["x"]
    here.run("x.u0.g3.t0")
    here.exit("x.u0.g3.t0", 1)
    here.cycle()
    assert state_of(here) == ("failed", "ProgramFailed")


def test_a_lost_task_is_tried_again_three_times_without_counting_as_a_failure():
    here = running()
    for generation in range(1, 5):
        step = f"x.u0.g{generation}.t0"
        here.run(step)
        here.gone(step)
        plan = here.cycle()
        if generation < 4:
            [requeue] = plan.requeues
            assert requeue.reason.code is ReasonCode.TASK_LOST
            here.now_ns = requeue.not_before_ns
            here.cycle()
    assert state_of(here) == ("failed", "TaskLost")


def test_a_broken_gang_is_stopped_whole_and_tried_again_whole():
    here = running(job(nodes=3, retry=Retry(attempts_max=2, backoff_s=0)), nodes=3)
    here.exit("x.u0.g1.t1", 2)
    assert stops(here) == [("x.u0.g1", "gang_broken")]
    assert stops(here) == []
    here.exit("x.u0.g1.t0", 143)
    assert here.cycle().is_empty
    here.exit("x.u0.g1.t2", 143)
    [requeue] = here.cycle().requeues
    assert requeue.reason.parameters["exit_code"] == "2"
    [place] = here.cycle().places
    assert (place.generation, len(place.tasks)) == (2, 3)


def test_a_gang_broken_by_a_loss_is_lost_though_its_peers_exit_with_errors():
    here = running(job(nodes=2), nodes=2)
    here.gone("x.u0.g1.t1")
    here.cycle()
    here.exit("x.u0.g1.t0", 1)
    attempt = here.state.attempts[here.state.workloads[WorkloadId("x")].units[0].attempt or ""]  # type: ignore[index]
    assert attempt.state is AttemptState.LOST
    assert here.cycle().requeues


def test_ranks_that_succeed_early_break_nothing():
    here = running(job(nodes=2), nodes=2)
    here.exit("x.u0.g1.t0")
    assert here.cycle().is_empty
    here.exit("x.u0.g1.t1")
    here.cycle()
    assert state_of(here) == ("succeeded", "")


def test_a_waiting_workload_that_is_stopped_ends_at_once():
    here = world()
    here.submit("x", job())
    here.add(WorkloadStopRequested(workload=WorkloadId("x"), by="ada"))
    here.join(node("n1"))
    plan = here.cycle()
    assert (plan.places, len(plan.finishes)) == ((), 1)
    assert workload_view(here.state, WorkloadId("x")).units[0].state == "cancelled"
    assert state_of(here) == ("cancelled", "CancelledBy")


def test_a_running_workload_that_is_stopped_ends_when_its_tasks_are_proved_ended():
    here = running()
    here.add(WorkloadStopRequested(workload=WorkloadId("x"), by="ada"))
    [stop] = here.cycle().stops
    assert (stop.cause, stop.grace_s) == (StopCause.CANCELLED, 10)
    assert here.cycle().is_empty
    here.exit("x.u0.g1.t0", 143)
    here.cycle()
    assert state_of(here) == ("cancelled", "CancelledBy")


def test_a_job_that_succeeded_before_its_stop_was_decided_has_succeeded():
    here = running()
    here.add(WorkloadStopRequested(workload=WorkloadId("x"), by="ada"))
    here.exit("x.u0.g1.t0")
    here.cycle()
    assert state_of(here) == ("succeeded", "")


def test_the_time_limit_counts_from_the_start_and_fails_the_job():
    here = world()
    here.now_ns = 100 * SECOND
    here.submit("x", job(time_limit_s=60))
    here.now_ns = 200 * SECOND
    here.join(node("n1"))
    here.cycle()
    here.now_ns = 210 * SECOND
    here.run("x.u0.g1.t0")
    here.now_ns = 270 * SECOND - 1
    assert here.cycle().is_empty
    assert next_due_ns(here.state) == 270 * SECOND
    here.now_ns += 1
    assert stops(here) == [("x.u0.g1", "time_limit")]
    assert stops(here) == []
    here.exit("x.u0.g1.t0", 143)
    here.cycle()
    assert state_of(here) == ("failed", "TimeLimitReached")


@pytest.mark.parametrize(
    ("spec", "is_limited"),
    [(job(), True), (endpoint(), False), (job(kind=WorkloadKind.LEASE), False)],
)
def test_only_jobs_inherit_the_projects_time_limit(spec: object, is_limited: bool):
    here = running(spec)
    here.now_ns = 3601 * SECOND
    assert bool(stops(here)) is is_limited


def test_a_deadline_that_passes_while_waiting_fails_the_workload():
    here = world()
    here.submit("x", job(when=When(deadline_s=10)))
    here.now_ns = 10 * SECOND - 1
    assert here.cycle().is_empty
    here.now_ns = 13 * SECOND
    here.join(node("n1"))
    assert here.cycle().places == ()
    assert state_of(here) == ("failed", "DeadlinePassed")
    assert here.state.workloads[WorkloadId("x")].reasons[0].parameters == {"late_s": "3"}


def test_a_deadline_is_forgotten_with_its_workload():
    here = running(job(when=When(deadline_s=10)))
    here.exit("x.u0.g1.t0")
    here.cycle()
    assert next_due_ns(here.state) is None


def test_a_deadline_does_not_stop_what_runs():
    here = running(job(when=When(deadline_s=10)))
    here.now_ns = 60 * SECOND
    assert here.cycle().is_empty


def test_a_spent_budget_stops_jobs_and_endpoints_and_ends_what_waits():
    here = running(endpoint(2), nodes=1)
    here.submit("waits", job(99))
    here.declare(Project(name="web", organisation="acme", budget_neur=5 * 10**9))
    here.policy = SchedulerPolicy(projects_exhausted=("web",))
    plan = here.cycle()
    assert [stop.cause for stop in plan.stops] == [StopCause.BUDGET] * 2
    assert [finish.workload for finish in plan.finishes] == ["waits"]
    for unit in (0, 1):
        here.exit(f"x.u{unit}.g1.t0", 143)
    here.cycle()
    assert state_of(here) == ("failed", "BudgetExceeded")
    assert here.state.workloads[WorkloadId("x")].reasons[0].parameters["limit_eur"] == "5.00"


def test_a_budget_stop_ends_the_whole_endpoint_even_if_money_came_back():
    here = running(endpoint(2))
    here.policy = SchedulerPolicy(projects_exhausted=("web",))
    here.cycle()
    here.policy = SchedulerPolicy()
    here.exit("x.u0.g1.t0", 143)
    assert here.cycle().is_empty
    here.exit("x.u1.g1.t0", 143)
    here.cycle()
    assert state_of(here) == ("failed", "BudgetExceeded")


def test_a_single_workload_without_money_ends_alone():
    here = running(endpoint(2))
    here.submit("y", job())
    here.cycle()
    here.run("y.u0.g1.t0")
    here.policy = SchedulerPolicy(workloads_exhausted=("x", "unknown"))
    assert stops(here) == [("x.u0.g1", "budget"), ("x.u1.g1", "budget")]
    for unit in (0, 1):
        here.exit(f"x.u{unit}.g1.t0", 143)
    here.cycle()
    assert state_of(here) == ("failed", "BudgetExceeded")
    assert here.cycle().is_empty
    assert here.state.workloads[WorkloadId("y")].state is WorkloadState.RUNNING


def test_a_closed_zone_stops_its_work_and_lets_it_wait_elsewhere():
    here = running()
    here.declare(Zone(name="a", site="lyon", state=ZoneState.DRAINING))
    assert stops(here) == []
    here.declare(Zone(name="a", site="lyon", state=ZoneState.CLOSED))
    assert stops(here) == [("x.u0.g1", "zone_closed")]
    here.exit("x.u0.g1.t0", 143)
    [requeue] = here.cycle().requeues
    assert requeue.reason.code is ReasonCode.ZONE_NOT_OPEN
    assert here.placed() == []


def test_a_replica_is_replaced_with_a_back_off_that_doubles_up_to_a_minute():
    here = running(endpoint())
    delays = []
    for generation in range(1, 10):
        step = f"x.u0.g{generation}.t0"
        here.run(step)
        here.exit(step, generation % 2)
        [requeue] = here.cycle().requeues
        delays.append((requeue.not_before_ns - here.now_ns) // SECOND)
        here.now_ns = requeue.not_before_ns
        here.cycle()
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_replica_that_was_ready_for_a_minute_starts_counting_anew():
    here = running(endpoint())
    for generation, healthy_s, delay_s in ((1, 0, 1), (2, 59, 2), (3, 60, 1)):
        step = f"x.u0.g{generation}.t0"
        here.run(step, is_ready=True, address="127.0.0.1:1")
        here.now_ns += healthy_s * SECOND
        here.exit(step, 1)
        [requeue] = here.cycle().requeues
        assert requeue.not_before_ns == here.now_ns + delay_s * SECOND
        here.now_ns = requeue.not_before_ns
        here.cycle()


def test_scaling_in_stops_the_last_replicas_and_scaling_out_continues_their_generations():
    here = running(endpoint(3))
    scale = lambda replicas: here.add(
        WorkloadScaled(workload=WorkloadId("x"), replicas=replicas, by="ada")
    )
    scale(1)
    assert [drain.attempt for drain in here.cycle().drains] == ["x.u2.g1", "x.u1.g1"]
    assert stops(here) == [("x.u2.g1", "scaled_in"), ("x.u1.g1", "scaled_in")]
    here.exit("x.u2.g1.t0", 143)
    assert here.cycle().is_empty
    scale(2)
    assert [place.attempt for place in here.cycle().places] == ["x.u2.g2"]
    here.exit("x.u1.g1.t0", 143)
    assert here.cycle().is_empty
    scale(3)
    assert [place.attempt for place in here.cycle().places] == ["x.u1.g2"]
    scale(0)
    here.cycle()
    for place in ("x.u0.g1", "x.u1.g2", "x.u2.g2"):
        here.cycle()
        here.exit(f"{place}.t0", 143)
    assert here.cycle().is_empty
    assert state_of(here)[0] == "admitted"


def test_scaling_in_drops_replicas_that_wait():
    here = world(node("n1", cpus=1))
    here.submit("x", endpoint(3))
    here.cycle()
    here.add(WorkloadScaled(workload=WorkloadId("x"), replicas=1, by="ada"))
    assert here.cycle().is_empty
    here.join(node("n2"))
    assert here.placed() == []


def test_an_unreachable_node_ends_nothing_and_frees_nothing():
    here = running()
    here.add(NodeReachabilityChanged(node=NodeId("n0"), is_reachable=False))
    here.see("x.u0.g1.t0", TaskPhase.UNREACHABLE)
    assert here.cycle().is_empty
    assert here.state.held_by_project["web"].cpu_milli == 1000
    here.run("x.u0.g1.t0")
    assert state_of(here)[0] == "running"


@pytest.mark.parametrize(
    ("is_seen", "is_stopping", "is_end"),
    [(False, False, False), (True, False, True), (False, True, True), (True, True, True)],
)
def test_absent_is_an_end_only_where_the_task_was_seen_or_is_being_stopped(
    is_seen: bool, is_stopping: bool, is_end: bool
):
    here = world(node("n0"))
    here.submit("x", job())
    here.cycle()
    here.see("x.u0.g1.t0", TaskPhase.UNREACHABLE)
    if is_seen:
        here.see("x.u0.g1.t0", TaskPhase.STARTING)
    if is_stopping:
        here.add(WorkloadStopRequested(workload=WorkloadId("x"), by="ada"))
        here.cycle()
    here.see("x.u0.g1.t0", TaskPhase.ABSENT)
    assert ("x.u0.g1.t0" not in here.state.steps) is is_end
    if not is_end:
        assert here.state.steps["x.u0.g1.t0"].phase is None  # type: ignore[index]


def test_late_and_repeated_readings_change_nothing():
    here = running(job(retry=Retry(attempts_max=2, backoff_s=0)))
    here.exit("x.u0.g1.t0", 1)
    here.cycle()
    here.cycle()
    here.run("x.u0.g2.t0")
    before = (here.state.digest(), here.state.workloads[WorkloadId("x")].sequence)
    sequence = here.state.sequence
    for phase in TaskPhase:
        here.see("x.u0.g1.t0", phase, 0)
    here.state.sequence = sequence
    assert (here.state.digest(), here.state.workloads[WorkloadId("x")].sequence) == before


def test_a_changed_boot_id_is_proof_that_earlier_processes_are_gone():
    here = world(node("n0", boot_id="one"))
    for name, boot in (("x", "one"), ("y", ""), ("z", "two")):
        here.submit(name, job(1))
        here.cycle()
        here.run(f"{name}.u0.g1.t0", claim=Claim(boot_id=boot))
    here.add(NodeJoined(pool="pa", capacity=node("n0", boot_id="two")))
    assert sorted(here.state.steps) == ["y.u0.g1.t0", "z.u0.g1.t0"]
    [requeue] = here.cycle().requeues
    assert requeue.reason.parameters["evidence"] == "boot id changed from one to two"


def test_a_step_the_engine_declined_fails_without_another_try():
    here = world(node("n0"))
    here.submit("x", job(retry=Retry(attempts_max=5)))
    here.cycle()
    here.see("x.u0.g1.t0", TaskPhase.EXITED, None, evidence="no such workdir")
    here.cycle()
    assert state_of(here) == ("failed", "EngineRefused")


def test_first_cause_wins():
    here = running(job(time_limit_s=1))
    here.add(WorkloadStopRequested(workload=WorkloadId("x"), by="ada"))
    here.now_ns = 5 * SECOND
    assert stops(here) == [("x.u0.g1", "cancelled")]
    assert stops(here) == []
    assert here.state.workloads[WorkloadId("x")].state is WorkloadState.RUNNING


def test_a_workload_ended_when_its_last_task_did_not_when_that_became_known():
    here = world(node("n1"), node("n2"))
    here.submit("j", job(4, nodes=2))
    here.cycle()
    here.now_ns = 10 * SECOND
    for rank in (0, 1):
        here.run(f"j.u0.g1.t{rank}")
    here.now_ns = 100 * SECOND
    here.see("j.u0.g1.t1", TaskPhase.EXITED, 0, ended_at_ns=30 * SECOND)
    here.see("j.u0.g1.t0", TaskPhase.EXITED, 0, ended_at_ns=20 * SECOND)
    here.cycle()
    assert here.state.workloads[WorkloadId("j")].ended_at_ns == 30 * SECOND


@pytest.mark.parametrize(("seen_s", "ended_s"), [(1, 10), (500, 100)])
def test_an_engines_clock_moves_no_end_before_the_start_or_after_it_was_known(seen_s, ended_s):
    here = world(node("n1"))
    here.submit("j", job())
    here.cycle()
    here.now_ns = 10 * SECOND
    here.run("j.u0.g1.t0")
    here.now_ns = 100 * SECOND
    here.see("j.u0.g1.t0", TaskPhase.EXITED, 0, ended_at_ns=seen_s * SECOND)
    here.cycle()
    assert here.state.workloads[WorkloadId("j")].ended_at_ns == ended_s * SECOND


def test_what_is_stopped_between_two_tries_ends_with_that():
    here = world(node("n1"))
    here.submit("j", job(retry=Retry(attempts_max=3, backoff_s=50)))
    here.cycle()
    here.run("j.u0.g1.t0")
    here.now_ns = 10 * SECOND
    here.exit("j.u0.g1.t0", 1)
    here.cycle()
    here.now_ns = 20 * SECOND
    here.add(WorkloadStopRequested(workload=WorkloadId("j"), by="ada"))
    here.cycle()
    row = here.state.workloads[WorkloadId("j")]
    assert (row.state, row.ended_at_ns) == (WorkloadState.CANCELLED, 20 * SECOND)

"""What attempts use of what they hold, and which of them are idle: by what metering says of them."""

from dataclasses import replace

import pytest

from moulin.domain.events import IntervalMetered
from moulin.domain.factory import EnergyClass
from moulin.domain.ids import NodeId, WorkloadId
from moulin.domain.observation import TaskPhase
from moulin.domain.plan import StopCause
from moulin.domain.workload import IdleStop, JobArray, Retry, WorkloadState
from moulin.scheduler import explain, unit_views, workload_view
from tests.unit.scheduler.world import GB, SECOND, World, job, node, world

MINUTE = 60 * SECOND
RULE = IdleStop(after_s=120, share_ppm=50_000)


def metered(here: World, cpu_s: dict[str, float], unread: tuple[str, ...] = ()) -> None:
    """Close an interval of the last 30 s with counters at its end."""
    here.now_ns += 30 * SECOND
    here.add(
        IntervalMetered(
            node=NodeId("n1"),
            start_ns=here.now_ns - 30 * SECOND,
            end_ns=here.now_ns,
            node_cpu_ns=0,
            task_cpu_ns={step: int(used * SECOND) for step, used in cpu_s.items()},
            task_energy_mj={},
            task_overhead_mj={},
            task_standing_mj={},
            energy_mj=0,
            idle_mj=0,
            unattributed_mj=0,
            overhead_mj=0,
            method="",
            quality=EnergyClass.CONSTANT,
            uncertainty_ppm=0,
            task_unread=unread,
        )
    )


def running(cpus: int = 2, **more: object) -> World:
    here = world(node("n1", 64, 64, 2), node("n2", 64, 64))
    here.now_ns = 100 * MINUTE
    changes = {"idle_stop": RULE} | more
    here.submit("w", replace(job(cpus, 4), **changes))  # type: ignore[arg-type]
    here.cycle()
    for step in list(here.state.steps):
        here.run(step, started_at_ns=here.now_ns)
    return here


def idle_stops(here: World) -> list[str]:
    return [stop.attempt for stop in here.decide().stops if stop.cause is StopCause.IDLE]


def codes(here: World) -> list[str]:
    found = explain(here.state, WorkloadId("w"), here.now_ns, here.policy)
    return [reason.code.value for reason in found]


def test_a_job_is_stopped_when_it_was_quiet_for_as_long_as_it_said_and_no_sooner():
    here = running()
    for interval in range(3):
        metered(here, {"w.u0.g1.t0": 1.0 + interval})  # 1 s of 60 s held
        assert not idle_stops(here)
    assert codes(here) == ["IdleSoFar"]
    metered(here, {"w.u0.g1.t0": 4.0})
    assert idle_stops(here) == ["w.u0.g1"]
    here.cycle()
    here.exit("w.u0.g1.t0", 143)
    here.cycle()
    [reason] = here.state.workloads[WorkloadId("w")].reasons
    assert here.state.workloads[WorkloadId("w")].state is WorkloadState.CANCELLED
    assert reason.code.value == "IdleStopped"
    assert dict(reason.parameters) == {"share": "5", "idle_s": "120", "limit_s": "120"}


def test_one_interval_of_work_begins_the_time_anew():
    here = running()
    for used in (1.0, 2.0, 3.0, 6.0, 7.0, 8.0, 9.0):
        metered(here, {"w.u0.g1.t0": used})
        assert not idle_stops(here)
    metered(here, {"w.u0.g1.t0": 10.0})
    assert idle_stops(here) == ["w.u0.g1"]


def test_whoever_keeps_half_a_cpu_busy_is_at_work_however_much_it_holds():
    here = running(64, idle_stop=IdleStop(after_s=30, share_ppm=500_000))
    metered(here, {"w.u0.g1.t0": 15.0})
    assert not idle_stops(here)
    metered(here, {"w.u0.g1.t0": 29.9})
    assert idle_stops(here)


@pytest.mark.parametrize("what", ["unread", "unseen", "accelerators"])
def test_what_nobody_could_read_is_never_called_idle(what):
    here = running(1, **({"resources": job(1, 4, 1).resources} if what == "accelerators" else {}))
    for _ in range(10):
        step = "w.u0.g1.t0"
        metered(here, {} if what == "unseen" else {step: 0.0}, (step,) if what == "unread" else ())
    assert not idle_stops(here)
    assert codes(here) == ([] if what == "unseen" else ["IdleUnread"])


def test_time_that_nobody_metered_counts_for_nothing():
    here = running()
    metered(here, {"w.u0.g1.t0": 1.0})
    here.now_ns += 100 * MINUTE
    assert not idle_stops(here)


def test_a_gang_is_idle_when_all_its_tasks_are():
    here = running(nodes=2)
    quiet, busy = "w.u0.g1.t0", "w.u0.g1.t1"
    for interval in range(1, 9):
        metered(here, {quiet: 0.1 * interval, busy: 20.0 * interval})
    assert not idle_stops(here)
    for interval in range(1, 5):
        metered(here, {quiet: 0.1, busy: 160.0 + 0.1 * interval})
    assert idle_stops(here) == ["w.u0.g1"]


def test_elements_of_an_array_are_idle_each_on_its_own():
    here = running(array=JobArray(size=2))
    for interval in range(1, 5):
        metered(here, {"w.u0.g1.t0": 0.1, "w.u1.g1.t0": 30.0 * interval})
    here.cycle()
    here.exit("w.u0.g1.t0", 143)
    here.cycle()
    units = here.state.workloads[WorkloadId("w")].units
    assert [unit.final for unit in units] == [WorkloadState.CANCELLED, None]


def test_without_the_rule_nothing_is_stopped_for_being_idle():
    here = running(idle_stop=None)
    for _ in range(20):
        metered(here, {"w.u0.g1.t0": 0.0})
    assert not idle_stops(here)
    assert codes(here) == []


def test_an_attempt_says_what_it_used_of_what_it_held():
    here = running(2, idle_stop=None)
    here.now_ns += MINUTE
    here.see(
        "w.u0.g1.t0",
        TaskPhase.EXITED,
        0,
        started_at_ns=here.now_ns - MINUTE,
        ended_at_ns=here.now_ns,
        cpu_ns=30 * SECOND,
        memory_bytes_max=3 * GB,
    )
    [attempt] = workload_view(here.state, WorkloadId("w")).units[0].attempts
    assert (attempt.cpu_used_ns, attempt.cpu_held_ns) == (30 * SECOND, 120 * SECOND)
    assert (attempt.memory_bytes_max, attempt.memory_bytes) == (3 * GB, 4 * GB)
    assert attempt.unread == ()


def test_an_attempt_that_runs_says_what_is_known_so_far_and_until_when():
    here = running(2)
    metered(here, {"w.u0.g1.t0": 15.0})
    here.now_ns += MINUTE
    [attempt] = workload_view(here.state, WorkloadId("w")).units[0].attempts
    assert (attempt.cpu_used_ns, attempt.cpu_held_ns) == (15 * SECOND, 60 * SECOND)
    assert attempt.read_at_ns == here.now_ns - MINUTE


def test_what_could_not_be_read_of_an_attempt_is_named():
    here = running(1, resources=job(1, 4, 2).resources)
    here.gone("w.u0.g1.t0")
    here.cycle()
    [attempt] = workload_view(here.state, WorkloadId("w")).units[0].attempts
    assert attempt.unread == ("cpu", "memory", "accelerators")
    fresh = world(node("n1"))
    fresh.submit("w", job(1))
    fresh.cycle()
    fresh.gone("w.u0.g1.t0")
    fresh.see("w.u0.g1.t0", TaskPhase.STARTING)
    [lost] = workload_view(fresh.state, WorkloadId("w")).units[0].attempts
    assert lost.unread == ("start",)


def test_earlier_attempts_are_kept_the_last_few_of_them():
    here = running(1, retry=Retry(attempts_max=20, backoff_s=0), idle_stop=None)
    for generation in range(1, 13):
        here.exit(f"w.u0.g{generation}.t0", 1)
        here.cycle()
        here.cycle()
    [unit] = workload_view(here.state, WorkloadId("w")).units
    assert unit.restarts == 12
    assert [attempt.generation for attempt in unit.attempts] == list(range(4, 14))
    assert [attempt.state for attempt in unit.attempts] == ["failed"] * 9 + ["placed"]


def test_the_row_of_an_array_has_the_attempts_of_those_that_were_tried_again():
    here = running(1, array=JobArray(size=2), retry=Retry(attempts_max=3, backoff_s=0))
    here.exit("w.u1.g1.t0", 1)
    here.cycle()
    here.cycle()
    shown = workload_view(here.state, WorkloadId("w")).units
    assert [len(unit.attempts) for unit in shown] == [0, 2]
    asked = unit_views(here.state, WorkloadId("w"))
    assert [len(unit.attempts) for unit in asked] == [1, 2]

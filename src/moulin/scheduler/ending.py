"""What an engine's reading of a task means: whether it is proof of an end, and what ends with it.

Only EXITED, GONE, and ABSENT where a task is known to have been there or is being stopped, are
proof. UNREACHABLE is an absence of knowledge and frees nothing (DESIGN rule 7).
"""

from typing import Final

from moulin.domain.events import TaskObserved
from moulin.domain.ids import WorkloadId
from moulin.domain.lifecycle import Trigger, next_attempt_state
from moulin.domain.observation import ENDED_PHASES, SEEN_PHASES, TaskPhase
from moulin.domain.plan import StopCause
from moulin.domain.workload import AttemptState, WorkloadKind, WorkloadState
from moulin.scheduler.changes import attend, let_go_on
from moulin.scheduler.queues import Due
from moulin.scheduler.rows import AttemptRow, TaskRow, UnitRow, WorkloadRow
from moulin.scheduler.state import State
from moulin.scheduler.walltime import heed_wall, note_load, note_wait, set_end, time_limit_s
from moulin.scheduler.wellbeing import is_struck

# A replica that was ready this long was healthy: what ends it is a new trouble, not the old one.
HEALTHY_AFTER_NS: Final = 60 * 10**9


def observe_task(state: State, task: TaskRow, seen: TaskObserved) -> None:
    """Take over a reading of a task that is not proved ended, and end it when this is proof."""
    attempt = state.attempts[task.attempt]
    if not task.is_seen and seen.phase is TaskPhase.UNREACHABLE:
        return  # nothing is known; `phase` stays None, so that the start is repeated
    if not task.is_seen and seen.phase is TaskPhase.ABSENT and attempt.stop_cause is None:
        return  # never started yet; the start is repeated under the same step id
    _take_over(state, attempt, task, seen)
    if seen.phase in SEEN_PHASES:
        task.is_seen = True
        if seen.phase is TaskPhase.RUNNING:
            _run(state, attempt, seen)
            heed_wall(state, attempt, seen.wall_ns)
    if seen.phase in ENDED_PHASES:
        end_task(state, task, seen.ended_at_ns or seen.observed_at_ns)


def end_task(state: State, task: TaskRow, at_ns: int) -> None:
    """Free what a task held; the attempt ends with its last task."""
    attempt = state.attempts[task.attempt]
    row = state.workloads[WorkloadId(attempt.workload)]
    task.is_ended, task.is_ready = True, False
    task.ended_at_ns = task.ended_at_ns or at_ns
    del state.steps[task.step]
    state.nodes.release(task)
    held = state.held_by_project[row.submission.project]
    held.cpu_milli -= task.cpu_milli
    held.memory_bytes -= task.memory_bytes
    held.accelerators -= len(task.devices)
    attempt.tasks_live -= 1
    if not task.is_success and attempt.broken_rank < 0:
        attempt.broken_rank = task.rank
    if attempt.tasks_live == 0:
        _end_attempt(state, row, attempt, at_ns)
    settle_later(state, row, row.units[attempt.unit])
    row.sequence = state.sequence
    state.touched[row.submission.id] = None


def settle_later(state: State, row: WorkloadRow, unit: UnitRow | None = None) -> None:
    """Note whether a decision about the workload is due; kept exact so that a cycle is cheap.

    `unit` is the only one that changed, None when any may have.
    """
    if row.is_array and not row.is_final:
        for changed in row.units if unit is None else (unit,):
            _note_due(state, row, changed)
    if _is_unsettled(state, row):
        state.unsettled[row.submission.id] = None
    else:
        state.unsettled.pop(row.submission.id, None)
    attend(state, row)


def show_state(row: WorkloadRow) -> None:
    """Derive a workload's state from its attempts; a final state stays."""
    if row.is_final:
        return
    if row.attempts_running:
        row.state = WorkloadState.RUNNING
    else:
        row.state = WorkloadState.PLACED if row.attempts_live else WorkloadState.ADMITTED


def _take_over(state: State, attempt: AttemptRow, task: TaskRow, seen: TaskObserved) -> None:
    task.phase = seen.phase
    task.claim = seen.claim or task.claim
    task.exit_code = seen.exit_code
    task.started_at_ns = seen.started_at_ns or task.started_at_ns
    task.ended_at_ns = seen.ended_at_ns
    task.address = seen.address or task.address
    task.cpu_ns = max(task.cpu_ns, seen.cpu_ns)
    task.memory_bytes_max = max(task.memory_bytes_max, seen.memory_bytes_max)
    task.evidence = seen.evidence
    if seen.host:
        state.nodes.meet(task, seen.host)
    if seen.phase is TaskPhase.UNREACHABLE:
        return
    if seen.is_ready and not task.ready_since_ns:
        task.ready_since_ns = seen.observed_at_ns
        row = state.workloads[WorkloadId(attempt.workload)]
        note_load(row, attempt, seen.observed_at_ns)
    task.is_ready = seen.is_ready


def _run(state: State, attempt: AttemptRow, seen: TaskObserved) -> None:
    if attempt.state is not AttemptState.PLACED:
        return
    attempt.state = next_attempt_state(attempt.state, Trigger.TASK_RUNS)
    # The engine's clock may be elsewhere: a time limit counts from the placement at the earliest,
    # and from when it was seen to run at the latest.
    started_at_ns = min(seen.started_at_ns or seen.observed_at_ns, seen.observed_at_ns)
    attempt.started_at_ns = max(started_at_ns, attempt.placed_at_ns)
    row = state.workloads[WorkloadId(attempt.workload)]
    if not attempt.is_check:
        row.attempts_running += 1
        row.started_at_ns = row.started_at_ns or attempt.started_at_ns
    note_wait(state, row, attempt)
    limit_s = time_limit_s(state, row, attempt)
    if limit_s:
        attempt.limit_ends_ns = attempt.started_at_ns + limit_s * 10**9
        set_end(state, row, attempt)
    show_state(row)


def _end_attempt(state: State, row: WorkloadRow, attempt: AttemptRow, at_ns: int) -> None:
    if attempt.state is AttemptState.RUNNING:
        row.attempts_running -= not attempt.is_check
        if attempt.ends_at_ns:
            state.time_limits.remove(Due(attempt.ends_at_ns, attempt.id))
    elif attempt.state is AttemptState.PLACED:
        # A short program can be over before anybody saw it run.
        started = [task.started_at_ns for task in attempt.tasks if task.started_at_ns]
        attempt.started_at_ns = min(started, default=0)
        if not attempt.is_check:
            row.started_at_ns = row.started_at_ns or attempt.started_at_ns
    attempt.state = next_attempt_state(attempt.state, _trigger(state, attempt))
    attempt.ended_at_ns = at_ns
    if state.ports_held.get(attempt.port) == attempt.id:
        del state.ports_held[attempt.port]
    row.attempts_live -= 1
    if row.attempts_live == 0:
        state.held_by_project[row.submission.project].workloads -= 1
    unit = row.units[attempt.unit]
    if attempt.is_check:
        unit.checks += 1
        state.unread_checks[attempt.id] = None
    else:
        _count_outcome(row, unit, attempt)
    state.drains.pop(attempt.id, None)
    state.idle.pop(attempt.id, None)
    let_go_on(state, row)
    if unit.is_leaving or unit.is_expiring:
        unit.is_leaving, unit.is_expiring, unit.is_retired = False, False, True
        unit.generation += 1
    show_state(row)


def _trigger(state: State, attempt: AttemptRow) -> Trigger:
    """Return what ended the attempt: the decided stop, else the first task that broke.

    What fails on a device that is known to be broken was lost with it.
    """
    if attempt.stop_cause is StopCause.PREEMPTED:
        if not _had_ended(attempt):
            return Trigger.PREEMPTED
    elif attempt.stop_cause not in (None, StopCause.GANG_BROKEN):
        return Trigger.STOPPED
    if attempt.broken_rank < 0:
        return Trigger.ALL_SUCCEEDED
    broken = attempt.tasks[attempt.broken_rank]
    has_failed = broken.phase is TaskPhase.EXITED and not is_struck(state, broken)
    return Trigger.TASK_FAILED if has_failed else Trigger.TASK_LOST


def _had_ended(attempt: AttemptRow) -> bool:
    """Whether all of it had ended by itself before it was to give way, as became known only since."""
    ends = [task.ended_at_ns for task in attempt.tasks if task.phase is TaskPhase.EXITED]
    return len(ends) == len(attempt.tasks) and 0 < max(ends) < attempt.stop_decided_ns


def _count_outcome(row: WorkloadRow, unit: UnitRow, attempt: AttemptRow) -> None:
    """Count what retries and back-offs depend on; an endpoint's program never ends well."""
    is_endpoint = row.submission.spec.kind is WorkloadKind.ENDPOINT
    if is_endpoint and _was_healthy(attempt):
        unit.failures = unit.losses = 0
    if attempt.state is AttemptState.PREEMPTED:
        unit.preemptions += 1
    elif attempt.state is AttemptState.LOST:
        unit.losses += 1
    elif attempt.state is AttemptState.FAILED or (
        is_endpoint and attempt.state is AttemptState.SUCCEEDED
    ):
        unit.failures += 1


def _was_healthy(attempt: AttemptRow) -> bool:
    since_ns = attempt.tasks[0].ready_since_ns
    return since_ns > 0 and attempt.ended_at_ns - since_ns >= HEALTHY_AFTER_NS


def _is_unsettled(state: State, row: WorkloadRow) -> bool:
    if row.is_final:
        return False
    if row.after_failed or (row.stop_requested_by and row.attempts_live == 0):
        return True
    if row.is_array:
        return bool(row.due_units) or row.open_units == 0
    return any(_unit_is_unsettled(state, row, unit) for unit in row.units)


def _note_due(state: State, row: WorkloadRow, unit: UnitRow) -> None:
    """Note whether a decision has to look at an element of an array."""
    is_stopped_early = unit.is_waiting and unit.is_stopping
    if unit.final is None and (is_stopped_early or _unit_is_unsettled(state, row, unit)):
        row.due_units[unit.unit] = None
    else:
        row.due_units.pop(unit.unit, None)


def _unit_is_unsettled(state: State, row: WorkloadRow, unit: UnitRow) -> bool:
    attempt = state.latest_attempt(unit)
    if unit.is_waiting or unit.is_retired or attempt is None:
        return False
    if not attempt.is_live:
        return True
    if attempt.stop_cause is not None:
        return False
    return bool(row.stop_requested_by or unit.is_stopping or attempt.broken_rank >= 0)

"""What attempts use of what they hold, as metering tells it, and which of them do nothing.

Only a reading counts: where nobody could read what a task used, it is never called idle.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from moulin.domain.events import Event, IntervalMetered
from moulin.domain.ids import StepId, WorkloadId
from moulin.domain.plan import Stop, StopCause
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.views import AttemptView
from moulin.domain.workload import IdleStop
from moulin.scheduler.rows import AttemptRow, TaskRow, UnitRow, WorkloadRow
from moulin.scheduler.state import State

PAST_MAX: Final = 9
PPM: Final = 1_000_000
MILLI: Final = 1_000
NS_PER_S: Final = 1_000_000_000
# Whoever has a busy thread is at work, however many CPUs wait beside it.
BUSY_MILLI: Final = 500
_PERCENT_PPM: Final = 10_000


def attempt_view(row: WorkloadRow, attempt: AttemptRow) -> AttemptView:
    """Return what an attempt held and used, as far as it was read; on the path of every job."""
    used_ns = held_ns = read_ns = memory_bytes_max = accelerators = started = unweighed = 0
    is_read = False
    for task in attempt.tasks:
        accelerators += len(task.devices)
        if task.started_at_ns:
            started += 1
            unweighed += not task.memory_bytes_max
            is_read |= bool(task.cpu_ns or task.memory_bytes_max)
            until_ns = task.ended_at_ns or task.metered_ns
            held_ns += max(0, until_ns - task.started_at_ns) * task.cpu_milli // MILLI
        used_ns += task.cpu_ns
        read_ns = max(read_ns, task.metered_ns)
        memory_bytes_max = max(memory_bytes_max, task.memory_bytes_max)
    is_over = not attempt.is_live
    lacking = {
        "start": is_over and started < len(attempt.tasks),
        "cpu": started and not is_read,
        "memory": is_over and unweighed,
        "accelerators": accelerators,
    }
    return AttemptView(
        attempt=attempt.id,
        generation=attempt.generation,
        state=attempt.state.value,
        placed_at_ns=attempt.placed_at_ns,
        started_at_ns=attempt.started_at_ns,
        ended_at_ns=attempt.ended_at_ns,
        read_at_ns=0 if attempt.ended_at_ns else read_ns,
        stop_cause=attempt.stop_cause.value if attempt.stop_cause is not None else "",
        tasks=len(attempt.tasks),
        cpu_used_ns=used_ns,
        cpu_held_ns=held_ns,
        memory_bytes_max=memory_bytes_max,
        memory_bytes=row.resources_of(attempt).memory_bytes,
        accelerators=accelerators,
        unread=tuple([what for what, is_so in lacking.items() if is_so]),
    )


def keep_past(row: WorkloadRow, unit: UnitRow, attempt: AttemptRow) -> None:
    """Keep what the next attempt's row takes the place of; of many, the last few."""
    unit.past.append(attempt_view(row, attempt))
    del unit.past[:-PAST_MAX]


def idle_stops(state: State) -> Iterator[Stop]:
    """Yield the stops of what has been idle long enough, in the order in which that was seen."""
    for attempt_id in state.idle:
        attempt = state.attempts[attempt_id]
        if attempt.stop_cause is None:
            spec = state.workloads[WorkloadId(attempt.workload)].submission.spec
            yield Stop(attempt=attempt_id, cause=StopCause.IDLE, grace_s=spec.stop_grace_s)


def idle_reasons(state: State, row: WorkloadRow) -> Iterator[Reason]:
    """Yield how long what runs has been idle, or why nobody knows; of an array, of its first."""
    rule = row.submission.spec.idle_stop
    running = state.live_attempts(row)
    if rule is None or not running:
        return
    attempt = max(running, key=idle_ns)
    if any(task.devices for task in attempt.tasks):
        yield Reason(code=ReasonCode.IDLE_UNREAD, parameters={"what": "accelerators"})
    elif any(task.is_unread for task in _live(attempt)):
        yield Reason(code=ReasonCode.IDLE_UNREAD, parameters={"what": "CPU"})
    elif idle_ns(attempt):
        yield _reason(ReasonCode.IDLE_SO_FAR, rule, attempt)


def idle_stopped(row: WorkloadRow, attempt: AttemptRow) -> Reason:
    """Return why an attempt that was stopped as idle was."""
    rule = row.submission.spec.idle_stop
    assert rule is not None  # nothing else is ever stopped so
    return _reason(ReasonCode.IDLE_STOPPED, rule, attempt)


def idle_ns(attempt: AttemptRow) -> int:
    """Return for how long all its tasks have used next to nothing, up to what is metered of them."""
    tasks = _live(attempt) or attempt.tasks
    if not all(task.quiet_since_ns for task in tasks):
        return 0
    until_ns = min(task.metered_ns for task in tasks)
    return max(0, until_ns - max(task.quiet_since_ns for task in tasks))


def _metered(state: State, payload: IntervalMetered, _event: Event) -> None:
    unread = frozenset(payload.task_unread)
    for name, cpu_ns in payload.task_cpu_ns.items():
        task = state.steps.get(StepId(name))
        if task is None:
            continue
        attempt = state.attempts[task.attempt]
        rule = state.workloads[WorkloadId(attempt.workload)].submission.spec.idle_stop
        task.is_unread = name in unread
        if rule is None or task.is_unread or task.devices:
            task.quiet_since_ns = 0
        elif attempt.stop_cause is None:  # what it does to end is no work
            _judge(task, rule, cpu_ns, payload.end_ns)
        task.metered_ns, task.cpu_metered_ns = payload.end_ns, cpu_ns
        task.cpu_ns = max(task.cpu_ns, cpu_ns)
        if rule is not None:
            _note(state, attempt, rule)


def _judge(task: TaskRow, rule: IdleStop, cpu_ns: int, end_ns: int) -> None:
    """Note whether a task was quiet since it was last metered."""
    since_ns = task.metered_ns or task.started_at_ns
    elapsed_ns = end_ns - since_ns
    if not since_ns or elapsed_ns <= 0:
        return
    used = (cpu_ns - task.cpu_metered_ns) * MILLI * PPM
    bound_milli_ppm = min(rule.share_ppm * task.cpu_milli, BUSY_MILLI * PPM)
    if used >= bound_milli_ppm * elapsed_ns:
        task.quiet_since_ns = 0
    elif not task.quiet_since_ns:
        task.quiet_since_ns = since_ns


def _note(state: State, attempt: AttemptRow, rule: IdleStop) -> None:
    if attempt.stop_cause is None and idle_ns(attempt) >= rule.after_s * NS_PER_S:
        state.idle[attempt.id] = None
    else:
        state.idle.pop(attempt.id, None)


def _live(attempt: AttemptRow) -> list[TaskRow]:
    return [task for task in attempt.tasks if not task.is_ended]


def _reason(code: ReasonCode, rule: IdleStop, attempt: AttemptRow) -> Reason:
    whole, rest = divmod(rule.share_ppm, _PERCENT_PPM)
    parameters = {
        "share": f"{whole}.{rest:04}".rstrip("0").rstrip("."),
        "idle_s": str(idle_ns(attempt) // NS_PER_S),
        "limit_s": str(rule.after_s),
    }
    return Reason(code=code, parameters=parameters)


USE_HANDLERS: Final[Mapping[type, Callable[[State, Any, Event], None]]] = {
    IntervalMetered: _metered
}

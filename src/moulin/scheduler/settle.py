"""What follows from what happened: stops, retries and final states. Never chooses a node.

Everything here is a reaction to the state (an end, a request, a limit reached, a budget spent), so
deciding twice from one state gives the same answer, and once it is folded, no answer.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from moulin.domain.factory import ZoneState
from moulin.domain.ids import AttemptId, WorkloadId
from moulin.domain.observation import TaskPhase
from moulin.domain.plan import Finish, FinishUnit, Requeue, Stop, StopCause
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.units import format_euros
from moulin.domain.workload import AttemptState, WorkloadKind, WorkloadState
from moulin.scheduler.policy import SchedulerPolicy
from moulin.scheduler.preempt import preempted_by
from moulin.scheduler.rows import AttemptRow, UnitRow, WorkloadRow
from moulin.scheduler.scaling import drained
from moulin.scheduler.state import State
from moulin.scheduler.used import idle_stopped, idle_stops
from moulin.scheduler.wellbeing import stops_of_broken

NS_PER_S: Final = 10**9
_DOUBLINGS_MAX: Final = 30
_FINAL_CAUSES: Final = frozenset(
    {StopCause.CANCELLED, StopCause.TIME_LIMIT, StopCause.BUDGET, StopCause.IDLE}
)

Reaction = Stop | Requeue | FinishUnit | Finish


class Outcome(NamedTuple):
    """How something ends, and why."""

    state: WorkloadState
    reason: Reason | None = None


def react(state: State, now_ns: int, policy: SchedulerPolicy) -> Iterator[Reaction]:
    """Yield every reaction due, at most one stop per attempt and one end per workload and element.

    Order:  what ended or was asked for (in order of the log), limits, idle work, deadlines, budgets,
            zones, broken nodes, replicas that nobody uses any more.
    """
    stopped: set[AttemptId] = set()
    finished: set[WorkloadId] = set()
    elements: set[tuple[WorkloadId, int]] = set()
    for reaction in _all_reactions(state, now_ns, policy):
        if isinstance(reaction, Stop):
            if reaction.attempt in stopped:
                continue
            stopped.add(reaction.attempt)
        elif isinstance(reaction, FinishUnit):
            if (reaction.workload, reaction.unit) in elements or reaction.workload in finished:
                continue
            elements.add((reaction.workload, reaction.unit))
        elif reaction.workload in finished:
            continue
        elif isinstance(reaction, Finish):
            finished.add(reaction.workload)
        yield reaction


def _all_reactions(state: State, now_ns: int, policy: SchedulerPolicy) -> Iterator[Reaction]:
    for workload in state.unsettled:
        yield from _settle(state, state.workloads[workload], now_ns, policy)
    yield from _time_limits(state, now_ns)
    yield from idle_stops(state)
    yield from _deadlines(state, now_ns)
    for project in policy.projects_exhausted:
        for workload in state.unfinished_by_project.get(project, {}):
            yield from _exhausted(state, state.workloads[workload])
    for exhausted in policy.workloads_exhausted:
        row = state.workloads.get(WorkloadId(exhausted))
        if row is not None and not row.is_final:
            yield from _exhausted(state, row)
    yield from _closed_zones(state)
    yield from stops_of_broken(state)
    yield from drained(state, now_ns, policy)


def _settle(
    state: State, row: WorkloadRow, now_ns: int, policy: SchedulerPolicy
) -> Iterator[Reaction]:
    """Yield what follows for one workload from the ends of its attempts and from requests."""
    if row.after_failed:
        yield _finish(state, row, WorkloadState.CANCELLED, dependency_failed(state, row))
        return
    if row.is_array:
        yield from _settle_array(state, row, now_ns, policy)
        return
    finish = _conclusion(state, row, policy)
    if finish is not None and row.attempts_live == 0:
        yield finish
        return
    for unit in row.units:
        attempt = state.latest_attempt(unit)
        if attempt is None or unit.is_waiting or unit.is_retired:
            continue
        if not attempt.is_live:
            if finish is None and attempt.id not in state.unread_checks:
                yield _requeue(state, row, unit, now_ns, policy)
        elif attempt.stop_cause is None:
            cause = _stop_cause(row, attempt, finish)
            if cause is not None:
                yield _stop(row, attempt, cause)


def _stop_cause(row: WorkloadRow, attempt: AttemptRow, finish: Finish | None) -> StopCause | None:
    if row.stop_requested_by:
        return StopCause.CANCELLED
    if finish is not None:
        is_budget = finish.reason and finish.reason.code is ReasonCode.BUDGET_EXCEEDED
        return StopCause.BUDGET if is_budget else StopCause.CANCELLED
    return StopCause.GANG_BROKEN if attempt.broken_rank >= 0 else None


def _conclusion(state: State, row: WorkloadRow, policy: SchedulerPolicy) -> Finish | None:
    """Return the workload's end if one of its units brought it or somebody asked for it."""
    for unit in row.units:
        attempt = state.latest_attempt(unit)
        if attempt is None or attempt.is_live or unit.is_waiting or unit.is_retired:
            continue
        outcome = _outcome(state, row, unit, attempt, policy)
        if outcome is not None:
            return _finish(state, row, *outcome)
    if row.stop_requested_by:
        return _finish(state, row, WorkloadState.CANCELLED, _cancelled(row))
    return None


# -- arrays ---------------------------------------------------------------------------------------


def _settle_array(
    state: State, row: WorkloadRow, now_ns: int, policy: SchedulerPolicy
) -> Iterator[Reaction]:
    """Yield the ends of elements, each on its own, and the array's with the last of them."""
    ends: Counter[WorkloadState] = Counter()
    for number in sorted(row.due_units):
        unit = row.units[number]
        reaction = _element_reaction(state, row, unit, now_ns, policy)
        if isinstance(reaction, FinishUnit):
            ends[reaction.state] += 1
        if reaction is not None:
            yield reaction
    if ends.total() == row.open_units:
        ends.update(unit.final for unit in row.units if unit.final is not None)
        yield _finish(state, row, *_array_outcome(row, ends))
    elif row.stop_requested_by and row.attempts_live == 0:
        yield _finish(state, row, WorkloadState.CANCELLED, _cancelled(row))


def _element_reaction(
    state: State, row: WorkloadRow, unit: UnitRow, now_ns: int, policy: SchedulerPolicy
) -> Reaction | None:
    attempt = state.latest_attempt(unit)
    if unit.is_waiting or attempt is None:
        return _finish_unit(row, unit, Outcome(WorkloadState.CANCELLED, _cancelled(row)))
    if attempt.is_live:
        cause = StopCause.CANCELLED if unit.is_stopping else _stop_cause(row, attempt, None)
        return _stop(row, attempt, cause) if cause is not None else None
    outcome = _outcome(state, row, unit, attempt, policy)
    if outcome is None and attempt.id in state.unread_checks:
        return None
    if outcome is None:
        return _requeue(state, row, unit, now_ns, policy)
    ended_at_ns = max(task.ended_at_ns for task in attempt.tasks)
    return _finish_unit(row, unit, outcome, ended_at_ns)


def _finish_unit(
    row: WorkloadRow, unit: UnitRow, outcome: Outcome, ended_at_ns: int = 0
) -> FinishUnit:
    return FinishUnit(
        workload=row.submission.id,
        unit=unit.unit,
        state=outcome.state,
        reason=outcome.reason,
        ended_at_ns=ended_at_ns,
    )


def _array_outcome(row: WorkloadRow, ends: Counter[WorkloadState]) -> Outcome:
    """Return what an array is when all its elements have ended: one that failed is enough."""
    failed, cancelled = ends[WorkloadState.FAILED], ends[WorkloadState.CANCELLED]
    if row.stop_requested_by and cancelled:
        return Outcome(WorkloadState.CANCELLED, _cancelled(row))
    if not failed and not cancelled:
        return Outcome(WorkloadState.SUCCEEDED)
    parameters = {
        "size": str(len(row.units)),
        "succeeded": str(ends[WorkloadState.SUCCEEDED]),
        "failed": str(failed),
        "cancelled": str(cancelled),
    }
    reason = Reason(code=ReasonCode.ARRAY_PART, parameters=parameters)
    return Outcome(WorkloadState.FAILED if failed else WorkloadState.CANCELLED, reason)


# -- how attempts end -----------------------------------------------------------------------------


def _outcome(
    state: State, row: WorkloadRow, unit: UnitRow, attempt: AttemptRow, policy: SchedulerPolicy
) -> Outcome | None:
    """Return the end that one ended attempt means for what it was a try of, None to try again."""
    is_endpoint = row.submission.spec.kind is WorkloadKind.ENDPOINT
    is_of_replica = is_endpoint and attempt.stop_cause is StopCause.TIME_LIMIT
    if attempt.state is AttemptState.CANCELLED and attempt.stop_cause in _FINAL_CAUSES:
        return None if is_of_replica else _stopped_outcome(state, row, attempt)
    if is_endpoint or attempt.is_check:
        return None
    if attempt.state is AttemptState.SUCCEEDED:
        return Outcome(WorkloadState.SUCCEEDED)
    if row.stop_requested_by or unit.is_stopping:
        return Outcome(WorkloadState.CANCELLED, _cancelled(row))
    is_given_up = unit.failures >= row.submission.spec.retry.attempts_max or _is_declined(attempt)
    if attempt.state is AttemptState.FAILED and is_given_up:
        return Outcome(WorkloadState.FAILED, reason_of_end(attempt))
    is_delivered_lease = row.submission.spec.lease is not None and attempt.started_at_ns > 0
    if is_delivered_lease:  # what its tenant had there is gone: other nodes would be another lease
        return Outcome(WorkloadState.FAILED, _requeue_reason(state, unit, attempt))
    if attempt.state is AttemptState.LOST and unit.losses > policy.losses_max:
        return Outcome(WorkloadState.FAILED, reason_of_end(attempt))
    return None


def _stopped_outcome(state: State, row: WorkloadRow, attempt: AttemptRow) -> Outcome:
    if attempt.stop_cause is StopCause.TIME_LIMIT:
        parameters = {"limit_s": str(row.time_limit_s)}
        reason = Reason(code=ReasonCode.TIME_LIMIT_REACHED, parameters=parameters)
        # Who leases nodes for a time has had what was ordered when it is over.
        is_lease = row.submission.spec.lease is not None
        return Outcome(WorkloadState.SUCCEEDED if is_lease else WorkloadState.FAILED, reason)
    if attempt.stop_cause is StopCause.BUDGET:
        return Outcome(WorkloadState.FAILED, budget_reason(state, row))
    if attempt.stop_cause is StopCause.IDLE:
        return Outcome(WorkloadState.CANCELLED, idle_stopped(row, attempt))
    return Outcome(WorkloadState.CANCELLED, _cancelled(row))


def _requeue(
    state: State, row: WorkloadRow, unit: UnitRow, now_ns: int, policy: SchedulerPolicy
) -> Requeue:
    attempt = state.latest_attempt(unit)
    assert attempt is not None  # what never began has nothing to begin again
    delay_s = _back_off_s(row, unit, attempt, policy)
    return Requeue(
        workload=row.submission.id,
        unit=unit.unit,
        generation=unit.generation + 1,
        not_before_ns=now_ns + delay_s * NS_PER_S if delay_s else 0,
        reason=_requeue_reason(state, unit, attempt),
    )


def _back_off_s(
    row: WorkloadRow, unit: UnitRow, attempt: AttemptRow, policy: SchedulerPolicy
) -> int:
    """Return the wait before the next try: doubling with each end in a row, up to a bound."""
    if attempt.is_check or attempt.state in {AttemptState.PREEMPTED, AttemptState.CANCELLED}:
        return 0
    spec = row.spec_of(unit)
    is_endpoint = spec.kind is WorkloadKind.ENDPOINT
    bound_s = policy.endpoint_backoff_max_s if is_endpoint else policy.job_backoff_max_s
    doublings = min(max(unit.failures + unit.losses - 1, 0), _DOUBLINGS_MAX)
    return min(bound_s, spec.retry.backoff_s << doublings)


def _requeue_reason(state: State, unit: UnitRow, attempt: AttemptRow) -> Reason:
    if attempt.is_check:
        return Reason(code=ReasonCode.CHECKED, parameters={"count": str(len(attempt.tasks))})
    if attempt.stop_cause is StopCause.ZONE_CLOSED:
        zone = state.zone_of_node(attempt.tasks[0].node)
        found = state.declared.zones.get(zone)
        parameters = {"zone": zone, "state": found.state.value if found else "removed"}
        return Reason(code=ReasonCode.ZONE_NOT_OPEN, parameters=parameters)
    if attempt.stop_cause is StopCause.UNHEALTHY:
        row = state.nodes.row(attempt.tasks[0].node)
        if row is not None and row.health.reason is not None:
            return row.health.reason
    if attempt.stop_cause is StopCause.TIME_LIMIT:
        limit_s = (attempt.ends_at_ns - attempt.started_at_ns) // NS_PER_S
        parameters = {"limit_s": str(limit_s)}
        return Reason(code=ReasonCode.TIME_LIMIT_REACHED, parameters=parameters)
    if attempt.state is AttemptState.PREEMPTED:
        return preempted_by(attempt)
    if attempt.state is AttemptState.CANCELLED:
        parameters = {"generation": str(unit.generation + 1), "left_s": "0"}
        return Reason(code=ReasonCode.BACKING_OFF, parameters=parameters)
    return reason_of_end(attempt)


def reason_of_end(attempt: AttemptRow) -> Reason:
    """Return how an attempt ended by itself: by which task, how, and how that is known."""
    task = attempt.tasks[max(attempt.broken_rank, 0)]
    if _is_declined(attempt):
        parameters = {"detail": task.evidence or "no detail given", "step": task.step}
        return Reason(code=ReasonCode.ENGINE_REFUSED, parameters=parameters)
    if task.phase is not TaskPhase.EXITED:
        evidence = task.evidence or f"reported {task.phase or 'absent'}"
        parameters = {"step": task.step, "evidence": evidence}
        return Reason(code=ReasonCode.TASK_LOST, parameters=parameters)
    parameters = {
        "how": f"exit code {task.exit_code}",
        "exit_code": str(task.exit_code),
        "generation": str(attempt.generation),
        "rank": str(task.rank),
        "evidence": task.evidence,
    }
    return Reason(code=ReasonCode.PROGRAM_FAILED, parameters=parameters)


def budget_reason(state: State, row: WorkloadRow) -> Reason:
    """Return that a workload's project has spent its budget."""
    project = state.declared.projects.get(row.submission.project)
    return Reason(
        code=ReasonCode.BUDGET_EXCEEDED,
        parameters={
            "project": row.submission.project,
            "left_eur": format_euros(0),
            "limit_eur": format_euros(project.budget_neur) if project else "?",
            "wanted_eur": format_euros(row.reserved_neur),
        },
    )


def dependency_failed(state: State, row: WorkloadRow) -> Reason:
    """Return that what a workload was to wait for did not end as it had to."""
    other = state.workloads.get(WorkloadId(row.after_failed or ""))
    parameters = {
        "workload": str(row.after_failed),
        "state": other.state.value if other is not None else "otherwise",
    }
    return Reason(code=ReasonCode.DEPENDENCY_FAILED, parameters=parameters)


def _is_declined(attempt: AttemptRow) -> bool:
    """Whether the engine declined the step: EXITED without a status, as no program ever ran."""
    if attempt.broken_rank < 0:
        return False
    task = attempt.tasks[attempt.broken_rank]
    return task.phase is TaskPhase.EXITED and task.exit_code is None


def _time_limits(state: State, now_ns: int) -> Iterator[Stop]:
    for due in state.time_limits.until(now_ns):
        attempt = state.attempts[AttemptId(due.id)]
        if attempt.stop_cause is None:
            row = state.workloads[WorkloadId(attempt.workload)]
            # A check that hangs has said what it could; what it was for still comes.
            cause = StopCause.GANG_BROKEN if attempt.is_check else StopCause.TIME_LIMIT
            yield _stop(row, attempt, cause)


def _deadlines(state: State, now_ns: int) -> Iterator[Reaction]:
    """Yield the ends of what still waits after its deadline: of an array, of each element."""
    for due in state.deadlines.until(now_ns):
        row = state.workloads[WorkloadId(due.id)]
        waiting = [unit for unit in row.units if unit.is_waiting]
        parameters = {"late_s": str((now_ns - due.at_ns) // NS_PER_S)}
        reason = Reason(code=ReasonCode.DEADLINE_PASSED, parameters=parameters)
        if len(waiting) == len(row.units):
            yield _finish(state, row, WorkloadState.FAILED, reason)
        elif row.is_array:
            outcome = Outcome(WorkloadState.FAILED, reason)
            yield from (_finish_unit(row, unit, outcome) for unit in waiting)


def _exhausted(state: State, row: WorkloadRow) -> Iterator[Reaction]:
    if row.attempts_live == 0:
        yield _finish(state, row, WorkloadState.FAILED, budget_reason(state, row))
    for attempt in state.live_attempts(row):
        if attempt.stop_cause is None:
            yield _stop(row, attempt, StopCause.BUDGET)


def _closed_zones(state: State) -> Iterator[Stop]:
    closed = [zone.name for zone in state.declared.zones.values() if zone.state is ZoneState.CLOSED]
    if not closed:
        return
    for node in state.nodes.rows:
        if node.tasks and state.zone_of_node(node.capacity.node) in closed:
            for task in node.tasks.values():
                attempt = state.attempts[task.attempt]
                if attempt.stop_cause is None:
                    row = state.workloads[WorkloadId(attempt.workload)]
                    yield _stop(row, attempt, StopCause.ZONE_CLOSED)


def _stop(row: WorkloadRow, attempt: AttemptRow, cause: StopCause) -> Stop:
    return Stop(attempt=attempt.id, cause=cause, grace_s=row.submission.spec.stop_grace_s)


def _finish(
    state: State, row: WorkloadRow, final: WorkloadState, reason: Reason | None = None
) -> Finish:
    return Finish(
        workload=row.submission.id,
        state=final,
        reason=reason,
        ended_at_ns=_ended_at_ns(state, row),
    )


def _ended_at_ns(state: State, row: WorkloadRow) -> int:
    """Return when a workload's last task ended, 0 while there is none or another try was to come."""
    units = [unit for unit in row.units if not unit.is_retired]
    if any(unit.is_waiting for unit in units):
        return 0
    attempts = [state.latest_attempt(unit) for unit in units]
    tasks = [task for attempt in attempts if attempt is not None for task in attempt.tasks]
    return max((task.ended_at_ns for task in tasks), default=0)


def _cancelled(row: WorkloadRow) -> Reason:
    parameters = {"actor": row.stop_requested_by or "the control plane"}
    return Reason(code=ReasonCode.CANCELLED_BY, parameters=parameters)

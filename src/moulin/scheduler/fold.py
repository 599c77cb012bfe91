"""Changes a state by one event; decides nothing and refuses nothing but a gap in the log.

Late, repeated and foreign events change nothing: an event about an attempt that is not the latest
of its unit, or about a task already proved ended, is counted in the sequence and forgotten.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from moulin.domain.errors import StoreCorrupt, check
from moulin.domain.events import (
    AttemptPlaced,
    AttemptStopDecided,
    Event,
    FactoryApplied,
    NodeJoined,
    NodeLeft,
    NodeReachabilityChanged,
    TaskObserved,
    UnitRequeued,
    UsagesCharged,
    WorkloadFinished,
    WorkloadRefused,
    WorkloadStopRequested,
    WorkloadSubmitted,
)
from moulin.domain.ids import AttemptId, WorkloadId, attempt_id, step_id
from moulin.domain.node_events import GangChecked
from moulin.domain.observation import TaskPhase
from moulin.domain.plan import StopCause, TaskPlacement
from moulin.domain.workload import Submission, WorkloadKind, WorkloadState, units_wanted
from moulin.scheduler.batch import (
    BATCH_HANDLERS,
    forget_others,
    tell_dependents,
    wait_for_others,
)
from moulin.scheduler.changes import let_wait, stop_waiting, unfinished
from moulin.scheduler.demand import demand_of
from moulin.scheduler.ending import end_task, observe_task, settle_later, show_state
from moulin.scheduler.leases import LEASE_HANDLERS
from moulin.scheduler.preflight import fold_check
from moulin.scheduler.queues import Due
from moulin.scheduler.replicas import ENDPOINT_HANDLERS, new_serving
from moulin.scheduler.rows import AttemptRow, Held, TaskRow, UnitRow, WorkloadRow
from moulin.scheduler.state import FINISHED_KEPT, State
from moulin.scheduler.used import USE_HANDLERS, keep_past
from moulin.scheduler.wellbeing import HEALTH_HANDLERS

# Rendezvous ports of gangs: below the range from which Linux takes ports for outgoing connections.
PORT_FIRST: Final = 20_000
PORT_COUNT: Final = 12_000
_LEAVING_CAUSES: Final = frozenset(
    {StopCause.SCALED_IN, StopCause.ROLLED_OUT, StopCause.ROLLED_OVER}
)


def fold(state: State, event: Event) -> None:
    """Apply one event in place; kinds that placement does not need only move the sequence.

    Cost:   O(1) for most kinds, O(units) for an endpoint's, O(nodes) for a factory's.
    Raises `StoreCorrupt` when the event does not follow the last one, and `InvariantViolated`
    when a placement takes what its node does not have.
    """
    if event.sequence != state.sequence + 1:
        raise StoreCorrupt(
            f"fold event {event.sequence} after event {state.sequence}",
            hint="the log has a gap or was read twice; restore it from a backup",
        )
    state.sequence = event.sequence
    handler = _HANDLERS.get(type(event.payload))
    if handler is not None:
        handler(state, event.payload, event)


def _factory_applied(state: State, payload: FactoryApplied, _event: Event) -> None:
    state.impossible.clear()
    for change in payload.changes:
        state.declared.apply(change)
    state.declared.index()
    state.nodes.relabel(state.declared)


def _node_joined(state: State, payload: NodeJoined, event: Event) -> None:
    state.impossible.clear()
    before = state.nodes.row(payload.capacity.node)
    boot_before = before.capacity.boot_id if before is not None else ""
    state.nodes.join(payload.pool, payload.capacity, state.declared)
    boot_now = payload.capacity.boot_id
    if before is not None and boot_before and boot_now and boot_now != boot_before:
        before.health.fit_ns = 0
        _end_tasks_of_other_boots(state, before.tasks.values(), boot_now, event.at_ns)


def _end_tasks_of_other_boots(state: State, tasks: Any, boot_id: str, at_ns: int) -> None:
    """A changed boot id is positive evidence that a machine's earlier processes are gone."""
    for task in list(tasks):
        if task.claim is not None and task.claim.boot_id not in ("", boot_id):
            task.phase, task.ended_at_ns = TaskPhase.GONE, at_ns
            task.evidence = f"boot id changed from {task.claim.boot_id} to {boot_id}"
            end_task(state, task, at_ns)


def _node_reachability(state: State, payload: NodeReachabilityChanged, _event: Event) -> None:
    state.impossible.clear()
    is_reachable = payload.is_reachable
    state.nodes.set_reachable(payload.node, state.declared, is_reachable=is_reachable)


def _node_left(state: State, payload: NodeLeft, _event: Event) -> None:
    state.impossible.clear()
    state.nodes.leave(payload.node, state.declared)


def _submitted(state: State, payload: WorkloadSubmitted, event: Event) -> None:
    submission = payload.submission
    if submission.id in state.workloads:
        return
    row = _new_row(state, submission, event)
    row.reserved_neur = payload.reserved_neur
    wait_for_others(state, row, payload.met)
    row.eligible_at_ns = event.at_ns if row.is_eligible else 0
    row.units.extend(UnitRow(unit=number) for number in range(row.units_wanted))
    row.open_units = len(row.units)
    for unit in row.units:
        let_wait(state, row, unit)
    settle_later(state, row)
    state.unfinished_by_project.setdefault(submission.project, {})[submission.id] = None
    if row.deadline_at_ns:
        state.deadlines.add(Due(row.deadline_at_ns, submission.id))


def _refused(state: State, payload: WorkloadRefused, event: Event) -> None:
    if payload.submission.id in state.workloads:
        return
    row = _new_row(state, payload.submission, event)
    row.state, row.reasons = WorkloadState.REFUSED, payload.reasons
    row.ended_at_ns = event.at_ns
    _keep_finished(state, payload.submission.id)


def _new_row(state: State, submission: Submission, event: Event) -> WorkloadRow:
    spec = submission.spec
    is_job = spec.kind is WorkloadKind.JOB
    default_s = state.declared.time_limit_s(submission.project) if is_job else 0
    row = WorkloadRow(
        submission=submission,
        demand=demand_of(submission),
        units_wanted=units_wanted(spec),
        time_limit_s=spec.time_limit_s or default_s,
        sequence=event.sequence,
        serving=new_serving(submission, event.at_ns),
    )
    state.workloads[submission.id] = row
    state.touched[submission.id] = None
    return row


def _stop_requested(state: State, payload: WorkloadStopRequested, event: Event) -> None:
    row = unfinished(state, payload.workload, event)
    if row is None or row.stop_requested_by:
        return
    if not payload.units:
        row.stop_requested_by = payload.by
        settle_later(state, row)
    for number in payload.units:
        unit = row.units[number] if row.is_array and number < len(row.units) else None
        if unit is not None and unit.final is None:
            unit.is_stopping = True
            settle_later(state, row, unit)


def _placed(state: State, payload: AttemptPlaced, event: Event) -> None:
    row = unfinished(state, payload.workload, event)
    if row is None or payload.unit >= len(row.units):
        return
    unit = row.units[payload.unit]
    expected = attempt_id(payload.workload, payload.unit, unit.generation)
    if payload.attempt != expected or not (unit.is_waiting or unit.is_retired):
        return
    if unit.is_waiting:
        stop_waiting(state, row, unit)
    unit.is_retired = False  # a log of a time when numbers alone said which replica goes
    if unit.attempt is not None:
        keep_past(row, unit, state.attempts.pop(unit.attempt))
    attempt = AttemptRow(
        id=payload.attempt,
        workload=payload.workload,
        unit=payload.unit,
        generation=payload.generation,
        placed_at_ns=event.at_ns,
        tasks_live=len(payload.tasks),
        choice=payload.choice,
        check_s=payload.check_s,
        checks_before=unit.checks,
    )
    if len(payload.tasks) > 1:
        attempt.port = _take_port(state, payload.attempt, event.sequence)
    in_rank_order = sorted(payload.tasks, key=lambda placement: placement.rank)
    attempt.tasks.extend(_task_row(state, row, attempt, placement) for placement in in_rank_order)
    state.attempts[payload.attempt] = attempt
    state.promises.pop((payload.workload, payload.unit), None)
    unit.attempt = payload.attempt
    _hold(state, row, attempt)
    show_state(row)


def _task_row(
    state: State, row: WorkloadRow, attempt: AttemptRow, placement: TaskPlacement
) -> TaskRow:
    resources = row.resources_of(attempt)
    cpu_milli, memory_bytes = resources.cpu_milli, resources.memory_bytes
    node = state.nodes.row(placement.node)
    if row.demand.shape.is_whole_node and node is not None:
        cpu_milli, memory_bytes = node.capacity.cpu_milli, node.capacity.memory_bytes
    return TaskRow(
        step=step_id(attempt.id, placement.rank),
        attempt=attempt.id,
        rank=placement.rank,
        node=placement.node,
        devices=placement.devices,
        cpu_milli=cpu_milli,
        memory_bytes=memory_bytes,
        is_lasting=row.is_lasting,
    )


def _hold(state: State, row: WorkloadRow, attempt: AttemptRow) -> None:
    held = state.held_by_project.setdefault(row.submission.project, Held())
    for task in attempt.tasks:
        check(state.nodes.hold(task), f"{task.node} has room for {task.step}")
        state.steps[task.step] = task
        held.cpu_milli += task.cpu_milli
        held.memory_bytes += task.memory_bytes
        held.accelerators += len(task.devices)
    row.attempts_live += 1
    held.workloads += row.attempts_live == 1


def _take_port(state: State, attempt: AttemptId, sequence: int) -> int:
    """Return a rendezvous port no live gang has, starting elsewhere each time."""
    for step in range(PORT_COUNT):
        port = PORT_FIRST + (sequence + step) % PORT_COUNT
        if port not in state.ports_held:
            state.ports_held[port] = attempt
            return port
    return PORT_FIRST + sequence % PORT_COUNT


def _stop_decided(state: State, payload: AttemptStopDecided, event: Event) -> None:
    attempt = state.attempts.get(payload.attempt)
    if attempt is None or not attempt.is_live or attempt.stop_cause is not None:
        return
    attempt.stop_cause, attempt.grace_s = payload.cause, payload.grace_s
    attempt.stop_decided_ns = event.at_ns
    state.drains.pop(attempt.id, None)
    state.idle.pop(attempt.id, None)
    row = unfinished(state, WorkloadId(attempt.workload), event)
    if row is not None:
        if payload.cause in _LEAVING_CAUSES:
            row.units[attempt.unit].is_leaving = True
        settle_later(state, row, row.units[attempt.unit])


def _requeued(state: State, payload: UnitRequeued, event: Event) -> None:
    row = unfinished(state, payload.workload, event)
    if row is None or payload.unit >= len(row.units):
        return
    unit = row.units[payload.unit]
    if unit.is_waiting or unit.is_retired or payload.generation != unit.generation + 1:
        return
    unit.generation = payload.generation
    let_wait(state, row, unit, payload.not_before_ns)
    row.reasons = (payload.reason,)
    settle_later(state, row, unit)


def _finished(state: State, payload: WorkloadFinished, event: Event) -> None:
    row = unfinished(state, payload.workload, event)
    if row is None:
        return
    check(row.attempts_live == 0, f"{payload.workload} ends after its attempts")
    for unit in row.units:
        state.promises.pop((payload.workload, unit.unit), None)
        if unit.is_waiting:
            stop_waiting(state, row, unit)
    if row.deadline_at_ns:
        state.deadlines.remove(Due(row.deadline_at_ns, payload.workload))
    del state.unfinished_by_project[row.submission.project][payload.workload]
    # An engine's clock may be elsewhere: no end before the start or after it was known.
    ended_at_ns = (
        max(payload.ended_at_ns, row.started_at_ns) if payload.ended_at_ns else event.at_ns
    )
    row.state, row.ended_at_ns = payload.state, min(ended_at_ns, event.at_ns)
    row.reasons = (payload.reason,) if payload.reason is not None else ()
    if row.is_array:
        _end_elements(row)
    forget_others(state, row)
    tell_dependents(state, row, event)
    settle_later(state, row)
    _keep_finished(state, payload.workload)


def _end_elements(row: WorkloadRow) -> None:
    """Elements that were still to come end as their array does."""
    for unit in row.units:
        if unit.final is None:
            unit.final, unit.reason = row.state, row.reasons[0] if row.reasons else None
    row.open_units = 0
    row.due_units.clear()


def _keep_finished(state: State, workload: WorkloadId) -> None:
    state.finished.append(workload)
    if len(state.finished) > FINISHED_KEPT:
        oldest = state.finished.popleft()
        for unit in state.workloads.pop(oldest).units:
            if unit.attempt is not None:
                state.attempts.pop(unit.attempt, None)
                state.unread_checks.pop(unit.attempt, None)
        state.touched.pop(oldest, None)


def _observed(state: State, payload: TaskObserved, event: Event) -> None:
    task = state.steps.get(payload.step)
    if task is None:
        return
    row = unfinished(state, WorkloadId(state.attempts[task.attempt].workload), event)
    check(row is not None, f"{task.step} belongs to an unfinished workload")
    observe_task(state, task, payload)


def _charged(state: State, payload: UsagesCharged, event: Event) -> None:
    for item in payload.items:
        row = state.workloads.get(WorkloadId(item.workload))
        if row is not None:
            row.spent_neur += item.amount_neur
            row.sequence = event.sequence
            state.touched[WorkloadId(item.workload)] = None


_HANDLERS: Final[Mapping[type, Callable[[State, Any, Event], None]]] = {
    FactoryApplied: _factory_applied,
    NodeJoined: _node_joined,
    NodeReachabilityChanged: _node_reachability,
    NodeLeft: _node_left,
    WorkloadSubmitted: _submitted,
    WorkloadRefused: _refused,
    WorkloadStopRequested: _stop_requested,
    AttemptPlaced: _placed,
    AttemptStopDecided: _stop_decided,
    UnitRequeued: _requeued,
    WorkloadFinished: _finished,
    TaskObserved: _observed,
    UsagesCharged: _charged,
    **ENDPOINT_HANDLERS,
    **BATCH_HANDLERS,
    **LEASE_HANDLERS,
    **HEALTH_HANDLERS,
    GangChecked: fold_check,
    **USE_HANDLERS,
}

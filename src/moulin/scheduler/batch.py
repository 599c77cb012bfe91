"""How events change what only batch work has: holds, priorities, what comes first, ends of elements.

The part of the fold beside `replicas`; what follows from it is decided in `settle`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from moulin.domain.batch_events import PreemptionDecided, UnitFinished, WorkloadAdjusted
from moulin.domain.events import Event
from moulin.domain.ids import WorkloadId
from moulin.domain.workload import AfterWhen, WorkloadState
from moulin.scheduler.changes import let_go_on, line_up, stop_waiting, unfinished, withhold
from moulin.scheduler.ending import settle_later
from moulin.scheduler.rows import PromiseRow, WorkloadRow
from moulin.scheduler.state import State


def wait_for_others(state: State, row: WorkloadRow, met: tuple[str, ...]) -> None:
    """Note what a new workload has to wait for: what has ended as wanted is waited for no more."""
    row.is_held = row.submission.spec.is_held
    for after in row.submission.spec.after:
        other = WorkloadId(after.workload)
        found = state.workloads.get(other)
        if other in met:
            continue
        if found is None or found.is_final:
            _meet(row, other, after.when, found.state if found is not None else None)
        else:
            row.after_left[other] = after.when
            state.dependents.setdefault(other, {})[row.submission.id] = None


def tell_dependents(state: State, ended: WorkloadRow, event: Event) -> None:
    """Let go on what waited for a workload that has ended, or note that it never will."""
    for dependent in state.dependents.pop(ended.submission.id, {}):
        row = unfinished(state, dependent, event)
        if row is not None:
            when = row.after_left.pop(ended.submission.id)
            _meet(row, ended.submission.id, when, ended.state)
            become_eligible(state, row, event.at_ns)
            settle_later(state, row)


def forget_others(state: State, row: WorkloadRow) -> None:
    """Wait for nothing any more: the workload has ended."""
    for other in row.after_left:
        waiting = state.dependents[other]
        del waiting[row.submission.id]
        if not waiting:
            del state.dependents[other]
    row.after_left.clear()


def become_eligible(state: State, row: WorkloadRow, at_ns: int) -> None:
    """Let a workload that nothing keeps any more into its line."""
    if row.is_eligible and not row.eligible_at_ns:
        row.eligible_at_ns = at_ns
    let_go_on(state, row)


def _meet(
    row: WorkloadRow, other: WorkloadId, when: AfterWhen, state: WorkloadState | None
) -> None:
    is_met = state is WorkloadState.SUCCEEDED or (when is AfterWhen.ANY and state is not None)
    if not is_met and row.after_failed is None:
        row.after_failed = other


def _adjusted(state: State, payload: WorkloadAdjusted, event: Event) -> None:
    row = unfinished(state, payload.workload, event)
    if row is None:
        return
    if payload.priority is not None:
        _set_priority(state, row, payload.priority)
    if payload.is_held is not None and payload.is_held is not row.is_held:
        row.is_held = payload.is_held
        if row.is_held:
            row.eligible_at_ns = 0
            withhold(state, row)
        else:
            become_eligible(state, row, event.at_ns)


def _set_priority(state: State, row: WorkloadRow, priority: int) -> None:
    """Give every unit another place; one that backs off finds its own when its time has come."""
    in_line = [u for u in row.units if u.is_waiting and not (u.is_withheld or u.not_before_ns)]
    for unit in in_line:
        stop_waiting(state, row, unit)
    row.submission = replace(row.submission, spec=replace(row.submission.spec, priority=priority))
    row.demand = row.demand._replace(priority=priority)
    for former in row.serving.former.values() if row.serving is not None else ():
        former.spec = replace(former.spec, priority=priority)
        former.demand = former.demand._replace(priority=priority)
    for unit in in_line:
        line_up(state, row, unit)


def _unit_finished(state: State, payload: UnitFinished, event: Event) -> None:
    row = unfinished(state, payload.workload, event)
    if row is None or payload.unit >= len(row.units):
        return
    unit = row.units[payload.unit]
    if unit.final is not None:
        return
    if unit.is_waiting:
        stop_waiting(state, row, unit)
        let_go_on(state, row)
    state.promises.pop((payload.workload, payload.unit), None)
    unit.final, unit.reason = payload.state, payload.reason
    row.open_units -= 1
    settle_later(state, row, unit)


def _preemption_decided(state: State, payload: PreemptionDecided, event: Event) -> None:
    for key, promise in list(state.promises.items()):
        if promise.until_ns <= event.at_ns:
            del state.promises[key]
    state.promises[payload.workload, payload.unit] = PromiseRow(
        nodes=payload.nodes, attempts=payload.attempts, until_ns=payload.until_ns
    )
    unfinished(state, payload.workload, event)
    for name in payload.attempts:
        attempt = state.attempts.get(name)
        if attempt is not None and attempt.is_live and attempt.stop_cause is None:
            attempt.preempted_by = payload.workload


BATCH_HANDLERS: Final[Mapping[type, Callable[[State, Any, Event], None]]] = {
    WorkloadAdjusted: _adjusted,
    UnitFinished: _unit_finished,
    PreemptionDecided: _preemption_decided,
}

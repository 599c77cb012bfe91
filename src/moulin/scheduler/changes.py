"""Changes to a state that several kinds of events share: who waits, who is retired, who is attended.

It decides nothing: each function keeps rows, lines and indexes of one state true to one another.
"""

from moulin.domain.events import Event
from moulin.domain.ids import WorkloadId
from moulin.scheduler.rows import UnitRow, WorkloadRow
from moulin.scheduler.state import State, back_off_of, ticket_of


def unfinished(state: State, workload: WorkloadId, event: Event) -> WorkloadRow | None:
    """Return a workload that can still change, marked as changed by this event."""
    row = state.workloads.get(workload)
    if row is None or row.is_final:
        return None
    row.sequence = event.sequence
    state.touched[workload] = None
    return row


def let_wait(state: State, row: WorkloadRow, unit: UnitRow, not_before_ns: int = 0) -> None:
    """Let a unit wait for a placement, or first for a time."""
    unit.is_waiting, unit.not_before_ns = True, not_before_ns
    if not_before_ns:
        state.backing_off.add(back_off_of(row, unit))
    else:
        state.waiting.add(row.demand_of(unit), ticket_of(row, unit))


def stop_waiting(state: State, row: WorkloadRow, unit: UnitRow) -> None:
    """Take a unit out of whatever it waits in."""
    if unit.not_before_ns:
        state.backing_off.remove(back_off_of(row, unit))
    else:
        state.waiting.remove(row.demand_of(unit), ticket_of(row, unit))
    unit.is_waiting = False


def retire_waiting(state: State, row: WorkloadRow, unit: UnitRow) -> None:
    """Retire a replica that waits: nothing of it runs."""
    stop_waiting(state, row, unit)
    unit.is_retired, unit.is_leaving = True, False


def members(row: WorkloadRow, *, is_former: bool) -> list[UnitRow]:
    """Return an endpoint's replicas that are to stay, of its present revision or of earlier ones."""
    present = row.serving.revision if row.serving is not None else 1
    return [
        unit
        for unit in row.units
        if not (unit.is_retired or unit.is_leaving) and (unit.revision != present) is is_former
    ]


def attend(state: State, row: WorkloadRow) -> None:
    """Note whether a decision must look at an endpoint's replicas; kept exact so that few are."""
    is_attended = row.serving is not None and not row.is_final and _may_change(row)
    if is_attended:
        state.attended[row.submission.id] = None
    else:
        state.attended.pop(row.submission.id, None)


def _may_change(row: WorkloadRow) -> bool:
    assert row.serving is not None
    return (
        row.serving.scaling is not None
        or len(members(row, is_former=False)) > row.units_wanted
        or bool(members(row, is_former=True))
    )

"""Changes to a state that several kinds of events share: who waits, who is retired, who is attended.

It decides nothing: each function keeps rows, lines and indexes of one state true to one another.
"""

from bisect import bisect_left, insort

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
    """Let a unit wait for a placement, or first for a time, or for its workload's turn.

    What a held workload has to wait for besides is forgotten: who releases it wants it to go on.
    """
    unit.is_waiting, unit.not_before_ns = True, not_before_ns if row.is_eligible else 0
    if unit.not_before_ns:
        state.backing_off.add(back_off_of(row, unit))
    elif row.is_eligible and not row.at_most:
        line_up(state, row, unit)
    else:
        _put_aside(row, unit)
        let_go_on(state, row)


def line_up(state: State, row: WorkloadRow, unit: UnitRow) -> None:
    """Let a unit wait in its line."""
    unit.is_waiting = True
    state.waiting.add(row.demand_of(unit), ticket_of(row, unit))
    row.in_line += 1


def stop_waiting(state: State, row: WorkloadRow, unit: UnitRow) -> None:
    """Take a unit out of whatever it waits in."""
    if unit.is_withheld:
        del row.withheld[bisect_left(row.withheld, unit.unit)]
        unit.is_withheld = False
    elif unit.not_before_ns:
        state.backing_off.remove(back_off_of(row, unit))
    else:
        state.waiting.remove(row.demand_of(unit), ticket_of(row, unit))
        row.in_line -= 1
    unit.is_waiting = False


def let_go_on(state: State, row: WorkloadRow) -> None:
    """Let as many units into their line as may be placed now; the first ones first.

    What has no chance is not in a line, so that a decision never looks at it.
    """
    if not row.is_eligible:
        return
    room = len(row.withheld)
    if row.at_most:
        room = min(room, max(0, row.at_most - row.attempts_live - row.in_line))
    for number in row.withheld[:room]:
        row.units[number].is_withheld = False
        line_up(state, row, row.units[number])
    del row.withheld[:room]


def withhold(state: State, row: WorkloadRow) -> None:
    """Take every waiting unit out of whatever it waits in, until the workload may go on."""
    for unit in row.units:
        if unit.is_waiting and not unit.is_withheld:
            stop_waiting(state, row, unit)
            unit.is_waiting, unit.not_before_ns = True, 0
            _put_aside(row, unit)


def _put_aside(row: WorkloadRow, unit: UnitRow) -> None:
    unit.is_withheld = True
    insort(row.withheld, unit.unit)


def retire_waiting(state: State, row: WorkloadRow, unit: UnitRow) -> None:
    """Retire a replica that waits: nothing of it runs."""
    stop_waiting(state, row, unit)
    unit.is_retired, unit.is_leaving, unit.is_expiring = True, False, False


def members(row: WorkloadRow, *, is_former: bool) -> list[UnitRow]:
    """Return an endpoint's replicas that nobody told to leave: those that are to stay, or the others.

    Former ones are of an earlier revision, or have a successor because their time ends.
    """
    present = row.serving.revision if row.serving is not None else 1
    return [
        unit
        for unit in row.units
        if not (unit.is_retired or unit.is_leaving)
        and (unit.is_expiring or unit.revision != present) is is_former
    ]


def attend(state: State, row: WorkloadRow) -> None:
    """Note whether a decision must look at an endpoint's replicas; kept exact so that few are."""
    is_attended = row.serving is not None and not row.is_final and _may_change(state, row)
    if is_attended:
        state.attended[row.submission.id] = None
    else:
        state.attended.pop(row.submission.id, None)


def _may_change(state: State, row: WorkloadRow) -> bool:
    assert row.serving is not None
    return (
        row.serving.scaling is not None
        or _is_timed(state, row)
        or len(members(row, is_former=False)) > row.units_wanted
        or bool(members(row, is_former=True))
    )


def _is_timed(state: State, row: WorkloadRow) -> bool:
    """Say whether the time of a replica ends before its endpoint does."""
    attempts = (state.latest_attempt(unit) for unit in row.units)
    return any(
        attempt is not None and attempt.is_live and attempt.ends_at_ns > 0 for attempt in attempts
    )

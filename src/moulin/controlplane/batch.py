"""Batch work as people steer it: hold, release, priority, ends of many or of parts, what comes first.

It decides which workloads a filter means and what a dependency refers to; what follows from that is
the scheduler's.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from moulin.controlplane.commands import (
    AdjustWorkload,
    Answer,
    ReadElements,
    StopElements,
    StopWorkloads,
)
from moulin.controlplane.draft import Draft
from moulin.controlplane.plane import Plane
from moulin.controlplane.rows import view_of
from moulin.domain.batch_events import WorkloadAdjusted
from moulin.domain.control import ElementPage, Stopped, StopWanted
from moulin.domain.errors import Conflict, InvalidRequest, NotFound
from moulin.domain.events import WorkloadStopRequested
from moulin.domain.ids import WorkloadId
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.views import WorkloadView
from moulin.domain.workload import (
    FINAL_WORKLOAD_STATES,
    After,
    AfterWhen,
    JobArray,
    WorkloadKind,
    WorkloadSpec,
    WorkloadState,
)
from moulin.ports.store import WorkloadFilter
from moulin.scheduler import WorkloadRow, unit_views

PRIORITY_MAX = 100


def adjust_workload(plane: Plane, draft: Draft, command: AdjustWorkload) -> Callable[[], Answer]:
    """Hold a workload, let it go on, or give it another priority.

    Raises `NotFound`, `Conflict` when it has ended, `InvalidRequest` for no such priority.
    """
    row = _unfinished(draft, command.workload, "adjust")
    wanted = command.wanted
    if wanted.priority is not None and not 0 <= wanted.priority <= PRIORITY_MAX:
        raise InvalidRequest(
            f"give {command.workload} priority {wanted.priority}", hint=f"0 to {PRIORITY_MAX}"
        )
    is_held = None if wanted.is_held is row.is_held else wanted.is_held
    spec = row.submission.spec
    priority = None if wanted.priority == spec.priority else wanted.priority
    if is_held is not None or priority is not None:
        draft.append(
            WorkloadAdjusted(
                workload=command.workload,
                by=command.principal.name,
                is_held=is_held,
                priority=priority,
            ),
            actor=command.principal.key,
            project=row.submission.project,
        )
    return lambda: view_of(draft.books, command.workload)


def stop_elements(plane: Plane, draft: Draft, command: StopElements) -> Callable[[], Answer]:
    """Ask for the end of some elements of an array; those that have ended stay as they are.

    Raises `NotFound`, and `Conflict` for what has ended, is no array or has no such element.
    """
    row = _unfinished(draft, command.workload, "stop elements of")
    array = row.submission.spec.array
    if array is None:
        raise Conflict(f"stop elements of {command.workload}: it is no array", hint="stop it whole")
    units = _units_of(array, command.indices, command.workload)
    asked = tuple(unit for unit in units if not row.units[unit].is_stopping)
    if any(row.units[unit].final is None for unit in asked):
        draft.append(
            WorkloadStopRequested(
                workload=command.workload, by=command.principal.name, units=asked
            ),
            actor=command.principal.key,
            project=row.submission.project,
        )
    return lambda: view_of(draft.books, command.workload)


def stop_workloads(plane: Plane, draft: Draft, command: StopWorkloads) -> Callable[[], Answer]:
    """Ask for the end of every workload of a project that fits, or only say which these are.

    Raises `InvalidRequest` for a filter that chooses nothing.
    """
    wanted = command.wanted
    if not (wanted.states or wanted.kind or wanted.name or wanted.labels):
        raise InvalidRequest(
            f"stop everything of {command.project}", hint="say which: by state, kind, name or label"
        )
    meant = tuple(_meant(draft, command.project, wanted))
    for row in () if wanted.is_dry_run else meant:
        draft.append(
            WorkloadStopRequested(workload=row.submission.id, by=command.principal.name),
            actor=command.principal.key,
            project=command.project,
        )
    ids = tuple(str(row.submission.id) for row in meant)
    return lambda: Stopped(workloads=ids, is_dry_run=wanted.is_dry_run)


def read_elements(plane: Plane, draft: Draft, command: ReadElements) -> Callable[[], Answer]:
    """Answer with elements of an array, or what the store still has of them; raises `NotFound`."""
    row = draft.books.schedule.workloads.get(command.workload)
    if row is None:
        kept = plane.ports.store.workload(command.workload)
        if kept is None:
            raise NotFound(f"read elements of {command.workload}: there is no such workload")
        page = _of_kept(kept, command)
        return lambda: page
    array = row.submission.spec.array
    units: tuple[int, ...] = ()
    if array is not None and command.indices:
        units = _units_of(array, command.indices, command.workload)

    def finish() -> Answer:
        state = draft.books.schedule
        items = unit_views(state, command.workload, units, command.states)
        return ElementPage(items=items, counts=view_of(draft.books, command.workload).counts)

    return finish


def resolved(
    plane: Plane, draft: Draft, project: str, spec: WorkloadSpec
) -> tuple[WorkloadSpec, tuple[str, ...], tuple[Reason, ...]]:
    """Return a spec that names what it waits for by id, what has ended as wanted, and what never can.

    A name means the newest workload of the project that has it. What is already known not to end
    as it has to is a reason to refuse; so is what the project never had.
    """
    after: list[After] = []
    met: list[str] = []
    reasons: list[Reason] = []
    for each in spec.after:
        found = _named(plane, draft, project, each.workload)
        if found is None:
            parameters = {"workload": each.workload}
            reasons.append(Reason(code=ReasonCode.DEPENDENCY_UNKNOWN, parameters=parameters))
            continue
        known, kind, state = found
        is_ok = state is WorkloadState.SUCCEEDED or each.when is AfterWhen.ANY
        parameters = {"workload": known, "state": state.value}
        if kind is WorkloadKind.ENDPOINT and each.when is AfterWhen.OK:
            reasons.append(Reason(code=ReasonCode.DEPENDENCY_NEVER_OK, parameters=parameters))
        elif state in FINAL_WORKLOAD_STATES and not is_ok:
            reasons.append(Reason(code=ReasonCode.DEPENDENCY_FAILED, parameters=parameters))
        elif state in FINAL_WORKLOAD_STATES:
            met.append(known)
        after.append(replace(each, workload=known))
    if spec.is_notified and not draft.books.webhook(project):
        reasons.append(Reason(code=ReasonCode.NOBODY_TO_TELL, parameters={"project": project}))
    if spec.idle_stop is not None and spec.kind is not WorkloadKind.JOB:
        parameters = {"kind": spec.kind.value}
        reasons.append(Reason(code=ReasonCode.IDLE_NOT_A_JOB, parameters=parameters))
    return replace(spec, after=tuple(after)), tuple(met), tuple(reasons)


def _named(
    plane: Plane, draft: Draft, project: str, word: str
) -> tuple[str, WorkloadKind, WorkloadState] | None:
    """Return id, kind and state of the project's workload that an id or a name means."""
    schedule = draft.books.schedule
    row = schedule.workloads.get(WorkloadId(word))
    if row is None:
        ours = schedule.unfinished_by_project.get(project, {})
        named = [each for each in ours if schedule.workloads[each].submission.spec.name == word]
        row = schedule.workloads[named[-1]] if named else None
    if row is not None:
        is_ours = row.submission.project == project
        return (row.submission.id, row.submission.spec.kind, row.state) if is_ours else None
    kept = plane.ports.store.workload(word) or next(
        iter(plane.ports.store.workloads(WorkloadFilter(project=project, name=word, limit=1))), None
    )
    if kept is None or kept.project != project:
        return None
    return kept.id, WorkloadKind(kept.kind), WorkloadState(kept.state)


def _meant(draft: Draft, project: str, wanted: StopWanted) -> Iterator[WorkloadRow]:
    schedule = draft.books.schedule
    for workload in schedule.unfinished_by_project.get(project, {}):
        row = schedule.workloads[workload]
        spec = row.submission.spec
        if (
            (not wanted.states or row.state in wanted.states)
            and wanted.kind in (None, spec.kind)
            and wanted.name in ("", spec.name)
            and wanted.labels.items() <= spec.labels.items()
            and not row.stop_requested_by
        ):
            yield row


def _unfinished(draft: Draft, workload: WorkloadId, doing: str) -> WorkloadRow:
    row = draft.books.schedule.workloads.get(workload)
    if row is None:
        raise NotFound(f"{doing} {workload}: there is no such workload, or it ended long ago")
    if row.is_final:
        raise Conflict(f"{doing} {workload}: it has ended {row.state.value}")
    return row


def _units_of(array: JobArray, indices: tuple[int, ...], workload: str) -> tuple[int, ...]:
    wanted = frozenset(indices)
    units = array.units_of(wanted)
    if len(units) < len(wanted):
        known = {array.index_of(unit) for unit in units}
        missing = ", ".join(map(str, sorted(wanted - known)[:5]))
        raise Conflict(
            f"find elements {missing} of {workload}: it has none of these",
            hint=f"its indices go from {array.index_of(0)} to {array.index_of(array.size - 1)}",
        )
    return units


def _of_kept(view: WorkloadView, command: ReadElements) -> ElementPage:
    items = tuple(
        unit
        for unit in view.units
        if (not command.indices or unit.index in command.indices)
        and (not command.states or unit.state in command.states)
    )
    return ElementPage(items=items, counts=view.counts)

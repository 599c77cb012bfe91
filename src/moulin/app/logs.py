"""Reads what tasks wrote, from whichever engine has it; says why when none has.

It decides nothing about who may read.
"""

from collections.abc import Sequence
from typing import Final

from moulin.api.services import LogReader
from moulin.controlplane.commands import ReadElements
from moulin.controlplane.plane import Plane
from moulin.domain.control import ElementPage
from moulin.domain.errors import LogsDropped, NotFound
from moulin.domain.ids import StepId, WorkloadId
from moulin.domain.observation import LogChunk, TaskPhase
from moulin.domain.units import NS_PER_S
from moulin.domain.views import TaskView, UnitView, WorkloadView

ANSWER_S: Final = 10.0


def log_reader(plane: Plane) -> LogReader:
    """Return what reads output of a unit's latest attempt, asking every engine of a plane.

    It raises `NotFound` for what never started, and for what no engine has any more.
    """

    def read(workload: str, unit: int, rank: int, cursor: int, limit: int) -> LogChunk:
        """Return output of a unit's latest attempt; raises `NotFound` before there is any."""
        view = plane.ports.store.workload(workload)
        found = [
            task
            for shown in (_units(plane, view, unit) if view is not None else ())
            if shown.unit == unit
            for task in shown.tasks
            if task.rank == rank
        ]
        if view is None or not found:
            raise NotFound(
                f"read the log of {workload} unit {unit} rank {rank}: it has not started",
                hint=f"`moulin why {workload}` says what it waits for",
            )
        engines = dict(plane.engines)  # the cycle's thread may change the original
        for pool in sorted(engines):
            try:
                return engines[pool].logs(StepId(found[0].step), cursor, limit)
            except NotFound:
                continue
        raise no_log(view, found[0], plane.now_ns())

    return read


def no_log(view: WorkloadView, task: TaskView, now_ns: int) -> NotFound:
    """Return why no engine has a task's output: it was kept long enough, or nobody knows."""
    kept_s = view.spec.retention_s
    has_run = task.phase not in ("", TaskPhase.ABSENT)
    if has_run and view.ended_at_ns and now_ns >= view.ended_at_ns + kept_s * NS_PER_S:
        return LogsDropped(
            f"read the log of {task.step}: it was dropped {kept_s} s after the end of {view.id}",
            hint="`retention` in a job file, or --retention, says how long output is kept",
            details={"retention_s": kept_s},
        )
    return NotFound(f"read the log of {task.step}: no engine has it any more")


def _units(plane: Plane, view: WorkloadView, unit: int) -> Sequence[UnitView]:
    """Return the units of a row, or the one element of an array that its row does not show."""
    array = view.spec.array
    is_shown = any(shown.unit == unit for shown in view.units)
    if array is None or is_shown or not 0 <= unit < array.size:
        return view.units
    wanted = ReadElements(workload=WorkloadId(view.id), indices=(array.index_of(unit),))
    page = plane.inbox.call(wanted).result(ANSWER_S)
    return page.items if isinstance(page, ElementPage) else ()

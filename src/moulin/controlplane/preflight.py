"""The checks of gangs' nodes: what a check is as a step, and its results from what its tasks printed.

It concludes nothing about nodes; that is the scheduler's.
"""

import json
from dataclasses import replace
from typing import Final

from moulin.controlplane.draft import Draft
from moulin.controlplane.plane import Plane
from moulin.domain.errors import EngineUnavailable, MoulinError
from moulin.domain.ids import AttemptId
from moulin.domain.node_events import GangChecked
from moulin.domain.plan import StartStep
from moulin.domain.preflight import Preflight, read_results
from moulin.domain.workload import TaskTemplate
from moulin.ports.engine import Engine
from moulin.scheduler import TaskRow, preflight_of

# A rank prints one line; what else a node's Python may have to say is of no use here.
_LINE_BYTES_MAX: Final = 1 << 16
GRACE_S: Final = 2
# What cannot be read for so long is given up: a check never keeps work from starting.
READ_NS: Final = 60 * 10**9


def check_step(plane: Plane, step: StartStep) -> StartStep:
    """Return a check's step with its program; nothing of the unit's own program is in it."""
    row = plane.books.schedule.nodes.row(step.nodes[step.rank])
    wanted = (preflight_of(plane.books.schedule, row) if row is not None else None) or Preflight()
    parameters = {"size_bytes": wanted.size_bytes, "time_limit_s": wanted.time_limit_s}
    command = ("python3", "-c", plane.ports.check_program, json.dumps(parameters))
    return replace(step, task=TaskTemplate(command=command), stop_grace_s=GRACE_S)


def read_checks(plane: Plane, draft: Draft) -> None:
    """Draft what the checks measured that have ended; one whose node is away is read later."""
    schedule = draft.books.schedule
    for name in list(schedule.unread_checks):
        attempt = schedule.attempts.get(name)
        if attempt is None:
            draft.append(GangChecked(attempt=name, links=(), words="its unit is gone"))
            continue
        try:
            lines = [_line(plane, draft, task) for task in attempt.tasks]
        except EngineUnavailable:
            if draft.now_ns - attempt.ended_at_ns < READ_NS:
                continue
            lines = [b"" for _ in attempt.tasks]
        transport, links = read_results([task.node for task in attempt.tasks], lines)
        words = "" if links else _why(attempt.id, lines)
        draft.append(GangChecked(attempt=name, links=links, transport=transport, words=words))


def _line(plane: Plane, draft: Draft, task: TaskRow) -> bytes:
    row = draft.books.schedule.nodes.row(task.node)
    engine: Engine | None = plane.engines.get(row.pool) if row is not None else None
    if engine is None:
        return b""
    try:
        return engine.logs(task.step, 0, _LINE_BYTES_MAX).data
    except EngineUnavailable:
        raise
    except MoulinError:
        return b""  # it never started, or is forgotten


def _why(attempt: AttemptId, lines: list[bytes]) -> str:
    said = next((line for line in lines if line), b"").decode(errors="replace").strip()
    return f"{attempt} measured nothing: {said[-200:] or 'no task printed anything'}"

"""Lets engines forget tasks whose retention has passed, and records that they did.

Only workloads that are finished and metered to their end are forgotten. Forgetting is idempotent: what
a crash leaves undone or unrecorded is done again, an engine that is away is asked again, and the event
that ends it is written once. Decision 0014.
"""

import heapq
from typing import Final

from moulin.controlplane.draft import Draft
from moulin.controlplane.plane import Plane
from moulin.controlplane.retention import NS_PER_S
from moulin.domain.errors import EngineUnavailable, MoulinError
from moulin.domain.events import TasksForgotten, WorkloadFinished
from moulin.domain.ids import StepId, WorkloadId, attempt_id
from moulin.ports.engine import Forgets

# What one cycle may look at, so that no command waits for a large factory's housekeeping.
STEPS_MAX: Final = 50
WAIT_S: Final = 30
# Later than those that waited for it, so that one bad task does not hold them up for ever.
RETRY_S: Final = 60


def forget_due(plane: Plane, draft: Draft) -> None:
    """Queue what the committed draft ended, and let engines forget some of what is due.

    Cost:   O(events of the draft), and O(log n) for each of at most `STEPS_MAX` tasks.
    """
    forgetting, ended, now_ns = plane.forgetting, plane.books.retention.ended, plane.now_ns()
    for event in draft.events:
        if isinstance(event.payload, WorkloadFinished) and event.payload.workload in ended:
            forgetting.look_at(event.payload.workload, ended[event.payload.workload][1])
    away: set[str] = set()
    for _ in range(STEPS_MAX):
        if not forgetting.due or forgetting.due[0][0] > now_ns:
            return
        at_ns, workload = heapq.heappop(forgetting.due)
        wait_s = _forget_next(plane, workload, away)
        if wait_s is None:
            forgetting.done[workload] = None
        else:
            forgetting.look_at(workload, now_ns + wait_s * NS_PER_S if wait_s else at_ns)


def record_forgotten(plane: Plane, draft: Draft) -> None:
    """Draft what was forgotten since the last cycle, one event a project."""
    by_project: dict[str, list[WorkloadId]] = {}
    for workload in plane.forgetting.done:
        project, _ = draft.books.retention.ended[workload]
        by_project.setdefault(project, []).append(workload)
    plane.forgetting.done.clear()
    for project, workloads in sorted(by_project.items()):
        draft.append(TasksForgotten(workloads=tuple(workloads)), project=project)


def is_metered(plane: Plane, workload: WorkloadId) -> bool:
    """Say whether nothing that a workload used is still to be read from an engine."""
    attempts = plane.books.cursors.attempts
    cursors = (
        attempts.get(attempt_id(workload, unit, generation))
        for unit, generation, _ in plane.books.retention.placed[workload]
    )
    return all(cursor is None or cursor.steps_open == 0 for cursor in cursors)


def _forget_next(plane: Plane, workload: WorkloadId, away: set[str]) -> int | None:
    """Let one more task be forgotten; return when to come back, in s from now, None when all are."""
    forgetting = plane.forgetting
    if workload not in forgetting.left:
        if not is_metered(plane, workload):
            return WAIT_S
        forgetting.left[workload] = plane.books.retention.steps(workload)
    left = forgetting.left[workload]
    pool, step = left[-1]
    if pool in away:
        return WAIT_S
    try:
        _forget_step(plane, pool, step)
    except MoulinError as error:
        if isinstance(error, EngineUnavailable):
            away.add(pool)
        return RETRY_S
    left.pop()
    if left:
        return 0
    del forgetting.left[workload]
    return None


def _forget_step(plane: Plane, pool: str, step: StepId) -> None:
    engine = plane.engines.get(pool)
    if engine is None:
        raise EngineUnavailable(f"forget {step}: pool {pool!r} has no engine now")
    if isinstance(engine, Forgets):
        engine.forget(step)

"""Looks on purpose at nodes in quarantine on which nobody reads while no work of ours is there.

A look is a step of one short program on that very node, with all of its devices. It is no work: it
belongs to nobody, is in no book, and is forgotten once it was read; a control plane that ends
meanwhile leaves its files behind. What the reading means is the scheduler's to say.
"""

import contextlib
from typing import Final

from moulin.controlplane.lookup import pool_of
from moulin.controlplane.plane import Look, Plane
from moulin.domain.errors import EngineError, EngineUnavailable
from moulin.domain.health import NodeReading
from moulin.domain.ids import (
    NodeId,
    OrganisationId,
    ProjectId,
    StepId,
    WorkloadId,
    attempt_id,
    step_id,
)
from moulin.domain.observation import ENDED_PHASES, NodeCapacity
from moulin.domain.plan import StartStep
from moulin.domain.told import read_told, reading_of
from moulin.domain.workload import Resources, TaskTemplate
from moulin.ports.engine import Engine, Forgets

NS_PER_S: Final = 10**9
TIME_LIMIT_S: Final = 60
# A look that others keep waiting is taken back, and comes again later.
PATIENCE_NS: Final = 180 * NS_PER_S
AGAIN_NS: Final = 600 * NS_PER_S
MEMORY_BYTES: Final = 256 << 20
_SAID_BYTES_MAX: Final = 1 << 16


def look(plane: Plane) -> None:
    """Begin looks at nodes that are free and nobody could read, go on with others, and keep readings."""
    schedule, now_ns = plane.books.schedule, plane.now_ns()
    for node in sorted(plane.unseen | {node for node, each in plane.looks.items() if each.step}):
        row = schedule.nodes.row(node)
        engine = plane.engines.get(pool_of(schedule, node))
        if row is None or engine is None or not plane.ports.look_program:
            plane.looks.pop(node, None)
            continue
        is_idle = not (row.tasks or row.guests)
        if is_idle and row.is_reachable and not row.capacity.closed_because:
            with contextlib.suppress(EngineError):
                found = _look_at(plane, engine, row.capacity, now_ns)
                plane.readings += [found] if found is not None else []
    plane.unseen.clear()


def _look_at(
    plane: Plane, engine: Engine, capacity: NodeCapacity, now_ns: int
) -> NodeReading | None:
    """Return a reading when there is one; it names every device of the node."""
    node = capacity.node
    begun = plane.looks.get(node)
    if begun is None or (not begun.step and now_ns - begun.began_ns >= AGAIN_NS):
        _begin(plane, engine, capacity, now_ns)
        return None
    if not begun.step:
        return None
    [seen] = engine.observe([begun.step])
    if seen.phase not in ENDED_PHASES:
        if now_ns - begun.began_ns >= PATIENCE_NS:
            engine.stop(begun.step, 0)
        return None
    found = _reading(engine, begun.step, node) if seen.exit_code == 0 else None
    with contextlib.suppress(EngineError):
        if isinstance(engine, Forgets):
            engine.forget(begun.step)
    begun.step = StepId("")
    is_whole = found is not None and len(found.devices or ()) >= capacity.accelerators
    return found if is_whole else None


def _begin(plane: Plane, engine: Engine, capacity: NodeCapacity, now_ns: int) -> None:
    workload = WorkloadId(f"look_{capacity.node}")
    attempt = attempt_id(workload, 0, now_ns // NS_PER_S)
    step = StartStep(
        step=step_id(attempt, 0),
        attempt=attempt,
        workload=workload,
        organisation=OrganisationId(""),
        project=ProjectId(""),
        unit=0,
        generation=1,
        rank=0,
        nodes=(capacity.node,),
        devices=tuple(range(capacity.accelerators)),
        resources=Resources(
            cpu_milli=min(1000, capacity.cpu_milli),
            memory_bytes=min(MEMORY_BYTES, capacity.memory_bytes),
            accelerator_class=capacity.accelerator_class,
            accelerators=capacity.accelerators,
        ),
        task=TaskTemplate(command=("python3", "-c", plane.ports.look_program, "once")),
        time_limit_s=TIME_LIMIT_S,
        stop_grace_s=0,
    )
    plane.looks[capacity.node] = Look(step.step, now_ns)
    with contextlib.suppress(EngineUnavailable):  # looked for below, as if it had been started
        engine.start(step)


def _reading(engine: Engine, step: StepId, node: NodeId) -> NodeReading | None:
    told = read_told(engine.logs(step, 0, _SAID_BYTES_MAX).data)
    return reading_of(node, told, is_partial=True) if told is not None else None

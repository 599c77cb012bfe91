"""Asks engines what they see and drafts what changed; draws no conclusion from silence.

An engine that cannot be asked makes its nodes unreachable, which by itself ends nothing.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from moulin.controlplane.draft import Draft
from moulin.controlplane.lookup import (
    is_news,
    is_reachable,
    is_stopping,
    nodes_of_pool,
    project_of_step,
    steps_of_pool,
    task_of,
)
from moulin.controlplane.plane import Plane
from moulin.domain.errors import EngineUnavailable
from moulin.domain.events import NodeJoined, NodeLeft, NodeReachabilityChanged, TaskObserved
from moulin.domain.factory import Pool
from moulin.domain.ids import NodeId
from moulin.domain.observation import NodeCapacity, Observation, TaskPhase
from moulin.ports.engine import Engine, ReportsChanges

UNKNOWN_PHASES: Final = frozenset({TaskPhase.UNREACHABLE})


def observe(plane: Plane, draft: Draft) -> None:
    """Draft node and task changes of every engine whose time has come."""
    _connect_engines(plane, draft)
    if plane.is_due("capacity", plane.settings.capacity_period_s, draft.now_ns):
        for pool in draft.books.pools():
            _observe_capacity(plane, draft, pool)
    draft_observations(draft, plane.reports)
    plane.reports.clear()
    is_poll_due = plane.is_due("observe", plane.settings.observe_period_s, draft.now_ns)
    # A report can be lost after it was handed out, so engines that report are asked too, rarely.
    is_sweep_due = plane.is_due("sweep", plane.settings.sweep_period_s, draft.now_ns)
    for pool_name in sorted(plane.engines):
        engine = plane.engines[pool_name]
        is_reporting = isinstance(engine, ReportsChanges)
        if isinstance(engine, ReportsChanges):
            draft_observations(draft, engine.changes())
        if is_sweep_due if is_reporting else is_poll_due:
            steps = steps_of_pool(draft.books.schedule, pool_name)
            if steps:
                draft_observations(draft, engine.observe(steps))


def draft_observations(draft: Draft, observations: Iterable[Observation]) -> None:
    """Draft those observations that say something new about a step the state holds."""
    schedule = draft.books.schedule
    for seen in observations:
        task = task_of(schedule, seen.step)
        if task is None or seen.phase in UNKNOWN_PHASES:
            continue
        if not is_news(task, seen, is_stopped=is_stopping(schedule, seen.step)):
            continue
        draft.append(
            TaskObserved(
                step=seen.step,
                phase=seen.phase,
                observed_at_ns=seen.at_ns,
                claim=seen.claim,
                exit_code=seen.exit_code,
                started_at_ns=seen.started_at_ns,
                ended_at_ns=seen.ended_at_ns,
                address=seen.address,
                is_ready=seen.is_ready,
                cpu_ns=seen.cpu_ns,
                memory_bytes_max=seen.memory_bytes_max,
                evidence=seen.evidence,
            ),
            project=project_of_step(schedule, seen.step),
        )


def _connect_engines(plane: Plane, draft: Draft) -> None:
    wanted = {pool.name: pool for pool in draft.books.pools()}
    for name in sorted(set(plane.engines) - set(wanted)):
        del plane.engines[name]
    for name in sorted(set(wanted) - set(plane.engines)):
        plane.engines[name] = plane.ports.engine_for(wanted[name])


def _observe_capacity(plane: Plane, draft: Draft, pool: Pool) -> None:
    schedule = draft.books.schedule
    known = nodes_of_pool(schedule, pool.name)
    seen = _capacity(plane.engines[pool.name])
    if seen is None:
        for node in sorted(known):
            _set_reachable(draft, node, is_seen=False, evidence="the engine cannot be asked")
        return
    for capacity in seen:
        if capacity.node not in known or _facts(known[capacity.node]) != _facts(capacity):
            draft.append(NodeJoined(pool=pool.name, capacity=capacity))
        else:
            _set_reachable(draft, capacity.node, is_seen=capacity.is_reachable)
    for node in sorted(set(known) - {capacity.node for capacity in seen}):
        draft.append(NodeLeft(node=node))


def _capacity(engine: Engine) -> Sequence[NodeCapacity] | None:
    try:
        return engine.capacity()
    except EngineUnavailable:
        return None


def _facts(capacity: NodeCapacity) -> tuple[object, ...]:
    """What makes a node another node than before; reachability is not part of it."""
    return (
        capacity.cpu_milli,
        capacity.memory_bytes,
        capacity.machine_class,
        capacity.accelerators,
        capacity.accelerator_class,
        capacity.boot_id,
        capacity.address,
        capacity.cpu_ids,
        capacity.idle_mw,
        capacity.peak_mw,
    )


def _set_reachable(draft: Draft, node: NodeId, *, is_seen: bool, evidence: str = "") -> None:
    if is_reachable(draft.books.schedule, node) != is_seen:
        draft.append(NodeReachabilityChanged(node=node, is_reachable=is_seen, evidence=evidence))

"""Asks engines what they see and drafts what changed; draws no conclusion from silence.

An engine that cannot be asked makes its nodes unreachable, which by itself ends nothing.
"""

import contextlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from moulin.controlplane.draft import Draft
from moulin.controlplane.health import observe_health
from moulin.controlplane.lookup import (
    is_end_moved,
    is_news,
    is_reachable,
    is_stopping,
    nodes_of_pool,
    nodes_of_undeclared_pools,
    project_of_step,
    steps_of_pool,
    task_of,
)
from moulin.controlplane.plane import Plane
from moulin.controlplane.preflight import read_checks
from moulin.domain.errors import EngineError, MoulinError
from moulin.domain.events import (
    Event,
    NodeJoined,
    NodeLeft,
    NodeReachabilityChanged,
    TaskObserved,
)
from moulin.domain.factory import Pool
from moulin.domain.ids import NodeId, StepId
from moulin.domain.observation import NodeCapacity, Observation, TaskPhase
from moulin.ports.engine import Engine, ReportsChanges

log = logging.getLogger(__name__)


def observe(plane: Plane, draft: Draft) -> None:
    """Draft task and node changes of every engine whose time has come.

    Tasks come first: an end on record counts, also when the node has been restarted since.
    """
    is_capacity_due = plane.is_due("capacity", plane.settings.capacity_period_s, draft.now_ns)
    _connect_engines(plane, draft, is_again=is_capacity_due)
    first = len(draft.events)
    draft_observations(plane, draft, plane.reports)
    plane.reports.clear()
    is_poll_due = plane.is_due("observe", plane.settings.observe_period_s, draft.now_ns)
    # A report can be lost after it was handed out, so engines that report are asked too, rarely.
    is_sweep_due = plane.is_due("sweep", plane.settings.sweep_period_s, draft.now_ns)
    for pool in sorted(plane.engines):
        is_reporting = isinstance(plane.engines[pool], ReportsChanges)
        is_asked = is_sweep_due if is_reporting else is_poll_due
        seen = _seen_in(plane, draft, pool, is_asked=is_asked)
        _read_where_it_failed(plane, draft, pool, seen)
        draft_observations(plane, draft, seen)
    read_checks(plane, draft)
    # What was lost may have been lost with its node: that is known before anything is placed again.
    if is_capacity_due or _has_lost(draft.events[first:]):
        for declared in draft.books.pools():
            _observe_capacity(plane, draft, declared)
            observe_health(plane, draft, declared.name)
        for node in nodes_of_undeclared_pools(draft.books.schedule):
            draft.append(NodeLeft(node=node))


def _has_lost(events: Sequence[Event]) -> bool:
    """Say whether a task is gone that did not end by itself."""
    payloads = [event.payload for event in events]
    return any(isinstance(each, TaskObserved) and each.phase is TaskPhase.GONE for each in payloads)


def _read_where_it_failed(
    plane: Plane, draft: Draft, pool: str, observations: Iterable[Observation]
) -> None:
    """Read the nodes of devices whose programs failed: what broke there is known before it counts."""
    schedule = draft.books.schedule
    nodes: set[NodeId] = set()
    for seen in observations:
        task = task_of(schedule, seen.step) if seen.phase is TaskPhase.EXITED else None
        if task is None or not task.devices or not seen.exit_code or not is_news(task, seen):
            continue
        if not is_stopping(schedule, seen.step):
            nodes.add(task.host or task.node)
    if nodes:
        observe_health(plane, draft, pool, sorted(nodes))


def draft_observations(plane: Plane, draft: Draft, observations: Iterable[Observation]) -> None:
    """Draft those observations that say something new about a step the state holds.

    A placed step that its engine never had is started again, whoever lost the start.
    """
    schedule = draft.books.schedule
    for seen in observations:
        task = task_of(schedule, seen.step)
        if task is None or seen.phase is TaskPhase.UNREACHABLE:
            continue
        is_stopped = is_stopping(schedule, seen.step)
        if seen.phase is TaskPhase.ABSENT and task.phase is None and not is_stopped:
            plane.unstarted.add(seen.step)
            continue
        if not is_news(task, seen) and not is_end_moved(schedule, task, seen):
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
                host=seen.host,
                wall_ns=seen.wall_ns,
            ),
            project=project_of_step(schedule, seen.step),
        )


def _connect_engines(plane: Plane, draft: Draft, *, is_again: bool) -> None:
    """Follow the declared pools; one whose engine cannot be had is tried again, and said once."""
    wanted = {pool.name: pool for pool in draft.books.pools()}
    for name in sorted(set(plane.connected) - set(wanted)):
        del plane.connected[name]
        plane.engines.pop(name, None)
    for name, pool in wanted.items():
        if plane.connected.get(name) == pool and (name in plane.engines or not is_again):
            continue
        try:
            plane.engines[name] = plane.ports.engine_for(pool)
        except MoulinError as error:
            plane.engines.pop(name, None)
            if plane.connected.get(name) != pool:
                log.warning("pool %s is left alone: %s", name, error.message)
        plane.connected[name] = pool


def _seen_in(plane: Plane, draft: Draft, pool: str, *, is_asked: bool) -> Sequence[Observation]:
    """Return what an engine tells and, when asked, what it sees; nothing when it is away."""
    engine = plane.engines[pool]
    seen: list[Observation] = []
    steps: Sequence[StepId] = steps_of_pool(draft.books.schedule, pool) if is_asked else ()
    with contextlib.suppress(EngineError):
        if isinstance(engine, ReportsChanges):
            seen.extend(engine.changes())
        if steps:
            seen.extend(engine.observe(steps))
    return seen


def _observe_capacity(plane: Plane, draft: Draft, pool: Pool) -> None:
    schedule = draft.books.schedule
    known = nodes_of_pool(schedule, pool.name)
    engine = plane.engines.get(pool.name)
    seen = _capacity(engine) if engine is not None else None
    if seen is None:
        for node in sorted(known):
            _set_reachable(draft, node, is_seen=False, evidence="the engine cannot be asked")
        return
    for capacity in seen:
        if capacity.node not in known or not _is_same(known[capacity.node], capacity):
            draft.append(NodeJoined(pool=pool.name, capacity=capacity))
        else:
            _set_reachable(draft, capacity.node, is_seen=capacity.is_reachable)
    for node in sorted(set(known) - {capacity.node for capacity in seen}):
        draft.append(NodeLeft(node=node))


def _capacity(engine: Engine) -> Sequence[NodeCapacity] | None:
    try:
        return engine.capacity()
    except EngineError:
        return None


def _is_same(before: NodeCapacity, now: NodeCapacity) -> bool:
    """Say whether the facts of a node are as before; reachability is not one of them."""
    return replace(before, is_reachable=now.is_reachable) == now


def _set_reachable(draft: Draft, node: NodeId, *, is_seen: bool, evidence: str = "") -> None:
    if is_reachable(draft.books.schedule, node) != is_seen:
        draft.append(NodeReachabilityChanged(node=node, is_reachable=is_seen, evidence=evidence))

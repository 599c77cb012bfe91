"""Closes metering intervals: counters in, exact allocations and final usages out.

A node's own counter and its tasks' counters are read independently; what the tasks do not explain
is unattributed, never spread over them. An interval that cannot be read is closed later, longer; after
`UNREAD_MAX_NS` what is known of its tasks has to do, so that nothing waits for ever to be charged.
"""

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from moulin.controlplane.cursors import RULES
from moulin.controlplane.draft import Draft
from moulin.controlplane.lookup import pool_of
from moulin.controlplane.metered import UNKNOWN_SITE, Facts, NodeCursor, StepCursor, readings_of
from moulin.controlplane.plane import Plane
from moulin.domain.errors import EngineError, EngineUnavailable, SourceError
from moulin.domain.events import IntervalMetered, MeteringClosed
from moulin.domain.factory import Site
from moulin.domain.ids import NodeId
from moulin.domain.observation import TaskPhase
from moulin.domain.usage import NodeAllocation, NodeReading, TaskReading, Usage
from moulin.domain.views import NodeIntervalView
from moulin.energy import allocate, node_energy, power_of
from moulin.metering import close_intervals

BACKLOG_CYCLES: Final = 20
IDLE_INTERVAL_S: Final = 600.0
SCAN_PERIOD_S: Final = 0.25
NO_NODE_COUNTER: Final = "the node's own counter was not continued: CPU time from its tasks alone"
NOT_READ: Final = -1
NO_COUNTER: Final = -2
NS_PER_S: Final = 1_000_000_000
# How long what a task used may wait for a node whose counters cannot be read.
UNREAD_MAX_NS: Final = 600 * NS_PER_S


@dataclass(slots=True)
class Counters:
    """Cumulative CPU counters of tasks by step; those `unread` are no more than the last known."""

    cpu_ns: dict[str, int]
    unread: list[str] = field(default_factory=list)


def meter(plane: Plane, draft: Draft) -> tuple[Usage, ...]:
    """Close the intervals that are due and return the usages to charge now.

    A cycle meters and charges only so many tasks, so that no command waits for a large factory's
    metering; the nodes, and the usages, left over are next.
    """
    usages: list[Usage] = []
    if plane.is_due("meter", SCAN_PERIOD_S, draft.now_ns):
        plane.unmetered.update(dict.fromkeys(_due_nodes(plane, draft)))
        usages.extend(_settle(plane, draft))
    plane.unmetered.update(draft.books.cursors.crowded)
    tasks_left = plane.settings.metering_tasks_max
    while plane.unmetered and tasks_left > 0:
        node = next(iter(plane.unmetered))
        del plane.unmetered[node]
        cursor = draft.books.cursors.nodes.get(node)
        if cursor is not None:
            tasks_left -= 1 + len(cursor.steps)
            _meter_node(plane, draft, node)
    owed = draft.books.cursors.owed
    # Few at a time keeps cycles short; a share of a long backlog keeps it from growing.
    charges_max = max(plane.settings.charges_max, len(owed) // BACKLOG_CYCLES)
    return (*usages, *itertools.islice(owed.values(), charges_max))


def _due_nodes(plane: Plane, draft: Draft) -> Sequence[NodeId]:
    busy_ns = int(plane.settings.metering_interval_s * NS_PER_S)
    idle_ns = int(max(IDLE_INTERVAL_S, plane.settings.metering_interval_s) * NS_PER_S)
    due = [
        node
        for node, cursor in draft.books.cursors.nodes.items()
        if not cursor.is_based
        or draft.now_ns - cursor.until_ns >= (busy_ns if cursor.steps else idle_ns)
    ]
    return sorted(due)


def _meter_node(plane: Plane, draft: Draft, node: NodeId) -> None:
    """Draft a node's interval up to now; nothing while a counter that can come back is missing."""
    cursor = draft.books.cursors.nodes[node]
    window_ns = (min(cursor.until_ns, draft.now_ns), draft.now_ns)
    is_empty = window_ns[0] == window_ns[1]
    if is_empty and cursor.is_based:
        return  # two intervals that start together would share their usages' names
    try:
        counters = Counters({}) if is_empty else _task_counters(plane, draft, cursor)
        counter_ns = _node_counter(plane, draft, cursor)
    except (EngineError, SourceError):
        counters, counter_ns = _overdue_counters(plane, draft, cursor), None
        if is_empty or not counters.cpu_ns:
            return
    tasks = tuple(readings_of(draft.books.cursors, window_ns, counters.cpu_ns, counters.unread))
    node_cpu_ns = NOT_READ if counter_ns is None else counter_ns
    if counter_ns == NO_COUNTER:  # what its tasks used stands in for what it would have counted
        node_cpu_ns, counter_ns = cursor.cpu_ns + sum(task.cpu_ns for task in tasks), None
    reading = _reading(cursor, window_ns, counter_ns, tasks)
    site = draft.books.site_of(cursor.zone) or UNKNOWN_SITE
    allocation = allocate(reading, tasks, site.pue_ppm)
    draft.append(_event(allocation, node_cpu_ns, counters))
    if not is_empty:
        draft.intervals.append(_row(allocation, site))


def _node_counter(plane: Plane, draft: Draft, cursor: NodeCursor) -> int | None:
    """Return the node's own counter, `NO_COUNTER` for a node that never had one.

    None when the node has left and only its past is owed.

    Raises `SourceUnavailable` when it may be readable later.
    """
    try:
        counter = plane.ports.meter.read(cursor.capacity)
    except SourceError:
        steps = draft.books.cursors.steps
        if cursor.has_left and all(steps[step].ended_ns for step in cursor.steps):
            return None
        raise
    return NO_COUNTER if counter is None else counter.cpu_ns


def _reading(
    cursor: NodeCursor,
    window_ns: tuple[int, int],
    counter_ns: int | None,
    tasks: Sequence[TaskReading],
) -> NodeReading:
    """Model the node's energy; a counter without its past says nothing, then the tasks' must do."""
    is_continued = cursor.is_based and counter_ns is not None and counter_ns >= cursor.cpu_ns
    busy_ns = (counter_ns or 0) - cursor.cpu_ns if is_continued else sum(t.cpu_ns for t in tasks)
    reading = node_energy(
        node=cursor.capacity.node,
        zone=cursor.zone,
        start_ns=window_ns[0],
        end_ns=window_ns[1],
        cpu_ns_busy=busy_ns,
        cpu_milli=cursor.capacity.cpu_milli,
        power=power_of(cursor.capacity),
    )
    if is_continued or window_ns[0] == window_ns[1]:
        return reading
    return replace(reading, method=f"{reading.method}; {NO_NODE_COUNTER}")


def _task_counters(plane: Plane, draft: Draft, node: NodeCursor) -> Counters:
    """Return cumulative CPU counters of the node's started tasks: live ones read now.

    A live task that its engine cannot reach is left out: it may have ended long ago. What it held
    is made up for when more is known. Raises `EngineError` when nothing live can be asked about.
    """
    cursors = draft.books.cursors.steps
    counters = _final_counters(draft, node)
    live = [step for step in sorted(node.steps) if _is_live(cursors[step])]
    if not live:
        return counters
    engine = plane.engines.get(pool_of(draft.books.schedule, cursors[live[0]].node))
    if engine is None:
        raise EngineUnavailable(f"read the tasks on {node.capacity.node}: its pool has no engine")
    for seen in engine.observe(live):
        if seen.phase is not TaskPhase.UNREACHABLE:
            counters.cpu_ns[seen.step] = max(cursors[seen.step].cpu_ns, seen.cpu_ns)
            if not (seen.cpu_ns or seen.memory_bytes_max):
                counters.unread.append(seen.step)
    return counters


def _final_counters(draft: Draft, node: NodeCursor) -> Counters:
    cursors = draft.books.cursors.steps
    ended = {step: cursors[step] for step in sorted(node.steps) if cursors[step].ended_ns}
    found = Counters({step: max(each.cpu_ns_final, each.cpu_ns) for step, each in ended.items()})
    found.unread += [
        step for step, each in ended.items() if not (found.cpu_ns[step] or each.memory_bytes_max)
    ]
    return found


def _is_live(cursor: StepCursor) -> bool:
    return bool(cursor.started_ns) and not cursor.ended_ns


def _overdue_counters(plane: Plane, draft: Draft, node: NodeCursor) -> Counters:
    """Return what counters there are of a node that cannot be read, once a task has waited enough."""
    cursors = draft.books.cursors.steps
    until_ns = draft.now_ns - UNREAD_MAX_NS
    overdue = {
        step
        for step in node.steps
        if 0 < max(cursors[step].started_ns, cursors[step].until_ns) <= until_ns
    }
    if not overdue:
        return Counters({})
    counters = _final_counters(draft, node)
    with contextlib.suppress(EngineError):
        counters = _task_counters(plane, draft, node)
    return counters if overdue & counters.cpu_ns.keys() else Counters({})


def _settle(plane: Plane, draft: Draft) -> Sequence[Usage]:
    """Let replicas' intervals and requests become final where everything about them is known."""
    cursors = draft.books.cursors
    if not (cursors.open.intervals or cursors.open.settled):
        return ()
    closed = MeteringClosed(now_ns=draft.now_ns, journal_until_ns=_journal_until_ns(plane, draft))
    closing = close_intervals(
        cursors.open,
        closed.now_ns,
        journal_until_ns=closed.journal_until_ns,
        facts=Facts(cursors, draft.books.site_of),
        rules=RULES,
    )
    if closing.state == cursors.open:
        return ()
    draft.append(closed)
    plane.learn(closing.usages)
    return closing.usages


def _journal_until_ns(plane: Plane, draft: Draft) -> int:
    """Return the time up to which every open gateway epoch has told all it did."""
    epochs = draft.books.gateways.epochs
    if not epochs:
        return draft.now_ns
    return min(plane.journal_until_ns.get(key, 0) for key in epochs)


def _event(allocation: NodeAllocation, node_cpu_ns: int, counters: Counters) -> IntervalMetered:
    reading = allocation.reading
    return IntervalMetered(
        node=reading.node,
        start_ns=reading.start_ns,
        end_ns=reading.end_ns,
        node_cpu_ns=node_cpu_ns,
        task_cpu_ns=dict(counters.cpu_ns),
        task_unread=tuple(counters.unread),
        task_energy_mj={str(s): mj for s, mj in allocation.task_mj.items()},
        task_overhead_mj={str(s): mj for s, mj in allocation.task_overhead_mj.items()},
        task_standing_mj={str(s): mj for s, mj in allocation.task_standing_mj.items()},
        energy_mj=reading.energy_mj,
        idle_mj=allocation.idle_mj,
        unattributed_mj=allocation.unattributed_mj,
        overhead_mj=allocation.overhead_mj,
        method=reading.method,
        quality=reading.quality,
        uncertainty_ppm=reading.uncertainty_ppm,
    )


def _row(allocation: NodeAllocation, site: Site) -> NodeIntervalView:
    reading = allocation.reading
    return NodeIntervalView(
        node=reading.node,
        zone=reading.zone,
        site=site.name,
        start_ns=reading.start_ns,
        end_ns=reading.end_ns,
        energy_mj=reading.energy_mj,
        allocated_mj=sum(allocation.task_mj.values()),
        idle_mj=allocation.idle_mj,
        unattributed_mj=allocation.unattributed_mj,
        overhead_mj=allocation.overhead_mj,
        method=reading.method,
        quality=reading.quality,
        uncertainty_ppm=reading.uncertainty_ppm,
    )

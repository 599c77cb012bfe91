"""How events change what is known of a node's health, and what follows for the work on it.

What readings mean is decided in `health`; here they meet the nodes of a state.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from moulin.domain.events import Event
from moulin.domain.health import Quarantine, Verdict
from moulin.domain.ids import NodeId, WorkloadId
from moulin.domain.node_events import NodeChecked, NodeHealthObserved, NodeJudged
from moulin.domain.plan import Judge, Stop, StopCause
from moulin.domain.reasons import sentence
from moulin.scheduler.health import judge, judgements, observe_health
from moulin.scheduler.nodes import NodeRow
from moulin.scheduler.policy import SchedulerPolicy
from moulin.scheduler.rows import TaskRow
from moulin.scheduler.state import State


def judged(state: State, now_ns: int, policy: SchedulerPolicy) -> Iterator[Judge]:
    """Yield the nodes that have another verdict now, by name."""
    for node in sorted(state.ailing):
        row = state.nodes.row(node)
        if row is not None:
            yield from judgements(node, row.health, now_ns, policy)


def quarantined(state: State) -> Iterator[tuple[NodeId, str, Quarantine]]:
    """Yield the nodes in quarantine with their pools, by name."""
    for node in sorted(state.ailing):
        row = state.nodes.row(node)
        if row is not None and row.health.verdict is Verdict.QUARANTINED:
            words = sentence(row.health.reason) if row.health.reason is not None else ""
            yield node, row.pool, Quarantine(since_ns=row.health.judged_ns, words=words)


def stops_of_broken(state: State) -> Iterator[Stop]:
    """Yield the stops of work that holds what is known to be broken; its node is in quarantine.

    What runs beside it, on devices nothing is known against, is left to end by itself.
    """
    for node in sorted(state.ailing):
        row = state.nodes.row(node)
        if row is None or row.health.verdict is not Verdict.QUARANTINED or not row.health.evidence:
            continue
        for task in (*row.tasks.values(), *row.guests.values()):
            attempt = state.attempts[task.attempt]
            if attempt.stop_cause is None and is_struck(state, task):
                grace_s = state.workloads[WorkloadId(attempt.workload)].submission.spec.stop_grace_s
                yield Stop(attempt=attempt.id, cause=StopCause.UNHEALTHY, grace_s=grace_s)


def is_struck(state: State, task: TaskRow) -> bool:
    """Whether there is evidence against what a task holds, or the machine it runs on."""
    row = state.nodes.row(task.node)
    host = state.nodes.row(task.host) if task.host is not None else None
    held = task.devices or (-1,)
    is_held_broken = row is not None and any(row.health.is_broken(device) for device in held)
    return is_held_broken or (host is not None and host.health.is_against(task.step))


def _observed(state: State, payload: NodeHealthObserved, event: Event) -> None:
    row = state.nodes.row(payload.node)
    if row is not None:
        observe_health(row.health, payload.reading, event.at_ns)
        attend_health(state, payload.node, row)


def _checked(state: State, payload: NodeChecked, event: Event) -> None:
    row = state.nodes.row(payload.node)
    if row is not None:
        row.health.passed_ns = event.at_ns if payload.is_passed else 0


def _judged(state: State, payload: NodeJudged, event: Event) -> None:
    row = state.nodes.row(payload.node)
    if row is None:
        return
    state.impossible.clear()
    judge(row.health, payload.verdict, payload.reason, by=payload.by, at_ns=event.at_ns)
    state.nodes.label(row, state.declared)
    attend_health(state, payload.node, row)


def attend_health(state: State, node: NodeId, row: NodeRow) -> None:
    """Note whether decisions have to look at a node's health."""
    if row.health.is_ailing:
        state.ailing[node] = None
    else:
        state.ailing.pop(node, None)


HEALTH_HANDLERS: Final[Mapping[type, Callable[[State, Any, Event], None]]] = {
    NodeHealthObserved: _observed,
    NodeChecked: _checked,
    NodeJudged: _judged,
}

"""The health of nodes in the cycle: what engines read becomes events, and what people say too.

It decides nothing about verdicts; a reading that says nothing new is not written down.
"""

import contextlib
from collections.abc import Callable, Sequence

from moulin.controlplane.commands import Answer, CheckNode, JudgeNode
from moulin.controlplane.draft import CONTROL_PLANE, Draft
from moulin.controlplane.plane import Plane
from moulin.domain.errors import EngineError, EngineUnavailable, NotFound
from moulin.domain.health import NodeReading
from moulin.domain.ids import NodeId
from moulin.domain.node_events import NodeChecked, NodeHealthObserved, NodeJudged
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.views import NodeView
from moulin.ports.engine import ReportsHealth
from moulin.scheduler import clears, is_health_news, needs_check, node_views, symptoms_of


def observe_health(plane: Plane, draft: Draft, pool: str, nodes: Sequence[NodeId] = ()) -> None:
    """Draft what is news of a pool's nodes, and look again at those whose time in quarantine is over.

    With `nodes` only of these, which are read now.
    """
    engine = plane.engines.get(pool)
    if not isinstance(engine, ReportsHealth):
        return
    with contextlib.suppress(EngineError):
        for reading in engine.health(nodes):
            _take(plane, draft, reading)
    for reading in plane.readings:
        _take(plane, draft, reading)
    plane.readings.clear()


def judge_node(plane: Plane, draft: Draft, command: JudgeNode) -> Callable[[], Answer]:
    """Put a node into quarantine or take it out, because somebody says so; raises `NotFound`."""
    _pool_of(draft, command.node)
    parameters = {"actor": command.principal.name, "words": command.words or "no reason given"}
    draft.append(
        NodeJudged(
            node=command.node,
            verdict=command.verdict,
            reason=Reason(code=ReasonCode.NODE_SAID, parameters=parameters),
            by=command.principal.name,
        ),
        actor=command.principal.key,
    )
    return lambda: _view(draft, command.node)


def check_node(plane: Plane, draft: Draft, command: CheckNode) -> Callable[[], Answer]:
    """Read a node now and put on record whether it shows anything.

    Raises `NotFound`, and `EngineUnavailable` when its engine cannot say.
    """
    engine = plane.engines.get(_pool_of(draft, command.node))
    found: tuple[NodeReading, ...] = ()
    if isinstance(engine, ReportsHealth):
        found = engine.health((command.node,))
    if not found:
        raise EngineUnavailable(
            f"check {command.node}: its engine does not read the health of nodes",
            hint="`moulin nodes quarantine` and `release` work without",
        )
    _take(plane, draft, found[0], by=command.principal.name)
    return lambda: _view(draft, command.node)


def _take(plane: Plane, draft: Draft, reading: NodeReading, by: str = "") -> None:
    row = draft.books.schedule.nodes.row(reading.node)
    # A node that cannot be asked says nothing, unless its engine knows for certain that it is down.
    if row is None or not (row.is_reachable or reading.down_because):
        return
    if is_health_news(row.health, reading):
        symptoms = symptoms_of(row.health.reading, reading)
        draft.append(NodeHealthObserved(node=reading.node, reading=reading, symptoms=symptoms))
    is_passed = clears(row.health, reading)
    is_due = needs_check(row.health, draft.now_ns, plane.policy)
    if is_due and not is_passed:
        plane.unseen.add(reading.node)
    if by or (is_passed and is_due):
        draft.append(NodeChecked(node=reading.node, is_passed=is_passed, by=by or CONTROL_PLANE))


def _pool_of(draft: Draft, node: NodeId) -> str:
    row = draft.books.schedule.nodes.row(node)
    if row is None:
        raise NotFound(f"find node {node!r}: there is none", hint="`moulin nodes` lists them")
    return row.pool


def _view(draft: Draft, node: NodeId) -> NodeView:
    found = [each for each in node_views(draft.books.schedule) if each.node == node]
    if not found:
        raise NotFound(f"read node {node!r}: it has left")
    return found[0]

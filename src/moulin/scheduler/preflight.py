"""When the nodes of a gang are checked together first, and what a check says of each of them.

A link that is well speaks for both its ends. One that is not speaks against an end only where the
other is well, by this check or by a later one; until then both are doubted and kept apart, so that
the next check has each with somebody else. Nothing here touches what runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from moulin.domain.events import Event
from moulin.domain.health import Signal, Symptom
from moulin.domain.ids import NodeId
from moulin.domain.node_events import GangChecked
from moulin.domain.preflight import LinkMeasured, Preflight
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.units import format_scaled
from moulin.scheduler.health import DOUBTED_NS
from moulin.scheduler.nodes import NodeRow
from moulin.scheduler.rows import WorkloadRow
from moulin.scheduler.state import State
from moulin.scheduler.wellbeing import attend_health

NS_PER_S: Final = 10**9
# What starting and ending the check may take beside the check itself.
MARGIN_S: Final = 60


def preflight_of(state: State, node: NodeRow) -> Preflight | None:
    """Return the check that a node's pool wants."""
    pool = state.declared.pools.get(node.pool)
    return pool.preflight if pool is not None else None


def check_s(state: State, nodes: Sequence[int], now_ns: int) -> int:
    """Return how long a check of these nodes may take before their gang starts; 0 when none is due."""
    rows = [state.nodes.rows[node] for node in nodes]
    wanted = [(row, preflight_of(state, row)) for row in rows]
    due = [each for row, each in wanted if each is not None and is_due(row, each, now_ns)]
    if len(rows) < 2 or not due:
        return 0
    return max(each.time_limit_s for each in due) + MARGIN_S


def is_due(row: NodeRow, preflight: Preflight, now_ns: int) -> bool:
    """Whether a node's last check is too old, and none was tried in vain a moment ago."""
    health = row.health
    is_fit = health.fit_ns > 0 and now_ns - health.fit_ns < preflight.every_s * NS_PER_S
    is_tried = health.tried_ns > 0 and now_ns - health.tried_ns < DOUBTED_NS
    return not (is_fit or is_tried)


def misfit(state: State, nodes: Sequence[int], now_ns: int) -> int:
    """Return the node to leave out, as it is doubted together with most of the others; -1 for none."""
    if not state.ailing:
        return -1
    rows = [state.nodes.rows[node] for node in nodes]
    names = {row.capacity.node for row in rows}
    found = [
        (len(names.intersection(row.health.doubted_with(now_ns))), row.capacity.node, node)
        for row, node in zip(rows, nodes, strict=True)
        if row.health.doubts
    ]
    count, _, node = max(found, default=(0, NodeId(""), -1))
    return node if count else -1


def check_reasons(state: State, row: WorkloadRow) -> Iterator[Reason]:
    """Yield that the nodes of a gang are being checked."""
    checked = [attempt for attempt in state.live_attempts(row) if attempt.is_check]
    if checked:
        parameters = {"count": str(len(checked[0].tasks))}
        yield Reason(code=ReasonCode.CHECKED, parameters=parameters)


def apart_reasons(state: State, row: WorkloadRow, now_ns: int) -> Iterator[Reason]:
    """Yield that some nodes are not put together now, to a gang that waits."""
    rows = [state.nodes.row(node) for node in state.ailing] if row.demand.tasks > 1 else []
    apart = [each for each in rows if each is not None and each.health.doubted_with(now_ns)]
    if apart:
        yield Reason(code=ReasonCode.NODES_APART, parameters={"count": str(len(apart))})


def fold_check(state: State, payload: GangChecked, event: Event) -> None:
    """Take over what a check measured."""
    attempt = state.attempts.get(payload.attempt)
    state.unread_checks.pop(payload.attempt, None)
    if attempt is None:
        return
    rows = {task.node: state.nodes.row(task.node) for task in attempt.tasks}
    present = {name: row for name, row in rows.items() if row is not None}
    links = [each for each in payload.links if {each.sender, each.receiver} <= present.keys()]
    measured = {end for each in links for end in _ends(each)}
    for name, row in present.items():
        row.health.tried_ns = 0 if name in measured else event.at_ns
    _judge_links(state, present, links, event.at_ns)
    for name, row in sorted(present.items()):
        attend_health(state, name, row)


def _judge_links(
    state: State, rows: Mapping[NodeId, NodeRow], links: Sequence[LinkMeasured], at_ns: int
) -> None:
    bad = {each: words for each in links if (words := _problem(state, rows, each))}
    well = sorted({end for each in links if each not in bad for end in _ends(each)})
    for link, words in bad.items():
        for name, other in (_ends(link), _ends(link)[::-1]):
            health = rows[name].health
            health.doubts[other] = at_ns
            health.doubt = Symptom(signal=Signal.PREFLIGHT, words=words)
            health.fit_ns = 0
            health.symptom_ns = at_ns
    for name in well:
        _acquit(state, name, rows[name], well, at_ns)


def _acquit(state: State, name: NodeId, row: NodeRow, well: Sequence[NodeId], at_ns: int) -> None:
    """A node that is well leaves the others it was doubted with to be at fault, unless they are too."""
    for other in row.health.doubted_with(at_ns):
        accused = state.nodes.row(other)
        if accused is None or other in well or name not in accused.health.doubts:
            continue
        doubt = accused.health.doubt
        words = doubt.words if doubt is not None else f"a check with {name}"
        evidence = Symptom(signal=Signal.PREFLIGHT, is_evidence=True, words=words)
        known = {each.signal for each in accused.health.evidence}
        if Signal.PREFLIGHT not in known:
            accused.health.evidence += (evidence,)
        accused.health.doubts.pop(name, None)
        attend_health(state, other, accused)
    row.health.fit_ns = at_ns
    # Two that are well each with others and not with one another stay apart for a while.
    kept = {node: since for node, since in row.health.doubts.items() if node in well}
    row.health.doubts = kept


def _ends(link: LinkMeasured) -> tuple[NodeId, NodeId]:
    return link.sender, link.receiver


def _problem(state: State, rows: Mapping[NodeId, NodeRow], link: LinkMeasured) -> str:
    """Return what is wrong with a link by what its receiver's pool wants, empty for nothing."""
    wanted = preflight_of(state, rows[link.receiver]) or Preflight()
    between = f"from {link.sender} to {link.receiver}"
    if link.problem:
        return f"{between}: {link.problem}"
    if 0 <= link.bytes_per_s < wanted.bytes_per_s_min:
        rate, least = _mega(link.bytes_per_s), _mega(wanted.bytes_per_s_min)
        return f"{between}: {rate} MB/s, at least {least} are wanted"
    if 0 < wanted.round_trip_ns_max < link.round_trip_ns:
        took, most = link.round_trip_ns // 1000, wanted.round_trip_ns_max // 1000
        return f"{between}: a round trip took {took} us, at most {most} are wanted"
    return ""


def _mega(bytes_per_s: int) -> str:
    return format_scaled(bytes_per_s // 10**4, 100)

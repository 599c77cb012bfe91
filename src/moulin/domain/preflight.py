"""The check of a gang's nodes before the gang: what an operator wants of it, and what it says.

What the figures mean for the nodes is decided in the scheduler.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from moulin.domain.ids import NodeId

_WORDS_MAX: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """A pool's check: what is passed is believed for `every_s`; 0 as a bound is none.

    `bytes_per_s_min` and `round_trip_ns_max` are of each link between two nodes, `size_bytes` goes over
    each, and the check ends after `time_limit_s`.
    """

    every_s: int = 86_400
    bytes_per_s_min: int = 0
    round_trip_ns_max: int = 0
    size_bytes: int = 16 << 20
    time_limit_s: int = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkMeasured:
    """What came from one node to another; -1 for what was not measured.

    `problem` says in words why nothing did, or that what came was wrong.
    """

    sender: NodeId
    receiver: NodeId
    bytes_per_s: int = -1
    round_trip_ns: int = -1
    problem: str = ""


def read_results(
    nodes: Sequence[NodeId], lines: Sequence[bytes]
) -> tuple[str, tuple[LinkMeasured, ...]]:
    """Return how it was measured and the links, from what each rank printed, in rank order.

    A rank that said nothing is a problem of the links from and to it only where others missed it;
    nothing at all is no links.
    """
    said = [_read(line, len(nodes)) for line in lines]
    links: list[LinkMeasured] = []
    for rank, each in enumerate(said):
        if each is None:
            continue
        absent = each.get("absent", ()) if rank == 0 else ()
        links.extend(_absent(nodes[0], nodes[other]) for other in absent)
        if each.get("right", rank) != rank:
            links.append(_broken(nodes[rank], nodes[each["right"]], each))
        is_known = "bytes_per_s" in each or "problem" in each
        if is_known and each.get("left", rank) != rank:
            links.append(_measured(nodes[each["left"]], nodes[rank], each))
    transports = sorted({str(each["transport"]) for each in said if each is not None})
    return ",".join(transports), tuple(links)


def _absent(first: NodeId, other: NodeId) -> LinkMeasured:
    return LinkMeasured(sender=other, receiver=first, problem="it did not come to the check")


def _broken(sender: NodeId, receiver: NodeId, said: Mapping[str, Any]) -> LinkMeasured:
    problem = str(said.get("right_problem", "it broke"))[:_WORDS_MAX]
    return LinkMeasured(sender=sender, receiver=receiver, problem=problem)


def _measured(sender: NodeId, receiver: NodeId, said: Mapping[str, Any]) -> LinkMeasured:
    return LinkMeasured(
        sender=sender,
        receiver=receiver,
        bytes_per_s=said.get("bytes_per_s", -1),
        round_trip_ns=said.get("round_trip_ns", -1),
        problem=str(said.get("problem", ""))[:_WORDS_MAX],
    )


def _read(line: bytes, count: int) -> Mapping[str, Any] | None:
    """Return what a rank printed; None for anything that the check does not print."""
    for text in reversed(line.splitlines()):
        try:
            said = json.loads(text)
        except ValueError:
            continue
        if isinstance(said, dict) and said.get("moulin_check") == 1 and _is_sound(said, count):
            return said
    return None


def _is_sound(said: Mapping[str, Any], count: int) -> bool:
    """Say whether figures are figures: the line comes from a program on somebody's node."""
    ranks = [said.get("left", 0), said.get("right", 0), *said.get("absent", ())]
    figures = [said.get(name, 0) for name in ("bytes_per_s", "round_trip_ns")]
    return all(type(each) is int and 0 <= each < count for each in ranks) and all(
        type(each) is int and 0 <= each < 1 << 62 for each in figures
    )

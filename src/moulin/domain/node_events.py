"""The part of the log's vocabulary about the health of nodes.

The same rules hold as in `events.py`, which names these kinds with all others.
"""

from dataclasses import dataclass

from moulin.domain.health import NodeReading, Symptom, Verdict
from moulin.domain.ids import AttemptId, NodeId
from moulin.domain.preflight import LinkMeasured
from moulin.domain.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHealthObserved:
    """What is wrong with a node is something else than before; the reading is the next one's base."""

    node: NodeId
    reading: NodeReading
    symptoms: tuple[Symptom, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeChecked:
    """A node was looked at again on purpose, by somebody or because its time had come."""

    node: NodeId
    is_passed: bool
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeJudged:
    """A node has another verdict; `by` is who said so, empty for the decider."""

    node: NodeId
    verdict: Verdict
    reason: Reason
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GangChecked:
    """What the check of a gang's nodes measured; without any `links` it said nothing, as in `words`."""

    attempt: AttemptId
    links: tuple[LinkMeasured, ...]
    transport: str = ""
    words: str = ""

"""Where a node's own readings come from, independently of what its tasks report."""

from dataclasses import dataclass
from typing import Protocol

from moulin.domain.observation import NodeCapacity


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCounter:
    """A node's cumulative busy CPU time; `at_ns` is when it was read. `method` says how."""

    at_ns: int
    cpu_ns: int
    method: str


class NodeMeter(Protocol):
    """Reads counters of nodes."""

    def read(self, node: NodeCapacity) -> NodeCounter | None:
        """Return the node's counter now, None for a node that has none: then its tasks' must do.

        Raises `SourceUnavailable` when it cannot be read; the interval is then closed later.
        """
        ...

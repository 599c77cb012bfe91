"""The part of the log's vocabulary that only batch work needs: adjustments, preemption, ends of elements.

The same rules hold as in `events.py`, which names these kinds with all others.
"""

from dataclasses import dataclass

from moulin.domain.ids import AttemptId, NodeId, WorkloadId
from moulin.domain.reasons import Reason
from moulin.domain.workload import WorkloadState


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadAdjusted:
    """Somebody held or released a workload, or changed its priority; what is None stays."""

    workload: WorkloadId
    by: str
    is_held: bool | None = None
    priority: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFinished:
    """One element of an array has its final state; nothing of it runs again."""

    workload: WorkloadId
    unit: int
    state: WorkloadState
    reason: Reason | None = None
    ended_at_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptionDecided:
    """Attempts give way to a unit of a higher priority, for which these nodes are kept until then."""

    workload: WorkloadId
    unit: int
    nodes: tuple[NodeId, ...]
    attempts: tuple[AttemptId, ...]
    until_ns: int

"""Who waits for the nodes of a lease, so that a longer one would keep them from starting."""

import numpy as np

from moulin.domain.ids import WorkloadId
from moulin.domain.plan import Place
from moulin.domain.reasons import Reason, ReasonCode
from moulin.scheduler.decide import Placing, ends_of
from moulin.scheduler.leases import leased_nodes
from moulin.scheduler.policy import SchedulerPolicy
from moulin.scheduler.rows import WorkloadRow
from moulin.scheduler.settle import react
from moulin.scheduler.state import State

Ending = set[tuple[WorkloadId, int]]
_SOMEBODY = "other work"


def wanted_next(
    state: State, workload: WorkloadId, now_ns: int, policy: SchedulerPolicy
) -> Reason | None:
    """Return that nodes of a lease are kept for something that waits, None when none are.

    The next decision is made as it would be now; what it keeps nodes free for begins when the lease
    ends. Who waits is named to its own project alone.
    """
    reactions = list(react(state, now_ns, policy))
    placing = _Watched(state, now_ns, policy, ends_of(reactions))
    for _ in placing.places():
        pass
    positions = [state.nodes.index[node.capacity.node] for node in leased_nodes(state, workload)]
    kept = [position for position in positions if position in placing.kept_for]
    if not kept:
        return None
    waiting = placing.kept_for[kept[0]]
    is_own = _project(state, waiting) == _project(state, workload)
    return Reason(
        code=ReasonCode.NODES_WANTED,
        parameters={"count": str(len(kept)), "workload": waiting if is_own else _SOMEBODY},
    )


class _Watched(Placing):
    """A decision in progress that remembers for whom it keeps which node."""

    def __init__(self, state: State, now_ns: int, policy: SchedulerPolicy, ending: Ending) -> None:
        super().__init__(state, now_ns, policy, ending=ending)
        self.kept_for: dict[int, WorkloadId] = {}

    def place_row(self, row: WorkloadRow, unit: int) -> Place | None:
        """Place one unit, and note which nodes are kept for it when it cannot be."""
        before = self.room.reserved.copy()
        place = super().place_row(row, unit)
        for node in np.flatnonzero(self.room.reserved & ~before).tolist():
            self.kept_for[node] = row.submission.id
        return place


def _project(state: State, workload: WorkloadId) -> str:
    return state.workloads[workload].submission.project

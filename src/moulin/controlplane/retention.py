"""What engines keep of each workload and until when they are to, folded from the log.

A workload's retention begins when its end is known, and its records may go when it has passed. This
book never asks an engine; `forgetting.py` does, and what is forgotten comes back here as an event.
"""

import heapq
from dataclasses import dataclass, field

from moulin.controlplane.lookup import pool_of
from moulin.domain.events import AttemptPlaced, Event, TasksForgotten, WorkloadFinished
from moulin.domain.ids import StepId, WorkloadId, attempt_id, step_id
from moulin.scheduler import State

NS_PER_S = 1_000_000_000
# A unit, a generation of it, and the pool of each of its tasks by rank. Plain tuples, because there
# is one for every workload of the last days, and these the collector of garbage leaves alone.
Placed = tuple[int, int, tuple[str, ...]]


@dataclass(slots=True)
class Retention:
    """Every workload of which engines may have records.

    `placed` are its placements, `ended` its project and when its records are due to go, in ns, once
    it is finished.
    """

    placed: dict[WorkloadId, tuple[Placed, ...]] = field(default_factory=dict)
    ended: dict[WorkloadId, tuple[str, int]] = field(default_factory=dict)

    def steps(self, workload: WorkloadId) -> list[tuple[str, StepId]]:
        """Return every task a workload ever had, with its pool."""
        return [
            (pool, step_id(attempt_id(workload, unit, generation), rank))
            for unit, generation, pools in self.placed[workload]
            for rank, pool in enumerate(pools)
        ]


@dataclass(slots=True)
class Forgetting:
    """What is to be forgotten; made anew from the book by whoever takes the lead.

    `due` is a heap of (when to try, workload), `left` are the tasks still to be forgotten of
    workloads that were begun, `done` are workloads whose event is not drafted yet.
    """

    due: list[tuple[int, WorkloadId]] = field(default_factory=list)
    left: dict[WorkloadId, list[tuple[str, StepId]]] = field(default_factory=dict)
    done: dict[WorkloadId, None] = field(default_factory=dict)

    def look_at(self, workload: WorkloadId, at_ns: int) -> None:
        """Queue a workload for a time."""
        heapq.heappush(self.due, (at_ns, workload))


def forgetting_of(book: Retention) -> Forgetting:
    """Return everything that is still to be forgotten, nothing of it begun."""
    due = [(due_ns, workload) for workload, (_, due_ns) in book.ended.items()]
    heapq.heapify(due)
    return Forgetting(due=due)


def fold_retention(book: Retention, event: Event, schedule: State) -> None:
    """Apply one event in place; `schedule` has already folded it."""
    match event.payload:
        case AttemptPlaced() as placed if placed.attempt in schedule.attempts:
            pools = tuple(pool_of(schedule, task.node) for task in placed.tasks)
            made = (placed.unit, placed.generation, pools)
            book.placed[placed.workload] = (*book.placed.get(placed.workload, ()), made)
        case WorkloadFinished(workload=workload) if workload in book.placed:
            _end(book, workload, event.at_ns, schedule)
        case TasksForgotten(workloads=workloads):
            for workload in workloads:
                book.placed.pop(workload, None)
                book.ended.pop(workload, None)
        case _:
            pass


def _end(book: Retention, workload: WorkloadId, at_ns: int, schedule: State) -> None:
    if workload in book.ended:
        return
    submission = schedule.workloads[workload].submission
    # Counted from when the end was known: after a long outage nobody has seen the log before.
    due_ns = at_ns + submission.spec.retention_s * NS_PER_S
    book.ended[workload] = (submission.project, due_ns)

"""The events one cycle is about to write, folded as they are drafted.

Later stages of the cycle see what earlier ones drafted; nothing leaves the process before the
whole draft is committed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moulin.controlplane.books import Books, fold_all
from moulin.domain.events import (
    AttemptPlaced,
    AttemptStopDecided,
    Event,
    IntervalMetered,
    NodeJoined,
    NodeLeft,
    NodeReachabilityChanged,
    Payload,
    TaskObserved,
)
from moulin.domain.ids import WorkloadId
from moulin.domain.node_events import NodeChecked, NodeHealthObserved, NodeJudged
from moulin.domain.usage import Entry
from moulin.domain.views import IdempotencyRecord, NodeIntervalView, ReceiptView, WorkloadView
from moulin.ledger import Frontier
from moulin.ports.store import Checkpoint, Leaf, TreeNode

CONTROL_PLANE = "control-plane"


@dataclass(slots=True)
class Draft:
    """One cycle's writes. `now_ns` is the cycle's only time. `views` are the rows it wrote."""

    books: Books
    epoch: int
    now_ns: int
    events: list[Event] = field(default_factory=list)
    receipts: list[ReceiptView] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    leaves: list[Leaf] = field(default_factory=list)
    nodes: list[TreeNode] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    intervals: list[NodeIntervalView] = field(default_factory=list)
    frontiers: dict[str, Frontier] = field(default_factory=dict)
    idempotency: dict[tuple[str, str], IdempotencyRecord] = field(default_factory=dict)
    views: dict[WorkloadId, WorkloadView] = field(default_factory=dict)

    def append(
        self,
        payload: Payload,
        *,
        actor: str = CONTROL_PLANE,
        causation: int = 0,
        project: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> Event:
        """Draft one event and fold it; the project's organisation and the site are filled in."""
        declared = self.books.project(project) if project else None
        event = Event(
            sequence=self.books.sequence + 1,
            epoch=self.epoch,
            at_ns=self.now_ns,
            actor=actor,
            organisation=declared.organisation if declared else "",
            project=project,
            site=site_of(self.books, payload),
            causation=causation,
            payload=payload,
            labels=labels or {},
        )
        fold_all(self.books, event)
        self.events.append(event)
        return event

    @property
    def is_empty(self) -> bool:
        """Whether a commit would write nothing."""
        return not (self.events or self.receipts or self.checkpoints)


def site_of(books: Books, payload: Payload) -> str:
    """Return the site an event happens at, empty for those of no one place."""
    schedule = books.schedule
    match payload:
        case TaskObserved(step=step):
            task = schedule.steps.get(step)
            node = task.node if task is not None else None
        case AttemptPlaced(tasks=tasks):
            node = tasks[0].node if tasks else None
        case AttemptStopDecided(attempt=attempt):
            row = schedule.attempts.get(attempt)
            node = row.tasks[0].node if row is not None and row.tasks else None
        case IntervalMetered(node=named) | NodeLeft(node=named):
            node = named
        case NodeHealthObserved(node=named) | NodeChecked(node=named) | NodeJudged(node=named):
            node = named
        case NodeReachabilityChanged(node=named):
            node = named
        case NodeJoined(pool=pool):
            declared = schedule.declared.pools.get(pool)
            site = schedule.declared.site_of(declared.zone) if declared is not None else None
            return site.name if site is not None else ""
        case _:
            return ""
    site = schedule.site_of_node(node) if node is not None else None
    return site.name if site is not None else ""

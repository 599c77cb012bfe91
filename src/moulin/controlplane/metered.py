"""What metering keeps between intervals, and what can be read off it; `cursors` folds it.

Changes nothing and reads no counter: an interval that an event states gives the same readings live
and in a replay.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from moulin.domain.events import (
    IntervalMetered,
)
from moulin.domain.factory import Site
from moulin.domain.ids import (
    AttemptId,
    NodeId,
    OrganisationId,
    ProjectId,
    StepId,
    WorkloadId,
)
from moulin.domain.observation import NodeCapacity
from moulin.domain.snapshot import JournalRecord
from moulin.domain.usage import NodeAllocation, NodeReading, TaskReading, Usage
from moulin.domain.workload import Submission, WorkloadKind
from moulin.metering import (
    AttemptFacts,
    OpenMetering,
)

SiteOf = Callable[[str], Site | None]


UNKNOWN_SITE: Final = Site(name="unknown", country="")


@dataclass(slots=True)
class NodeCursor:
    """A node is metered until `until_ns`, when its own counter stood at `cpu_ns`.

    `is_based` is False while that counter is not known. A node that `has_left` stays until its
    tasks are metered. `ended` counts tasks that ended since.
    """

    capacity: NodeCapacity
    until_ns: int
    zone: str
    cpu_ns: int = 0
    is_based: bool = False
    has_left: bool = False
    steps: set[StepId] = field(default_factory=set)
    ended: int = 0


@dataclass(slots=True)
class StepCursor:
    """A task with what it holds and how far it is metered; `ended_ns` 0 while it may still run.

    `started_ns` is 0 until an engine was seen to have it.
    """

    attempt: AttemptId
    node: NodeId
    cpu_milli: int
    memory_bytes: int
    accelerators: int
    started_ns: int = 0
    ended_ns: int = 0
    until_ns: int = 0
    cpu_ns: int = 0
    cpu_ns_final: int = 0
    memory_bytes_max: int = 0


@dataclass(slots=True)
class AttemptCursor:
    """Where an attempt runs, what it serves, how many of its tasks are not metered to their end."""

    workload: WorkloadId
    zone: str
    steps_open: int
    subject: str = ""
    model_digest: str = ""
    policy_decision: str = ""


@dataclass(slots=True)
class Admission:
    """What metering keeps of an admitted workload while it can still be metered.

    `attempts` are those whose facts are kept, `unmetered` those of them that are not metered to
    their end, `uncharged` the usages that are metered, or will be when an interval of a replica
    closes, and not charged. `by_revision` has the decision and the digest of each spec that an
    endpoint ever had, once it has had two.
    """

    submission: Submission
    policy_decision: str
    model_digest: str
    attempts: int = 0
    unmetered: int = 0
    uncharged: int = 0
    is_finished: bool = False
    by_revision: dict[int, tuple[str, str]] = field(default_factory=dict)

    @property
    def is_endpoint(self) -> bool:
        """Whether requests use its replicas."""
        return self.submission.spec.kind is WorkloadKind.ENDPOINT

    @property
    def is_settled(self) -> bool:
        """Whether it is over and everything it used is charged."""
        return self.is_finished and not (self.unmetered or self.uncharged)


@dataclass(slots=True)
class Cursors:
    """Everything that metering continues from; `crowded` nodes are metered before their time.

    `owed` are jobs' usages that are metered and not charged, by id, oldest first. `retired` are
    replicas metered to their end, oldest first. `settled` are workloads that the last
    event settled, for whoever folds it to take out. `charged_lines` has, per batch, a bit for each
    line that is charged, until the batch is forgotten.
    """

    nodes: dict[NodeId, NodeCursor] = field(default_factory=dict)
    steps: dict[StepId, StepCursor] = field(default_factory=dict)
    attempts: dict[AttemptId, AttemptCursor] = field(default_factory=dict)
    admissions: dict[WorkloadId, Admission] = field(default_factory=dict)
    retired: dict[AttemptId, None] = field(default_factory=dict)
    crowded: dict[NodeId, None] = field(default_factory=dict)
    begun: dict[str, JournalRecord] = field(default_factory=dict)
    owed: dict[str, Usage] = field(default_factory=dict)
    open: OpenMetering = field(default_factory=OpenMetering)
    settled: list[WorkloadId] = field(default_factory=list)
    charged_lines: dict[str, int] = field(default_factory=dict)

    def admission_of(self, attempt: AttemptId) -> Admission:
        """Return the admission of an attempt that is not metered to its end."""
        return self.admissions[self.attempts[attempt].workload]


class Facts(Mapping[AttemptId, AttemptFacts]):
    """The facts of attempts as the log has them, made on demand.

    An attempt that is forgotten, or that a request never reached, ran in no known place: whoever
    used it is charged all the same.
    """

    def __init__(self, cursors: Cursors, site_of: SiteOf) -> None:
        self._cursors = cursors
        self._site_of = site_of

    def __getitem__(self, attempt: AttemptId) -> AttemptFacts:
        known = self._cursors.attempts.get(attempt)
        if known is None:
            return _unknown_place(attempt)
        admission = self._cursors.admissions[known.workload]
        submission = admission.submission
        return AttemptFacts(
            attempt=attempt,
            workload=submission.id,
            organisation=submission.organisation,
            project=submission.project,
            zone=known.zone,
            site=self._site_of(known.zone) or UNKNOWN_SITE,
            subject=known.subject,
            model_digest=known.model_digest,
            policy_decision=known.policy_decision,
            has_ended=known.steps_open == 0,
        )

    def __contains__(self, attempt: object) -> bool:
        return True  # also those of which nothing is known

    def __iter__(self) -> Iterator[AttemptId]:
        return iter(self._cursors.attempts)

    def __len__(self) -> int:
        return len(self._cursors.attempts)


def readings_of(
    cursors: Cursors,
    window_ns: tuple[int, int],
    task_cpu_ns: Mapping[str, int],
    unread: Collection[str] = (),
) -> Iterator[TaskReading]:
    """Yield what tasks held and used in a window, from their cumulative counters at its end.

    A task that is not known, or metered to its end, has no reading. The counters of those `unread`
    are the last known ones.
    """
    missed = frozenset(unread)
    for name, cpu_ns in task_cpu_ns.items():
        step = StepId(name)
        cursor = cursors.steps.get(step)
        if cursor is not None:
            admission = cursors.admission_of(cursor.attempt)
            is_unread = name in missed
            yield _reading(step, cursor, admission, window_ns, cpu_ns, is_unread=is_unread)


def _reading(
    step: StepId,
    cursor: StepCursor,
    admission: Admission,
    window_ns: tuple[int, int],
    cpu_ns: int,
    *,
    is_unread: bool,
) -> TaskReading:
    submission = admission.submission
    start_ns, end_ns = held_window(cursor, window_ns)
    return TaskReading(
        step=step,
        attempt=cursor.attempt,
        workload=submission.id,
        organisation=submission.organisation,
        project=submission.project,
        start_ns=start_ns,
        end_ns=end_ns,
        cpu_ns=max(0, cpu_ns - cursor.cpu_ns),
        cpu_milli=cursor.cpu_milli,
        memory_bytes=cursor.memory_bytes,
        accelerators=cursor.accelerators,
        is_unread=is_unread,
        is_whole_node=submission.spec.kind is WorkloadKind.LEASE,
        memory_bytes_max=cursor.memory_bytes_max,
    )


def held_window(cursor: StepCursor, window_ns: tuple[int, int]) -> tuple[int, int]:
    """Return what of a task's life is metered with a window; never less than nothing.

    A start that became known after its interval was closed is made up for: what a task held
    is counted from where it was last metered.
    """
    start_ns = min(max(cursor.until_ns, cursor.started_ns), window_ns[1])
    end_ns = min(window_ns[1], cursor.ended_ns) if cursor.ended_ns else window_ns[1]
    return start_ns, max(start_ns, end_ns)


def allocation_of(metered: IntervalMetered, cursor: NodeCursor) -> NodeAllocation:
    """Return the allocation that an event states."""
    return NodeAllocation(
        reading=NodeReading(
            node=metered.node,
            zone=cursor.zone,
            start_ns=metered.start_ns,
            end_ns=metered.end_ns,
            cpu_ns=max(0, metered.node_cpu_ns - cursor.cpu_ns),
            cpu_milli=cursor.capacity.cpu_milli,
            energy_mj=metered.energy_mj,
            idle_mj=metered.idle_mj,
            method=metered.method,
            quality=metered.quality,
            uncertainty_ppm=metered.uncertainty_ppm,
        ),
        task_mj={StepId(s): mj for s, mj in metered.task_energy_mj.items()},
        idle_mj=metered.idle_mj,
        unattributed_mj=metered.unattributed_mj,
        overhead_mj=metered.overhead_mj,
        task_overhead_mj={StepId(s): mj for s, mj in metered.task_overhead_mj.items()},
        task_standing_mj={StepId(s): mj for s, mj in metered.task_standing_mj.items()},
    )


def _unknown_place(attempt: AttemptId) -> AttemptFacts:
    return AttemptFacts(
        attempt=attempt,
        workload=WorkloadId(attempt.partition(".")[0]),
        organisation=OrganisationId(""),
        project=ProjectId(""),
        zone="",
        site=UNKNOWN_SITE,
    )

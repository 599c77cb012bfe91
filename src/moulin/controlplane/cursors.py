"""How far each node and task is metered, folded from the log, so that no crash loses a reading.

The meter stage reads counters and drafts `IntervalMetered`; this fold turns the same events back
into what is still open: counters to subtract next time, and replica intervals not yet final.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from moulin.domain.events import (
    AttemptPlaced,
    Event,
    IntervalMetered,
    JournalRecorded,
    MeteringClosed,
    NodeJoined,
    NodeLeft,
    TaskObserved,
    WorkloadSubmitted,
)
from moulin.domain.factory import Site
from moulin.domain.ids import AttemptId, NodeId, OrganisationId, ProjectId, StepId, step_id
from moulin.domain.observation import TaskPhase
from moulin.domain.snapshot import JournalKind, JournalRecord
from moulin.domain.usage import NodeAllocation, NodeReading, RequestUsage, TaskReading
from moulin.domain.workload import Submission, WorkloadKind
from moulin.energy import SHARE_METHOD, carbon, share_requests
from moulin.metering import (
    AttemptFacts,
    Closing,
    MeteringRules,
    OpenMetering,
    RequestBegun,
    absorb,
    close_intervals,
    replica_intervals,
)
from moulin.scheduler import State

ENDED: Final = frozenset({TaskPhase.EXITED, TaskPhase.GONE, TaskPhase.ABSENT})
RULES: Final = MeteringRules(
    share=share_requests, share_method=SHARE_METHOD, carbon=carbon, deadline_ns=600 * 10**9
)
# Ended tasks after which a node's interval is closed early, so that no cycle meters a thousand.
CROWDED: Final = 25
SiteOf = Callable[[str], Site | None]


@dataclass(slots=True)
class NodeCursor:
    """A node is metered until `until_ns`, when its own counter stood at `cpu_ns`.

    `is_based` is False until a first counter was read. `ended` counts tasks that ended since.
    """

    until_ns: int
    zone: str
    cpu_milli: int
    cpu_ns: int = 0
    is_based: bool = False
    steps: set[StepId] = field(default_factory=set)
    ended: int = 0


@dataclass(slots=True)
class StepCursor:
    """A task with what of it is not metered yet; `ended_ns` 0 while it may still run."""

    attempt: AttemptId
    node: NodeId
    started_ns: int = 0
    ended_ns: int = 0
    cpu_ns: int = 0
    cpu_ns_final: int = 0


@dataclass(slots=True)
class Admission:
    """What metering keeps of an admitted workload."""

    submission: Submission
    policy_decision: str
    model_digest: str


@dataclass(slots=True)
class Cursors:
    """Everything that metering continues from; `crowded` nodes are metered before their time."""

    nodes: dict[NodeId, NodeCursor] = field(default_factory=dict)
    steps: dict[StepId, StepCursor] = field(default_factory=dict)
    zone_by_attempt: dict[AttemptId, str] = field(default_factory=dict)
    workload_by_attempt: dict[AttemptId, str] = field(default_factory=dict)
    admissions: dict[str, Admission] = field(default_factory=dict)
    crowded: dict[NodeId, None] = field(default_factory=dict)
    begun: dict[str, JournalRecord] = field(default_factory=dict)
    open: OpenMetering = field(default_factory=OpenMetering)


class Facts(Mapping[AttemptId, AttemptFacts]):
    """The facts of attempts as the log has them, made on demand."""

    def __init__(self, cursors: Cursors, site_of: SiteOf) -> None:
        self._cursors = cursors
        self._site_of = site_of

    def __getitem__(self, attempt: AttemptId) -> AttemptFacts:
        workload = self._cursors.workload_by_attempt[attempt]
        admission = self._cursors.admissions[workload]
        submission = admission.submission
        zone = self._cursors.zone_by_attempt[attempt]
        endpoint = submission.spec.endpoint
        return AttemptFacts(
            attempt=attempt,
            workload=submission.id,
            organisation=submission.organisation,
            project=submission.project,
            zone=zone,
            site=self._site_of(zone) or Site(name="unknown", country=""),
            subject=endpoint.model if endpoint else submission.spec.resources.accelerator_class,
            model_digest=admission.model_digest,
            policy_decision=admission.policy_decision,
        )

    def __iter__(self) -> Iterator[AttemptId]:
        return iter(self._cursors.workload_by_attempt)

    def __len__(self) -> int:
        return len(self._cursors.workload_by_attempt)


def fold_cursors(cursors: Cursors, event: Event, schedule: State, site_of: SiteOf) -> None:
    """Apply one event in place; `schedule` has already folded it."""
    payload = event.payload
    match payload:
        case TaskObserved():
            _observe(cursors, payload)
        case AttemptPlaced():
            _place(cursors, payload, schedule)
        case WorkloadSubmitted():
            cursors.admissions[payload.submission.id] = Admission(
                payload.submission, payload.policy_decision, payload.model_digest
            )
        case IntervalMetered():
            _advance(cursors, payload)
        case JournalRecorded():
            _journal(cursors, payload)
        case MeteringClosed():
            close(cursors, payload, site_of)
        case NodeJoined():
            _join(cursors, payload, event.at_ns, schedule)
        case NodeLeft():
            cursors.nodes.pop(payload.node, None)
            cursors.crowded.pop(payload.node, None)
        case _:
            pass


def close(cursors: Cursors, closed: MeteringClosed, site_of: SiteOf) -> Closing:
    """Close what is final, keep the rest, and return what became final.

    The same event gives the same result live and in a replay.
    """
    closing = close_intervals(
        cursors.open,
        closed.now_ns,
        journal_until_ns=closed.journal_until_ns,
        facts=Facts(cursors, site_of),
        rules=RULES,
    )
    cursors.open = closing.state
    return closing


def task_readings(
    cursors: Cursors, metered: IntervalMetered, *, is_replica: bool
) -> tuple[TaskReading, ...]:
    """Return what jobs (or replicas) held and used in an interval that is not yet folded."""
    readings = []
    for name in sorted(metered.task_cpu_ns):
        step = StepId(name)
        cursor = cursors.steps[step]
        admission = cursors.admissions[cursors.workload_by_attempt[cursor.attempt]]
        if (admission.submission.spec.kind is WorkloadKind.ENDPOINT) is not is_replica:
            continue
        reading = reading_of(
            step, cursor, admission, (metered.start_ns, metered.end_ns), metered.task_cpu_ns[name]
        )
        readings.append(reading)
    return tuple(readings)


def reading_of(
    step: StepId,
    cursor: StepCursor,
    admission: Admission,
    window_ns: tuple[int, int],
    cpu_ns: int,
) -> TaskReading:
    """Return one task's reading in a window, from its cumulative counter `cpu_ns` at the end."""
    submission = admission.submission
    start_ns, end_ns = held_window(cursor, window_ns)
    resources = submission.spec.resources
    return TaskReading(
        step=step,
        attempt=cursor.attempt,
        workload=submission.id,
        organisation=submission.organisation,
        project=submission.project,
        start_ns=start_ns,
        end_ns=end_ns,
        cpu_ns=max(0, cpu_ns - cursor.cpu_ns),
        cpu_milli=resources.cpu_milli,
        memory_bytes=resources.memory_bytes,
        accelerators=resources.accelerators,
    )


def held_window(cursor: StepCursor, window_ns: tuple[int, int]) -> tuple[int, int]:
    """Clip a task's life to a window; never an interval that ends before it starts."""
    start_ns = min(max(window_ns[0], cursor.started_ns), window_ns[1])
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
            cpu_milli=cursor.cpu_milli,
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


def _join(cursors: Cursors, joined: NodeJoined, at_ns: int, schedule: State) -> None:
    capacity = joined.capacity
    known = cursors.nodes.get(capacity.node)
    zone = schedule.zone_of_node(capacity.node)
    if known is None:
        cursors.nodes[capacity.node] = NodeCursor(at_ns, zone, capacity.cpu_milli)
        return
    known.zone = zone
    known.cpu_milli = capacity.cpu_milli


def _place(cursors: Cursors, placed: AttemptPlaced, schedule: State) -> None:
    cursors.workload_by_attempt[placed.attempt] = placed.workload
    for task in placed.tasks:
        step = step_id(placed.attempt, task.rank)
        cursors.zone_by_attempt[placed.attempt] = schedule.zone_of_node(task.node)
        cursors.steps[step] = StepCursor(placed.attempt, task.node)
        cursors.nodes[task.node].steps.add(step)


def _observe(cursors: Cursors, seen: TaskObserved) -> None:
    cursor = cursors.steps.get(seen.step)
    if cursor is None:
        return
    if not cursor.started_ns:
        cursor.started_ns = seen.started_at_ns or seen.observed_at_ns
    if seen.phase in ENDED and not cursor.ended_ns:
        cursor.ended_ns = max(seen.ended_at_ns or seen.observed_at_ns, cursor.started_ns)
        cursor.cpu_ns_final = seen.cpu_ns
        node = cursors.nodes.get(cursor.node)
        if node is not None:
            node.ended += 1
            if node.ended >= CROWDED:
                cursors.crowded[cursor.node] = None


def _advance(cursors: Cursors, metered: IntervalMetered) -> None:
    node = cursors.nodes[metered.node]
    replicas = task_readings(cursors, metered, is_replica=True)
    if replicas:
        cursors.open = absorb(
            cursors.open, intervals=replica_intervals(allocation_of(metered, node), replicas)
        )
    for name, cpu_ns in metered.task_cpu_ns.items():
        step = StepId(name)
        cursor = cursors.steps[step]
        cursor.cpu_ns = max(cursor.cpu_ns, cpu_ns)
        if cursor.ended_ns and cursor.ended_ns <= metered.end_ns:
            del cursors.steps[step]
            node.steps.discard(step)
    node.until_ns = metered.end_ns
    node.cpu_ns = metered.node_cpu_ns
    node.is_based = True
    node.ended = 0
    cursors.crowded.pop(metered.node, None)


def _journal(cursors: Cursors, recorded: JournalRecorded) -> None:
    begun: list[RequestBegun] = []
    settled: list[RequestUsage] = []
    for record in recorded.records:
        if record.kind is JournalKind.BEGIN:
            cursors.begun[record.request] = record
            begun.append(
                RequestBegun(
                    request=record.request,
                    begun_ns=record.at_ns,
                    replica=AttemptId(record.replica),
                )
            )
        else:
            settled.extend(_settled(cursors, record))
    cursors.open = absorb(cursors.open, begun=begun, settled=settled)


def _settled(cursors: Cursors, end: JournalRecord) -> list[RequestUsage]:
    begin = cursors.begun.pop(end.request, None)
    if begin is None:
        return []
    replica = AttemptId(end.replica or begin.replica)
    return [
        RequestUsage(
            request=end.request,
            organisation=OrganisationId(begin.organisation),
            project=ProjectId(begin.project),
            key=begin.key,
            model=begin.model,
            replica=replica,
            zone=end.zone or begin.zone,
            start_ns=begin.at_ns,
            end_ns=max(end.at_ns, begin.at_ns),
            tokens_input=end.tokens_input,
            tokens_output=end.tokens_output,
            outcome=end.outcome,
            is_estimated=end.is_estimated,
        )
    ]

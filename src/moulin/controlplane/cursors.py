"""How far each node and task is metered, folded from the log, so that no crash loses a reading.

The meter stage reads counters and drafts `IntervalMetered`; this fold turns the same events back
into what is still open: counters to subtract next time, and replica intervals not yet final.
What is metered to its end is forgotten, so that memory does not grow with the log.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from moulin.domain.events import (
    AttemptPlaced,
    EndpointRolledOut,
    Event,
    FactoryApplied,
    IntervalMetered,
    JournalRecorded,
    MeteringClosed,
    NodeJoined,
    NodeLeft,
    ObjectDeleted,
    TaskObserved,
    UsagesCharged,
    WorkloadFinished,
    WorkloadSubmitted,
)
from moulin.domain.factory import Site
from moulin.domain.ids import (
    AttemptId,
    NodeId,
    OrganisationId,
    ProjectId,
    StepId,
    WorkloadId,
    step_id,
)
from moulin.domain.observation import SEEN_PHASES, NodeCapacity
from moulin.domain.snapshot import JournalKind, JournalRecord
from moulin.domain.usage import NodeAllocation, NodeReading, RequestUsage, TaskReading, Usage
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
    job_usages,
    replica_intervals,
)
from moulin.scheduler import State

RULES: Final = MeteringRules(
    share=share_requests, share_method=SHARE_METHOD, carbon=carbon, deadline_ns=600 * 10**9
)
# Ended tasks after which a node's interval is closed early, so that no cycle meters a thousand.
CROWDED: Final = 100
# Ended replicas whose facts are kept for requests that a gateway tells of late.
RETIRED_KEPT: Final = 1000
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


def fold_cursors(cursors: Cursors, event: Event, schedule: State, site_of: SiteOf) -> None:
    """Apply one event in place; `schedule` has already folded it."""
    payload = event.payload
    match payload:
        case TaskObserved():
            _observe(cursors, payload, schedule)
        case AttemptPlaced():
            _place(cursors, payload, schedule)
        case WorkloadSubmitted():
            cursors.admissions[payload.submission.id] = Admission(
                payload.submission, payload.policy_decision, payload.model_digest
            )
        case WorkloadFinished():
            _finish(cursors, payload.workload)
        case IntervalMetered():
            _advance(cursors, payload, site_of)
        case UsagesCharged():
            _charge(cursors, payload)
        case JournalRecorded():
            _journal(cursors, payload)
        case MeteringClosed():
            close(cursors, payload, site_of)
        case ObjectDeleted(cause="expired"):  # long enough after its end for every journal
            cursors.charged_lines.pop(payload.object, None)
        case _:
            _fold_nodes(cursors, event, schedule)


def _fold_nodes(cursors: Cursors, event: Event, schedule: State) -> None:
    match event.payload:
        case EndpointRolledOut() as rolled:
            _roll_out(cursors, rolled, schedule)
        case NodeJoined() as joined:
            _join(cursors, joined, event.at_ns, schedule)
        case NodeLeft(node=node):
            _leave(cursors, node)
        case FactoryApplied():
            for name, cursor in cursors.nodes.items():
                cursor.zone = schedule.zone_of_node(name) or cursor.zone
        case _:
            pass


def _roll_out(cursors: Cursors, rolled: EndpointRolledOut, schedule: State) -> None:
    admission = cursors.admissions.get(rolled.workload)
    row = schedule.workloads.get(rolled.workload)
    if admission is None or row is None or row.serving is None:
        return
    known = (admission.policy_decision, admission.model_digest)
    admission.by_revision.setdefault(row.serving.before, known)
    admission.by_revision[rolled.revision] = (rolled.policy_decision, rolled.model_digest)
    admission.submission = row.submission
    admission.policy_decision = rolled.policy_decision
    admission.model_digest = rolled.model_digest


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
        cursor = cursors.steps.get(step)
        if cursor is None:
            continue
        admission = cursors.admission_of(cursor.attempt)
        if admission.is_endpoint is not is_replica:
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


def _join(cursors: Cursors, joined: NodeJoined, at_ns: int, schedule: State) -> None:
    capacity = joined.capacity
    known = cursors.nodes.get(capacity.node)
    zone = schedule.zone_of_node(capacity.node)
    if known is None:
        cursors.nodes[capacity.node] = NodeCursor(capacity, at_ns, zone)
        return
    known.capacity, known.zone, known.has_left = capacity, zone, False
    for step in sorted(known.steps - schedule.steps.keys()):
        _end(cursors, step, at_ns, 0)  # a changed boot id ended them, and no engine will say so


def _leave(cursors: Cursors, node: NodeId) -> None:
    cursor = cursors.nodes.get(node)
    if cursor is None:
        return
    cursor.has_left = True
    _drop_if_empty(cursors, node)


def _place(cursors: Cursors, placed: AttemptPlaced, schedule: State) -> None:
    if placed.attempt not in schedule.attempts or placed.attempt in cursors.attempts:
        return  # the schedule did not take it either
    for task in placed.tasks:
        step = step_id(placed.attempt, task.rank)
        held = schedule.steps[step]
        cursors.steps[step] = StepCursor(
            placed.attempt, task.node, held.cpu_milli, held.memory_bytes, len(held.devices)
        )
        cursors.nodes[task.node].steps.add(step)
    zone = schedule.zone_of_node(placed.tasks[0].node)  # a gang never spans two
    admission = cursors.admissions[placed.workload]
    row = schedule.workloads[placed.workload]
    unit = row.units[placed.unit]
    spec = row.spec_of(unit)
    known = (admission.policy_decision, admission.model_digest)
    decision, digest = admission.by_revision.get(unit.revision, known)
    # An endpoint's spec may change; what a replica serves is what it was placed for.
    cursors.attempts[placed.attempt] = AttemptCursor(
        placed.workload,
        zone,
        len(placed.tasks),
        subject=spec.endpoint.model if spec.endpoint else spec.resources.accelerator_class,
        model_digest=digest,
        policy_decision=decision,
    )
    admission.attempts += 1
    admission.unmetered += 1


def _observe(cursors: Cursors, seen: TaskObserved, schedule: State) -> None:
    cursor = cursors.steps.get(seen.step)
    if cursor is None:
        return
    if not cursor.started_ns and (seen.phase in SEEN_PHASES or seen.started_at_ns):
        cursor.started_ns = seen.started_at_ns or seen.observed_at_ns
    if seen.step not in schedule.steps:
        _end(cursors, seen.step, seen.ended_at_ns or seen.observed_at_ns, seen.cpu_ns)


def _end(cursors: Cursors, step: StepId, at_ns: int, cpu_ns: int) -> None:
    """Take over the proved end of a task; one that never started held nothing to meter."""
    cursor = cursors.steps[step]
    if cursor.ended_ns:
        return
    if not (cursor.started_ns or cpu_ns):
        _drop(cursors, step, cursor)
        _drop_if_empty(cursors, cursor.node)
        return
    cursor.ended_ns = max(at_ns, cursor.started_ns)
    cursor.started_ns = cursor.started_ns or cursor.ended_ns
    cursor.cpu_ns_final = cpu_ns
    node = cursors.nodes[cursor.node]
    node.ended += 1
    if node.ended >= CROWDED:
        cursors.crowded[cursor.node] = None


def _advance(cursors: Cursors, metered: IntervalMetered, site_of: SiteOf) -> None:
    node = cursors.nodes[metered.node]
    replicas = task_readings(cursors, metered, is_replica=True)
    if replicas:
        intervals = replica_intervals(allocation_of(metered, node), replicas)
        for interval in intervals:
            cursors.admission_of(interval.replica).uncharged += 1
        cursors.open = absorb(cursors.open, intervals=intervals)
    _owe(cursors, metered, site_of)
    node.until_ns = metered.end_ns
    node.is_based = metered.node_cpu_ns >= 0
    if node.is_based:
        node.cpu_ns = metered.node_cpu_ns
    node.ended = 0
    cursors.crowded.pop(metered.node, None)
    for name, cpu_ns in metered.task_cpu_ns.items():
        step = StepId(name)
        cursor = cursors.steps.get(step)
        if cursor is None:
            continue  # a log of an earlier version names tasks that never started
        cursor.cpu_ns = max(cursor.cpu_ns, cpu_ns)
        cursor.until_ns = metered.end_ns
        if cursor.ended_ns and cursor.ended_ns <= metered.end_ns:
            _drop(cursors, step, cursor)
    _drop_if_empty(cursors, metered.node)


def _owe(cursors: Cursors, metered: IntervalMetered, site_of: SiteOf) -> None:
    """Keep what jobs used in an interval until it is charged: one usage an attempt."""
    readings = task_readings(cursors, metered, is_replica=False)
    if not readings:
        return
    allocation = allocation_of(metered, cursors.nodes[metered.node])
    for usage in job_usages(allocation, readings, Facts(cursors, site_of), carbon):
        if usage.quantities or usage.energy_mj:
            cursors.owed[usage.id] = usage
            cursors.admissions[usage.workload].uncharged += 1


def _charge(cursors: Cursors, charged: UsagesCharged) -> None:
    for item in charged.items:
        cursors.owed.pop(item.usage, None)
        workload = WorkloadId(item.workload)
        admission = None if item.is_from_grant else cursors.admissions.get(workload)
        if admission is not None and admission.uncharged:
            admission.uncharged -= 1
            _settle(cursors, workload, admission)


def _drop(cursors: Cursors, step: StepId, cursor: StepCursor) -> None:
    """Forget a task that is metered to its end."""
    del cursors.steps[step]
    cursors.nodes[cursor.node].steps.discard(step)
    _complete(cursors, cursor.attempt)


def _drop_if_empty(cursors: Cursors, node: NodeId) -> None:
    """Forget a node that has left with its last task."""
    cursor = cursors.nodes[node]
    if cursor.has_left and not cursor.steps:
        del cursors.nodes[node]
        cursors.crowded.pop(node, None)


def _complete(cursors: Cursors, attempt: AttemptId) -> None:
    """Forget an attempt with its last task; a replica's requests may still be told of."""
    known = cursors.attempts[attempt]
    known.steps_open -= 1
    if known.steps_open:
        return
    admission = cursors.admissions[known.workload]
    admission.unmetered -= 1
    if not admission.is_endpoint:
        _forget(cursors, attempt)
        return
    _settle(cursors, known.workload, admission)
    cursors.retired[attempt] = None
    if len(cursors.retired) > RETIRED_KEPT:
        oldest = next(iter(cursors.retired))
        if all(interval.replica != oldest for interval in cursors.open.intervals):
            del cursors.retired[oldest]
            _forget(cursors, oldest)
            closed = cursors.open.closed_until_ns
            kept = {key: until_ns for key, until_ns in closed.items() if key[0] != oldest}
            cursors.open = replace(cursors.open, closed_until_ns=kept)


def _forget(cursors: Cursors, attempt: AttemptId) -> None:
    workload = cursors.attempts.pop(attempt).workload
    admission = cursors.admissions[workload]
    admission.attempts -= 1
    _settle(cursors, workload, admission)


def _finish(cursors: Cursors, workload: WorkloadId) -> None:
    admission = cursors.admissions.get(workload)
    if admission is not None:
        admission.is_finished = True
        _settle(cursors, workload, admission)


def _settle(cursors: Cursors, workload: WorkloadId, admission: Admission) -> None:
    """Name a workload of which nothing is left to charge; forget it with its last attempt."""
    if not admission.is_settled:
        return
    cursors.settled.append(workload)
    if not admission.attempts:
        del cursors.admissions[workload]


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


def _is_repeated(cursors: Cursors, line: str, end: JournalRecord) -> bool:
    """Say whether a line of a batch was charged before; remember one that is charged now."""
    batch, _, index = line.rpartition(".")
    if not batch or not (end.tokens_input or end.tokens_output or end.amount_neur):
        return False
    bit = 1 << int(index)
    charged = cursors.charged_lines.get(batch, 0)
    cursors.charged_lines[batch] = charged | bit
    return bool(charged & bit)


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
            audio_ms=end.audio_ms,
            characters_input=end.characters_input,
            line=begin.line,
            is_repeated=_is_repeated(cursors, begin.line, end),
        )
    ]

"""How far each node and task is metered, folded from the log, so that no crash loses a reading.

The meter stage reads counters and drafts `IntervalMetered`; this fold turns the same events back
into what is still open: counters to subtract next time, and replica intervals not yet final.
What is metered to its end is forgotten, so that memory does not grow with the log.
"""

from dataclasses import replace
from typing import Final

from moulin.controlplane.metered import (
    Admission,
    AttemptCursor,
    Cursors,
    Facts,
    NodeCursor,
    SiteOf,
    StepCursor,
    allocation_of,
    readings_of,
)
from moulin.domain.events import (
    AttemptPlaced,
    EndpointRolledOut,
    Event,
    FactoryApplied,
    IntervalMetered,
    MeteringClosed,
    NodeJoined,
    NodeLeft,
    ObjectDeleted,
    TaskObserved,
    UsagesCharged,
    WorkloadFinished,
    WorkloadSubmitted,
)
from moulin.domain.gateway_events import JournalRecorded
from moulin.domain.ids import (
    AttemptId,
    NodeId,
    OrganisationId,
    ProjectId,
    StepId,
    WorkloadId,
    step_id,
)
from moulin.domain.observation import SEEN_PHASES
from moulin.domain.snapshot import JournalKind, JournalRecord
from moulin.domain.usage import RequestUsage
from moulin.energy import SHARE_METHOD, carbon, share_requests
from moulin.metering import (
    Closing,
    MeteringRules,
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


def _join(cursors: Cursors, joined: NodeJoined, at_ns: int, schedule: State) -> None:
    capacity = joined.capacity
    if capacity.is_watched_only:
        return  # what stands for its room is metered
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
    spec, resources = row.spec_of(unit), row.resources_of(schedule.attempts[placed.attempt])
    known = (admission.policy_decision, admission.model_digest)
    decision, digest = admission.by_revision.get(unit.revision, known)
    # An endpoint's spec may change; what a replica serves is what it was placed for.
    cursors.attempts[placed.attempt] = AttemptCursor(
        placed.workload,
        zone,
        len(placed.tasks),
        subject=spec.endpoint.model if spec.endpoint else resources.accelerator_class,
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
    cursor.memory_bytes_max = max(cursor.memory_bytes_max, seen.memory_bytes_max)
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
    _account(cursors, metered, site_of)
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


def _account(cursors: Cursors, metered: IntervalMetered, site_of: SiteOf) -> None:
    """Keep what an interval leaves to be charged: replicas' parts open, jobs' usages as owed."""
    counters = dict(sorted(metered.task_cpu_ns.items()))
    window_ns = (metered.start_ns, metered.end_ns)
    readings = tuple(readings_of(cursors, window_ns, counters, metered.task_unread))
    if not readings:
        return
    allocation = allocation_of(metered, cursors.nodes[metered.node])
    replicas = tuple(each for each in readings if cursors.admissions[each.workload].is_endpoint)
    if replicas:
        intervals = replica_intervals(allocation, replicas)
        for interval in intervals:
            cursors.admission_of(interval.replica).uncharged += 1
        cursors.open = absorb(cursors.open, intervals=intervals)
    jobs = tuple(each for each in readings if not cursors.admissions[each.workload].is_endpoint)
    for usage in job_usages(allocation, jobs, Facts(cursors, site_of), carbon):
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
            model=end.model or begin.model,  # another model may have served in its place
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
            user=begin.user,
        )
    ]

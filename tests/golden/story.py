"""The events of the golden logs of schema 1, and the program that wrote them to `logs/`.

`python -m tests.golden.story` writes the files that are missing. A file is never written again once
it was released: an old log must still fold, whatever the classes look like by then.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import orjson

from moulin.domain.event_wire import encode_event
from moulin.domain.events import (
    AttemptDrainDecided,
    AttemptPlaced,
    AttemptStopDecided,
    ChargedUsage,
    CycleDecided,
    DrainConfirmed,
    EndpointRolledOut,
    EpochOpened,
    Event,
    FactoryApplied,
    IntervalMetered,
    KeyRevoked,
    LicenceAccepted,
    LoadReported,
    MeteringClosed,
    NodeJoined,
    NodeLeft,
    NodeReachabilityChanged,
    ObjectChange,
    Payload,
    ReplicasDecided,
    TaskObserved,
    TasksForgotten,
    UnitRequeued,
    UsagesCharged,
    WorkloadFinished,
    WorkloadRefused,
    WorkloadScaled,
    WorkloadStopRequested,
    WorkloadSubmitted,
)
from moulin.domain.factory import (
    EnergyClass,
    ObjectKind,
)
from moulin.domain.gateway_events import (
    GatewayEpochClosed,
    GatewayEpochOpened,
    GrantIssued,
    GrantReturned,
    JournalRecorded,
)
from moulin.domain.ids import (
    AttemptId,
    WorkloadId,
    attempt_id,
    make_id,
    step_id,
)
from moulin.domain.observation import Claim, TaskPhase
from moulin.domain.plan import StopCause, TaskPlacement
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.snapshot import EndpointLoad, JournalKind, JournalRecord
from moulin.domain.workload import (
    EndpointSpec,
    Resources,
    Retry,
    Scaling,
    Submission,
    TaskTemplate,
    When,
    Where,
    WorkloadKind,
    WorkloadSpec,
    WorkloadState,
)
from tests.golden import (
    comforts_story,
    limits_story,
    needs_story,
    objects_story,
    secrets_story,
    watched_story,
)
from tests.golden.batch_story import ARRAY, REPORT, TRAIN, batch
from tests.golden.beginning import LAB, NODE, START_NS, UNI, beginning, capacity
from tests.golden.health_story import health, preflight
from tests.golden.lease_story import LEASE, lease
from tests.golden.replica_story import TIMED, replicas, walls

LOGS: Final = Path(__file__).parent / "logs"
SECOND_NS: Final = 1_000_000_000


def workload_id(prefix: str, number: int) -> WorkloadId:
    return WorkloadId(make_id(prefix, START_NS + number * SECOND_NS, number))


JOB, RETRIED = workload_id("job", 1), workload_id("job", 2)
FORBIDDEN, CANCELLED = workload_id("job", 3), workload_id("job", 4)
ENDPOINT = workload_id("end", 5)
# Where each workload stands when all of a log is folded; logs without workloads are not named.
ENDS: Final = {
    "v1_job": {JOB: WorkloadState.SUCCEEDED},
    "v1_endpoint": {ENDPOINT: WorkloadState.CANCELLED},
    "v1_faults": {
        RETRIED: WorkloadState.FAILED,
        FORBIDDEN: WorkloadState.REFUSED,
        CANCELLED: WorkloadState.CANCELLED,
    },
    "v1_retention": {JOB: WorkloadState.SUCCEEDED},
    "v1_scaling": {ENDPOINT: WorkloadState.RUNNING},
    **{name: {TIMED: WorkloadState.RUNNING} for name in ("v1_replicas", "v1_walls")},
    "v1_lease": {LEASE: WorkloadState.SUCCEEDED},
    "v1_needs": needs_story.ENDS,
    "v1_watched": watched_story.ENDS,
    "v1_secrets": {secrets_story.JOB: WorkloadState.ADMITTED},
    "v1_batch": {
        ARRAY: WorkloadState.FAILED,
        REPORT: WorkloadState.PLACED,
        TRAIN: WorkloadState.CANCELLED,
    },
    "v1_comforts": comforts_story.ENDS,
}
# What each log still holds for workloads: tasks that ran and are not metered to their end.
HELD: Final = {
    "v1_endpoint": {ENDPOINT: 0},
    "v1_faults": {RETRIED: 5},
    "v1_scaling": {ENDPOINT: 0},
    **{name: {TIMED: 0} for name in ("v1_replicas", "v1_walls")},
    "v1_lease": {LEASE: 1001},
    "v1_needs": {needs_story.CARRIED: 5},
    "v1_watched": {watched_story.JOB: 3},
    "v1_secrets": {secrets_story.JOB: 7},
    "v1_batch": {ARRAY: 0, REPORT: 0},
    "v1_comforts": dict.fromkeys(comforts_story.ENDS, 0),
}


def logs() -> dict[str, list[Event]]:
    """Return each log's events by its name."""
    stories = {
        "v1_job": [*beginning(), *job()],
        "v1_endpoint": [*beginning(), *endpoint()],
        "v1_faults": [*beginning(), *faults()],
        "v1_retention": [*beginning(), *retention()],
        "v1_scaling": [*beginning(), *scaling()],
        "v1_licence": [*beginning(), *limits_story.licence()],
        "v1_objects": [*beginning(), *objects_story.objects()],
        "v1_limits": [*beginning(), *limits_story.limits()],
        "v1_batch": [*beginning(), *batch()],
        "v1_comforts": [*beginning(), *comforts_story.comforts()],
        "v1_health": [*beginning(), *health()],
        "v1_preflight": [*beginning(), *preflight()],
        "v1_users": [*beginning(), *limits_story.users()],
        "v1_secrets": [*beginning(), *secrets_story.secrets()],
        "v1_replicas": [*beginning(), *replicas()],
        "v1_walls": [*beginning(), *walls()],
        "v1_lease": [*beginning(), *lease()],
        "v1_needs": [*beginning(), *needs_story.needs()],
        "v1_watched": [*beginning(), *watched_story.watched()],
    }
    return {name: numbered(payloads) for name, payloads in stories.items()}


def numbered(payloads: Sequence[Payload]) -> list[Event]:
    """Return the payloads as a log, one second apart; those of a project carry its ids."""
    epoch = 0
    events = []
    for sequence, payload in enumerate(payloads, 1):
        epoch = payload.epoch if isinstance(payload, EpochOpened) else epoch
        event = Event(
            sequence=sequence,
            epoch=epoch,
            at_ns=START_NS + sequence * SECOND_NS,
            actor="controlplane",
            payload=payload,
            site="campus",
            causation=sequence - 1,
        )
        if isinstance(
            payload, WorkloadSubmitted | WorkloadRefused | WorkloadStopRequested | LicenceAccepted
        ):
            event = replace(
                event,
                actor="key_member",
                organisation=UNI,
                project=LAB,
                labels={"request": "req_é"},
            )
        events.append(event)
    return events


def submission(workload: WorkloadId, spec: WorkloadSpec) -> Submission:
    return Submission(
        id=workload,
        organisation=UNI,
        project=LAB,
        spec=spec,
        submitted_by="key_member",
        submitted_at_ns=START_NS,
    )


def job_spec(**changes: object) -> WorkloadSpec:
    values: dict = {
        "kind": WorkloadKind.JOB,
        "name": "briefs",
        "task": TaskTemplate(command=("sh", "-c", "echo été"), setup="true", env={"A": "b"}),
        "where": Where(countries=("FR",), zones=("hall",)),
        "when": When(deadline_s=86_400, is_flexible=True),
        "labels": {"team": "a"},
    }
    return WorkloadSpec(**(values | changes))


def decided(sequence: int) -> CycleDecided:
    return CycleDecided(
        now_ns=START_NS + sequence * SECOND_NS, input_sequence=sequence, plan_digest="ab" * 32
    )


def placed(workload: WorkloadId, generation: int = 1, unit: int = 0) -> AttemptPlaced:
    return AttemptPlaced(
        attempt=attempt_id(workload, unit, generation),
        workload=workload,
        unit=unit,
        generation=generation,
        tasks=(TaskPlacement(rank=0, node=NODE),),
    )


def observed(attempt: AttemptId, phase: TaskPhase, **more: object) -> TaskObserved:
    claim = Claim(handle="h", pid=77, pid_started_ticks=2**40, boot_id="boot-1")
    values: dict = {
        "step": step_id(attempt, 0),
        "phase": phase,
        "observed_at_ns": START_NS + 60 * SECOND_NS,
        "claim": claim,
        "started_at_ns": START_NS + 30 * SECOND_NS,
    }
    return TaskObserved(**(values | more))


def metered(attempt: AttemptId) -> IntervalMetered:
    step = step_id(attempt, 0)
    return IntervalMetered(
        node=NODE,
        start_ns=START_NS,
        end_ns=START_NS + 60 * SECOND_NS,
        node_cpu_ns=40 * SECOND_NS,
        task_cpu_ns={step: 30 * SECOND_NS},
        task_energy_mj={step: 900_000},
        task_overhead_mj={step: 180_000},
        task_standing_mj={step: 300_000},
        energy_mj=2_200_000,
        idle_mj=1_200_000,
        unattributed_mj=100_000,
        overhead_mj=440_000,
        method="cpu-seconds",
        quality=EnergyClass.SPECIFICATION_MODEL,
        uncertainty_ppm=300_000,
    )


def charged(workload: str, amount_neur: int, *, is_from_grant: bool = False) -> UsagesCharged:
    item = ChargedUsage(
        usage="use_1",
        receipt="rct_1",
        project=LAB,
        workload=workload,
        amount_neur=amount_neur,
        leaf_index=0,
        is_from_grant=is_from_grant,
    )
    return UsagesCharged(origin="factory/1", items=(item,), tree_size=1, root="cd" * 32)


def job() -> list[Payload]:
    """A job from its submission to its charge."""
    attempt = attempt_id(JOB, 0, 1)
    return [
        WorkloadSubmitted(
            submission=submission(JOB, job_spec()), reserved_neur=2**55, policy_decision="allow"
        ),
        decided(5),
        placed(JOB),
        observed(attempt, TaskPhase.RUNNING),
        EpochOpened(epoch=2, boot_id="boot-1", version="0.1.0"),
        observed(
            attempt,
            TaskPhase.EXITED,
            exit_code=0,
            ended_at_ns=START_NS + 55 * SECOND_NS,
            cpu_ns=30 * SECOND_NS,
            memory_bytes_max=2**28,
            evidence="exit status on disk",
        ),
        decided(10),
        WorkloadFinished(workload=JOB, state=WorkloadState.SUCCEEDED),
        metered(attempt),
        MeteringClosed(now_ns=START_NS + 61 * SECOND_NS, journal_until_ns=START_NS),
        charged(JOB, 2**54),
    ]


def endpoint() -> list[Payload]:
    """An endpoint, the requests a gateway served from it, and its end."""
    spec = WorkloadSpec(
        kind=WorkloadKind.ENDPOINT,
        name="chat",
        resources=Resources(cpu_milli=2_000, memory_bytes=2**30),
        endpoint=EndpointSpec(model="smollm2", variant="q8", is_public=True),
    )
    attempt = attempt_id(ENDPOINT, 0, 1)
    begun = JournalRecord(
        sequence=1,
        kind=JournalKind.BEGIN,
        request="req_1",
        at_ns=START_NS + 20 * SECOND_NS,
        organisation=UNI,
        project=LAB,
        key="key_member",
        model="smollm2",
        endpoint=ENDPOINT,
        replica=attempt,
        zone="hall",
        tokens_input=10,
        tokens_output=100,
        amount_neur=500,
    )
    ended = replace(
        begun,
        sequence=2,
        kind=JournalKind.END,
        tokens_output=40,
        amount_neur=200,
        outcome="completed",
    )
    return [
        WorkloadSubmitted(
            submission=submission(ENDPOINT, spec), reserved_neur=0, policy_decision="allow"
        ),
        placed(ENDPOINT),
        observed(attempt, TaskPhase.RUNNING, address="127.0.0.1:9000", is_ready=True),
        GatewayEpochOpened(gateway="gw", gateway_epoch=1),
        GrantIssued(gateway="gw", gateway_epoch=1, project=LAB, amount_neur=1_000),
        JournalRecorded(gateway="gw", gateway_epoch=1, through_sequence=2, records=(begun, ended)),
        MeteringClosed(
            now_ns=START_NS + 30 * SECOND_NS, journal_until_ns=START_NS + 30 * SECOND_NS
        ),
        charged("req_1", 200, is_from_grant=True),
        GrantReturned(gateway="gw", gateway_epoch=1, project=LAB, amount_neur=100),
        GatewayEpochClosed(gateway="gw", gateway_epoch=1, is_journal_lost=True),
        WorkloadScaled(workload=ENDPOINT, replicas=2, by="key_member"),
        WorkloadStopRequested(workload=ENDPOINT, by="key_member"),
        AttemptStopDecided(attempt=attempt, cause=StopCause.CANCELLED, grace_s=10),
        observed(attempt, TaskPhase.EXITED, exit_code=143, ended_at_ns=START_NS + 90 * SECOND_NS),
        WorkloadFinished(
            workload=ENDPOINT,
            state=WorkloadState.CANCELLED,
            reason=Reason(code=ReasonCode.CANCELLED_BY, parameters={"actor": "key_member"}),
        ),
    ]


def faults() -> list[Payload]:
    """A retry, a refusal, a cancellation, a node that comes and goes, a revoked key."""
    lost = Reason(code=ReasonCode.TASK_LOST, parameters={"step": "s", "evidence": "gone"})
    first, second = attempt_id(RETRIED, 0, 1), attempt_id(RETRIED, 0, 2)
    retried = job_spec(retry=Retry(attempts_max=2, backoff_s=5), where=Where())
    return [
        WorkloadSubmitted(
            submission=submission(RETRIED, retried), reserved_neur=5, policy_decision="allow"
        ),
        placed(RETRIED),
        NodeReachabilityChanged(node=NODE, is_reachable=False, evidence="no answer"),
        NodeReachabilityChanged(node=NODE, is_reachable=True),
        NodeJoined(pool="pool", capacity=capacity("boot-2")),
        observed(first, TaskPhase.GONE, evidence="boot id changed"),
        UnitRequeued(
            workload=RETRIED, unit=0, generation=2, not_before_ns=START_NS + 2**34, reason=lost
        ),
        placed(RETRIED, generation=2),
        observed(second, TaskPhase.EXITED, exit_code=1, ended_at_ns=START_NS + 95 * SECOND_NS),
        WorkloadFinished(workload=RETRIED, state=WorkloadState.FAILED, reason=lost),
        WorkloadRefused(
            submission=submission(FORBIDDEN, job_spec(where=Where(countries=("SE",)))),
            reasons=(
                Reason(
                    code=ReasonCode.JURISDICTION_FORBIDS,
                    parameters={"allowed": "SE", "zone": "hall", "country": "FR"},
                ),
            ),
        ),
        WorkloadSubmitted(
            submission=submission(CANCELLED, job_spec()), reserved_neur=5, policy_decision="allow"
        ),
        WorkloadStopRequested(workload=CANCELLED, by="key_member"),
        WorkloadFinished(
            workload=CANCELLED,
            state=WorkloadState.CANCELLED,
            reason=Reason(code=ReasonCode.CANCELLED_BY, parameters={"actor": "key_member"}),
        ),
        KeyRevoked(key="key_member"),
        NodeLeft(node=NODE),
        FactoryApplied(
            managed_by="factory.yaml",
            changes=(ObjectChange(kind=ObjectKind.ZONE, name="annex"),),
        ),
    ]


def retention() -> list[Payload]:
    """A job that ended before anybody knew, and whose logs were kept for no longer than it wanted."""
    attempt = attempt_id(JOB, 0, 1)
    ended_ns = START_NS + 7 * SECOND_NS
    return [
        WorkloadSubmitted(
            submission=submission(JOB, replace(job_spec(), retention_s=0)),
            reserved_neur=0,
            policy_decision="allow",
        ),
        placed(JOB),
        observed(attempt, TaskPhase.EXITED, exit_code=0, ended_at_ns=ended_ns),
        WorkloadFinished(workload=JOB, state=WorkloadState.SUCCEEDED, ended_at_ns=ended_ns),
        metered(attempt),
        charged(JOB, 5),
        TasksForgotten(workloads=(JOB,)),
    ]


def scaling() -> list[Payload]:
    """An endpoint that follows its load, is rolled out and rolled back, and lets replicas go."""
    spec = WorkloadSpec(
        kind=WorkloadKind.ENDPOINT,
        name="chat",
        resources=Resources(cpu_milli=500, memory_bytes=2**28),
        endpoint=EndpointSpec(
            model="smollm2", variant="q8", scaling=Scaling(replicas_max=3), drain_s=60
        ),
    )
    assert spec.endpoint is not None
    rolled = replace(spec, endpoint=replace(spec.endpoint, variant="q4"))
    first, second = attempt_id(ENDPOINT, 0, 1), attempt_id(ENDPOINT, 1, 1)
    ready = {"address": "127.0.0.1:9000", "is_ready": True}
    asks = Reason(code=ReasonCode.LOAD_ASKS, parameters={"requests": "3", "wanted": "2"})
    load = EndpointLoad(endpoint=ENDPOINT, in_flight=2, queued=1, oldest_wait_ms=40)
    until_ns = START_NS + 300 * SECOND_NS
    left = DrainConfirmed(gateway="gw", gateway_epoch=1, attempt=first, is_idle=False)
    return [
        WorkloadSubmitted(
            submission=submission(ENDPOINT, spec), reserved_neur=0, policy_decision="allow"
        ),
        placed(ENDPOINT),
        observed(first, TaskPhase.RUNNING, **ready),
        GatewayEpochOpened(gateway="gw", gateway_epoch=1),
        LoadReported(gateway="gw", gateway_epoch=1, endpoints=(load,)),
        ReplicasDecided(workload=ENDPOINT, replicas=2, reason=asks),
        placed(ENDPOINT, unit=1),
        observed(second, TaskPhase.RUNNING, **ready),
        LoadReported(gateway="gw", gateway_epoch=1, endpoints=()),
        WorkloadScaled(
            workload=ENDPOINT, replicas=1, by="key_member", scaling=Scaling(replicas_max=2)
        ),
        AttemptDrainDecided(attempt=second, cause=StopCause.SCALED_IN, until_ns=until_ns),
        replace(left, attempt=second, is_idle=True),
        AttemptStopDecided(attempt=second, cause=StopCause.SCALED_IN, grace_s=10),
        observed(second, TaskPhase.EXITED, exit_code=0, ended_at_ns=START_NS + 80 * SECOND_NS),
        EndpointRolledOut(
            workload=ENDPOINT, spec=rolled, revision=2, by="key_member", policy_decision="allow"
        ),
        placed(ENDPOINT, generation=2, unit=1),
        observed(attempt_id(ENDPOINT, 1, 2), TaskPhase.RUNNING, **ready),
        AttemptDrainDecided(attempt=first, cause=StopCause.ROLLED_OUT, until_ns=until_ns),
        left,
        EndpointRolledOut(
            workload=ENDPOINT, spec=spec, revision=1, by="key_member", policy_decision="allow"
        ),
        GatewayEpochClosed(gateway="gw", gateway_epoch=1),
    ]


def write(folder: Path) -> list[Path]:
    """Write the logs that are missing from a folder; return their paths."""
    written = []
    for name, events in sorted(logs().items()):
        path = folder / f"{name}.jsonl"
        if not path.exists():
            path.write_bytes(b"".join(orjson.dumps(encode_event(e)) + b"\n" for e in events))
            written.append(path)
    return written


if __name__ == "__main__":
    for made in write(LOGS):
        print(made, file=sys.stderr)

"""A replica whose time ends in events: its successor is asked for, takes over, and the first one goes."""

from dataclasses import replace
from typing import Final

from moulin.domain.events import (
    AttemptDrainDecided,
    AttemptPlaced,
    AttemptStopDecided,
    DrainConfirmed,
    NodeJoined,
    Payload,
    TaskObserved,
    WorkloadSubmitted,
)
from moulin.domain.gateway_events import GatewayEpochOpened
from moulin.domain.ids import (
    AttemptId,
    NodeId,
    OrganisationId,
    ProjectId,
    WorkloadId,
    attempt_id,
    step_id,
)
from moulin.domain.observation import NodeCapacity, TaskPhase
from moulin.domain.plan import StopCause, TaskPlacement
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.replica_events import SuccessionDecided
from moulin.domain.workload import (
    EndpointSpec,
    Resources,
    Submission,
    WorkloadKind,
    WorkloadSpec,
)

START_NS: Final = 1_790_000_000_000_000_000
TIMED: Final = WorkloadId(f"end_{8:026}")
NODE: Final = NodeId("gpu-1")
ENDS_NS: Final = (START_NS + 300 * 10**9, START_NS + 7_200 * 10**9)


def replicas() -> list[Payload]:
    """One endpoint on a node that gives ten minutes, with a wish for an hour."""
    first, second = attempt_id(TIMED, 0, 1), attempt_id(TIMED, 1, 1)
    spec = WorkloadSpec(
        kind=WorkloadKind.ENDPOINT,
        name="timed",
        resources=Resources(cpu_milli=500, memory_bytes=2**28),
        endpoint=EndpointSpec(model="smollm2", variant="q8", drain_s=60),
        time_limit_s=3600,
    )
    ends_at_ns = START_NS + 610 * 10**9
    parameters = {"replica": first, "left_s": "200", "starts_s": "0", "basis": "measured"}
    return [
        NodeJoined(
            pool="pool",
            capacity=NodeCapacity(
                node=NODE,
                cpu_milli=4_000,
                memory_bytes=2**33,
                machine_class="cpu",
                time_limit_s=600,
            ),
        ),
        WorkloadSubmitted(
            submission=Submission(
                id=TIMED,
                organisation=OrganisationId("uni"),
                project=ProjectId("lab"),
                spec=spec,
                submitted_by="key_member",
                submitted_at_ns=START_NS,
            ),
            reserved_neur=0,
            policy_decision="allow",
        ),
        GatewayEpochOpened(gateway="gw", gateway_epoch=1),
        placed(first, 0),
        seen(first, 10, TaskPhase.RUNNING),
        seen(first, 14, TaskPhase.RUNNING, is_ready=True),
        SuccessionDecided(
            attempt=first,
            ends_at_ns=ends_at_ns,
            reason=Reason(code=ReasonCode.TIME_ENDS, parameters=parameters),
        ),
        placed(second, 1),
        seen(second, 420, TaskPhase.RUNNING),
        seen(second, 424, TaskPhase.RUNNING, is_ready=True),
        AttemptDrainDecided(
            attempt=first, cause=StopCause.ROLLED_OVER, until_ns=ends_at_ns - 10 * 10**9
        ),
        DrainConfirmed(gateway="gw", gateway_epoch=1, attempt=first, is_idle=True),
        AttemptStopDecided(attempt=first, cause=StopCause.ROLLED_OVER, grace_s=10),
        seen(first, 430, TaskPhase.EXITED),
    ]


def placed(attempt: AttemptId, unit: int) -> AttemptPlaced:
    return AttemptPlaced(
        attempt=attempt,
        workload=TIMED,
        unit=unit,
        generation=1,
        tasks=(TaskPlacement(rank=0, node=NODE),),
    )


def seen(
    attempt: AttemptId, after_s: int, phase: TaskPhase, *, is_ready: bool = False
) -> TaskObserved:
    at_ns = START_NS + after_s * 10**9
    has_ended = phase is TaskPhase.EXITED
    return TaskObserved(
        step=step_id(attempt, 0),
        phase=phase,
        observed_at_ns=at_ns,
        started_at_ns=START_NS + after_s // 10 * 10 * 10**9,
        ended_at_ns=at_ns if has_ended else 0,
        exit_code=143 if has_ended else None,
        address="10.0.0.7:9000",
        is_ready=is_ready,
    )


def walls() -> list[Payload]:
    """The same endpoint; its replica is given less time in the batch system, then more than it wants."""
    first = attempt_id(TIMED, 0, 1)
    told = [
        replace(seen(first, 20, TaskPhase.RUNNING, is_ready=True), wall_ns=at_ns)
        for at_ns in ENDS_NS
    ]
    return [*replicas()[:6], *told]

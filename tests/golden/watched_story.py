"""A place of a delegated pool in events: the machine behind it breaks, and what runs there is stopped."""

from typing import Final

from moulin.domain.events import (
    AttemptPlaced,
    AttemptStopDecided,
    NodeJoined,
    Payload,
    TaskObserved,
    WorkloadSubmitted,
)
from moulin.domain.health import DeviceReading, NodeReading, Signal, Symptom, Verdict
from moulin.domain.ids import (
    NodeId,
    OrganisationId,
    ProjectId,
    StepId,
    WorkloadId,
    attempt_id,
    step_id,
)
from moulin.domain.node_events import NodeHealthObserved, NodeJudged
from moulin.domain.observation import NodeCapacity, TaskPhase
from moulin.domain.plan import StopCause, TaskPlacement
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.workload import (
    Resources,
    Submission,
    TaskTemplate,
    WorkloadKind,
    WorkloadSpec,
    WorkloadState,
)

START_NS: Final = 1_790_000_000_000_000_000
JOB: Final = WorkloadId(f"job_{50:026}")
ENDS: Final = {JOB: WorkloadState.RUNNING}
PLACE: Final = NodeId("pool-00000")
MACHINE: Final = NodeId("pool-n7")


def watched() -> list[Payload]:
    """The machine has no room of its own; an error on a device it names strikes the task that told of it."""
    attempt = attempt_id(JOB, 0, 1)
    step = step_id(attempt, 0)
    broken = Symptom(
        signal=Signal.XID, device=3, value=79, is_evidence=True, uuid="GPU-7-3", steps=(step,)
    )
    parameters = {"node": MACHINE, "signal": Signal.XID.value}
    return [
        _node(PLACE),
        _node(MACHINE, is_watched_only=True),
        WorkloadSubmitted(submission=_submission(), reserved_neur=3, policy_decision="allow"),
        AttemptPlaced(
            attempt=attempt,
            workload=JOB,
            unit=0,
            generation=1,
            tasks=(TaskPlacement(rank=0, node=PLACE, devices=(0,)),),
        ),
        TaskObserved(
            step=step,
            phase=TaskPhase.RUNNING,
            observed_at_ns=START_NS + 10**9,
            started_at_ns=START_NS,
            host=MACHINE,
        ),
        _seen(step),
        _seen(step, broken, xids={"79": 1}),
        NodeJudged(
            node=MACHINE,
            verdict=Verdict.QUARANTINED,
            reason=Reason(code=ReasonCode.NODE_SYMPTOM, parameters=parameters),
        ),
        AttemptStopDecided(attempt=attempt, cause=StopCause.UNHEALTHY, grace_s=10),
    ]


def _seen(
    step: StepId, *symptoms: Symptom, xids: dict[str, int] | None = None
) -> NodeHealthObserved:
    device = DeviceReading(index=3, uuid="GPU-7-3", xids=xids or {}, steps=(step,))
    reading = NodeReading(node=MACHINE, at_ns=START_NS, devices=(device,), is_partial=True)
    return NodeHealthObserved(node=MACHINE, reading=reading, symptoms=symptoms)


def _node(name: NodeId, *, is_watched_only: bool = False) -> NodeJoined:
    capacity = NodeCapacity(
        node=name,
        cpu_milli=8_000,
        memory_bytes=2**34,
        machine_class="cpu",
        accelerators=4,
        accelerator_class="h100",
        is_watched_only=is_watched_only,
    )
    return NodeJoined(pool="pool", capacity=capacity)


def _submission() -> Submission:
    spec = WorkloadSpec(
        kind=WorkloadKind.JOB,
        name="mill",
        resources=Resources(cpu_milli=500, memory_bytes=2**28, accelerators=1),
        task=TaskTemplate(command=("true",)),
        time_limit_s=60,
    )
    return Submission(
        id=JOB,
        organisation=OrganisationId("uni"),
        project=ProjectId("lab"),
        spec=spec,
        submitted_by="key_member",
        submitted_at_ns=START_NS,
    )

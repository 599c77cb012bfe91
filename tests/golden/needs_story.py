"""Nodes that lack something, in events: one refusal for it, and a job that goes where it is carried."""

from typing import Final

from moulin.domain.events import (
    AttemptPlaced,
    NodeJoined,
    Payload,
    WorkloadRefused,
    WorkloadSubmitted,
)
from moulin.domain.ids import NodeId, OrganisationId, ProjectId, WorkloadId, attempt_id
from moulin.domain.needs import Need
from moulin.domain.observation import NodeCapacity
from moulin.domain.plan import TaskPlacement
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
REFUSED: Final = WorkloadId(f"job_{40:026}")
CARRIED: Final = WorkloadId(f"job_{41:026}")
ENDS: Final = {REFUSED: WorkloadState.REFUSED, CARRIED: WorkloadState.PLACED}


def needs() -> list[Payload]:
    """Folders are carried by nobody; the job with an image is placed on the one node that runs it."""
    folder = TaskTemplate(command=("true",), bundle="0" * 64)
    image = TaskTemplate(command=("true",), image="alpine", secrets={"TOKEN": "token"})
    nobody = Reason(
        code=ReasonCode.CANNOT_CARRY,
        parameters={
            "what": "a folder sent along",
            "needs": Need.FOLDER.value,
            "count": "3",
            "pools": "pool",
        },
    )
    return [
        _node("bare-1", *Need),
        _node("bare-2", Need.FOLDER),
        WorkloadRefused(submission=_submission(REFUSED, folder), reasons=(nobody,)),
        WorkloadSubmitted(
            submission=_submission(CARRIED, image), reserved_neur=5, policy_decision="allow"
        ),
        AttemptPlaced(
            attempt=attempt_id(CARRIED, 0, 1),
            workload=CARRIED,
            unit=0,
            generation=1,
            tasks=(TaskPlacement(rank=0, node=NodeId("bare-2")),),
        ),
    ]


def _node(name: str, *lacks: Need) -> NodeJoined:
    capacity = NodeCapacity(
        node=NodeId(name),
        cpu_milli=8_000,
        memory_bytes=2**34,
        machine_class="cpu",
        lacks=lacks,
    )
    return NodeJoined(pool="pool", capacity=capacity)


def _submission(workload: WorkloadId, task: TaskTemplate) -> Submission:
    spec = WorkloadSpec(
        kind=WorkloadKind.JOB,
        name="mill",
        resources=Resources(cpu_milli=500, memory_bytes=2**28),
        task=task,
        time_limit_s=60,
    )
    return Submission(
        id=workload,
        organisation=OrganisationId("uni"),
        project=ProjectId("lab"),
        spec=spec,
        submitted_by="key_member",
        submitted_at_ns=START_NS,
    )

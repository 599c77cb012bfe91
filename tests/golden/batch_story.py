"""Batch work in events: an array that is throttled, stopped in part and fails in part, and what waits.

Three workloads: the array, one that waits for it whatever becomes of it, and one that needed it to
succeed and never starts.
"""

from typing import Final

from moulin.domain.batch_events import UnitFinished, WorkloadAdjusted
from moulin.domain.events import (
    AttemptPlaced,
    AttemptStopDecided,
    Payload,
    TaskObserved,
    UnitRequeued,
    WorkloadFinished,
    WorkloadStopRequested,
    WorkloadSubmitted,
)
from moulin.domain.ids import NodeId, OrganisationId, ProjectId, WorkloadId, attempt_id, step_id
from moulin.domain.observation import TaskPhase
from moulin.domain.plan import StopCause, TaskPlacement
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.workload import (
    After,
    AfterWhen,
    JobArray,
    Resources,
    Submission,
    TaskTemplate,
    WorkloadKind,
    WorkloadSpec,
    WorkloadState,
)

START_NS: Final = 1_790_000_000_000_000_000
ARRAY, REPORT, TRAIN = (WorkloadId(f"job_{number:026}") for number in (1, 2, 3))


def batch() -> list[Payload]:
    """Elements 3, 5 and 7 of an array, and two jobs after it."""
    failed = Reason(code=ReasonCode.PROGRAM_FAILED, parameters={"how": "exit code 1"})
    part = {"size": "3", "succeeded": "1", "failed": "1", "cancelled": "1"}
    return [
        submitted(ARRAY, array=JobArray(size=3, listed=(3, 5, 7), at_most=1), priority=10),
        submitted(REPORT, after=(After(workload=ARRAY, when=AfterWhen.ANY),), is_held=True),
        submitted(TRAIN, after=(After(workload=ARRAY),), alternatives=(Resources(cpu_milli=250),)),
        WorkloadAdjusted(workload=ARRAY, by="ada", priority=60),
        placed(ARRAY, 0),
        exited(ARRAY, 0, 1, 1),
        UnitRequeued(workload=ARRAY, unit=0, generation=2, not_before_ns=0, reason=failed),
        placed(ARRAY, 1),
        WorkloadStopRequested(workload=ARRAY, by="ada", units=(1,)),
        AttemptStopDecided(attempt=attempt_id(ARRAY, 1, 1), cause=StopCause.CANCELLED, grace_s=10),
        exited(ARRAY, 1, 1, 143),
        UnitFinished(workload=ARRAY, unit=1, state=WorkloadState.CANCELLED),
        placed(ARRAY, 2),
        exited(ARRAY, 2, 1, 0),
        UnitFinished(
            workload=ARRAY, unit=2, state=WorkloadState.SUCCEEDED, ended_at_ns=START_NS + 10**9
        ),
        placed(ARRAY, 0, 2),
        exited(ARRAY, 0, 2, 1),
        UnitFinished(workload=ARRAY, unit=0, state=WorkloadState.FAILED, reason=failed),
        WorkloadFinished(
            workload=ARRAY,
            state=WorkloadState.FAILED,
            reason=Reason(code=ReasonCode.ARRAY_PART, parameters=part),
        ),
        WorkloadFinished(
            workload=TRAIN,
            state=WorkloadState.CANCELLED,
            reason=Reason(
                code=ReasonCode.DEPENDENCY_FAILED,
                parameters={"workload": ARRAY, "state": "failed"},
            ),
        ),
        WorkloadAdjusted(workload=REPORT, by="ada", is_held=False),
        placed(REPORT, 0),
    ]


def submitted(workload: WorkloadId, **changes: object) -> WorkloadSubmitted:
    values: dict = {
        "kind": WorkloadKind.JOB,
        "name": "sweep",
        "resources": Resources(cpu_milli=500, memory_bytes=2**28),
        "task": TaskTemplate(command=("true",)),
    }
    submission = Submission(
        id=workload,
        organisation=OrganisationId("uni"),
        project=ProjectId("lab"),
        spec=WorkloadSpec(**(values | changes)),
        submitted_by="key_member",
        submitted_at_ns=START_NS,
    )
    return WorkloadSubmitted(submission=submission, reserved_neur=0, policy_decision="allow")


def placed(workload: WorkloadId, unit: int, generation: int = 1) -> AttemptPlaced:
    return AttemptPlaced(
        attempt=attempt_id(workload, unit, generation),
        workload=workload,
        unit=unit,
        generation=generation,
        tasks=(TaskPlacement(rank=0, node=NodeId("node-1")),),
    )


def exited(workload: WorkloadId, unit: int, generation: int, code: int) -> TaskObserved:
    return TaskObserved(
        step=step_id(attempt_id(workload, unit, generation), 0),
        phase=TaskPhase.EXITED,
        observed_at_ns=START_NS,
        exit_code=code,
        started_at_ns=START_NS,
        ended_at_ns=START_NS + 10**9,
    )

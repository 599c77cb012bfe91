"""What people do around batch work: a job gives way to another, an idle one ends, somebody looks in."""

from typing import Final

from moulin.domain.batch_events import PreemptionDecided
from moulin.domain.events import (
    AttemptStopDecided,
    IntervalMetered,
    Payload,
    TaskObserved,
    UnitRequeued,
    WorkloadFinished,
)
from moulin.domain.factory import EnergyClass
from moulin.domain.ids import NodeId, WorkloadId, attempt_id, step_id
from moulin.domain.observation import TaskPhase
from moulin.domain.plan import StopCause
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.session_events import (
    SessionClosed,
    SessionEnd,
    SessionOpened,
    SessionPurpose,
)
from moulin.domain.workload import IdleStop, WorkloadState
from tests.golden.batch_story import START_NS, exited, placed, submitted

LOW, URGENT, IDLE = (WorkloadId(f"job_{number:026}") for number in (4, 5, 6))
ENDS: Final = {
    LOW: WorkloadState.PLACED,
    URGENT: WorkloadState.SUCCEEDED,
    IDLE: WorkloadState.CANCELLED,
}
MINUTE_NS: Final = 60 * 10**9


def comforts() -> list[Payload]:
    """A job gives way and is requeued, another is stopped as idle, and both were looked into."""
    gave_way = Reason(
        code=ReasonCode.PREEMPTED_BY, parameters={"generation": "1", "workload": URGENT}
    )
    idle = Reason(
        code=ReasonCode.IDLE_STOPPED,
        parameters={"share": "2", "idle_s": "60", "limit_s": "60"},
    )
    return [
        submitted(LOW, priority=10),
        placed(LOW, 0),
        running(LOW),
        SessionOpened(
            session="ses_00000000000000000000000001",
            workload=LOW,
            step=step_id(attempt_id(LOW, 0, 1), 0),
            purpose=SessionPurpose.EXEC,
            by="ada",
            word="bash",
        ),
        SessionClosed(
            session="ses_00000000000000000000000001",
            workload=LOW,
            end=SessionEnd.EXITED,
            exit_code=0,
        ),
        submitted(URGENT, priority=90),
        PreemptionDecided(
            workload=URGENT,
            unit=0,
            nodes=(NodeId("node-1"),),
            attempts=(attempt_id(LOW, 0, 1),),
            until_ns=START_NS + 10 * MINUTE_NS,
        ),
        AttemptStopDecided(attempt=attempt_id(LOW, 0, 1), cause=StopCause.PREEMPTED, grace_s=10),
        exited(LOW, 0, 1, 143),
        UnitRequeued(workload=LOW, unit=0, generation=2, not_before_ns=0, reason=gave_way),
        placed(URGENT, 0),
        exited(URGENT, 0, 1, 0),
        WorkloadFinished(workload=URGENT, state=WorkloadState.SUCCEEDED),
        placed(LOW, 0, 2),
        submitted(IDLE, idle_stop=IdleStop(after_s=60)),
        placed(IDLE, 0),
        running(IDLE),
        metered(IDLE),
        AttemptStopDecided(attempt=attempt_id(IDLE, 0, 1), cause=StopCause.IDLE, grace_s=10),
        exited(IDLE, 0, 1, 143),
        WorkloadFinished(workload=IDLE, state=WorkloadState.CANCELLED, reason=idle),
    ]


def running(workload: WorkloadId) -> TaskObserved:
    return TaskObserved(
        step=step_id(attempt_id(workload, 0, 1), 0),
        phase=TaskPhase.RUNNING,
        observed_at_ns=START_NS,
        started_at_ns=START_NS,
    )


def metered(workload: WorkloadId) -> IntervalMetered:
    step = step_id(attempt_id(workload, 0, 1), 0)
    return IntervalMetered(
        node=NodeId("node-1"),
        start_ns=START_NS,
        end_ns=START_NS + 2 * MINUTE_NS,
        node_cpu_ns=-1,
        task_cpu_ns={step: 10**8},
        task_energy_mj={step: 0},
        task_overhead_mj={step: 0},
        task_standing_mj={step: 0},
        energy_mj=0,
        idle_mj=0,
        unattributed_mj=0,
        overhead_mj=0,
        method="none",
        quality=EnergyClass.CONSTANT,
        uncertainty_ppm=0,
        task_unread=(step,),
    )

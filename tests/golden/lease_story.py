"""A lease in events: a node is delivered with a login, the end is put off once, and it expires."""

from typing import Final

from moulin.domain.events import (
    AttemptPlaced,
    AttemptStopDecided,
    NodeJoined,
    Payload,
    TaskObserved,
    WorkloadFinished,
    WorkloadSubmitted,
)
from moulin.domain.ids import (
    NodeId,
    OrganisationId,
    ProjectId,
    WorkloadId,
    attempt_id,
    step_id,
)
from moulin.domain.lease_events import LeaseExtended
from moulin.domain.observation import NodeCapacity, TaskPhase
from moulin.domain.plan import StopCause, TaskPlacement
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.workload import (
    LeaseSpec,
    Resources,
    Submission,
    Where,
    WorkloadKind,
    WorkloadSpec,
    WorkloadState,
)

START_NS: Final = 1_790_000_000_000_000_000
LEASE: Final = WorkloadId(f"lse_{9:026}")
NODE: Final = NodeId("bare-1")
KEY: Final = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDyuqZNm4MCIChZcFyQP7s4MaVIFBmnLn+SMKVR6l2oJ ada"
ADDRESS: Final = f"10.0.0.7:40022 mill {KEY.removesuffix(' ada')}"


def lease() -> list[Payload]:
    """An hour on one whole node, then another."""
    attempt = attempt_id(LEASE, 0, 1)
    step = step_id(attempt, 0)
    spec = WorkloadSpec(
        kind=WorkloadKind.LEASE,
        name="bench",
        resources=Resources(cpu_milli=500, memory_bytes=2**28),
        lease=LeaseSpec(ssh_keys=(KEY,), warn_s=300),
        where=Where(zones=("hall",)),
        time_limit_s=3600,
    )
    limit = Reason(code=ReasonCode.TIME_LIMIT_REACHED, parameters={"limit_s": "7200"})
    return [
        NodeJoined(
            pool="pool",
            capacity=NodeCapacity(
                node=NODE,
                cpu_milli=8_000,
                memory_bytes=2**34,
                machine_class="cpu",
                address="10.0.0.7",
                has_login=True,
            ),
        ),
        WorkloadSubmitted(
            submission=Submission(
                id=LEASE,
                organisation=OrganisationId("uni"),
                project=ProjectId("lab"),
                spec=spec,
                submitted_by="key_member",
                submitted_at_ns=START_NS,
            ),
            reserved_neur=500,
            policy_decision="allow",
        ),
        AttemptPlaced(
            attempt=attempt,
            workload=LEASE,
            unit=0,
            generation=1,
            tasks=(TaskPlacement(rank=0, node=NODE),),
        ),
        TaskObserved(
            step=step,
            phase=TaskPhase.RUNNING,
            observed_at_ns=START_NS + 9 * 10**9,
            started_at_ns=START_NS + 8 * 10**9,
            address=ADDRESS,
            is_ready=True,
        ),
        LeaseExtended(workload=LEASE, by="ada", time_limit_s=7200, added_neur=501),
        AttemptStopDecided(attempt=attempt, cause=StopCause.TIME_LIMIT, grace_s=10),
        TaskObserved(
            step=step,
            phase=TaskPhase.EXITED,
            observed_at_ns=START_NS + 7209 * 10**9,
            started_at_ns=START_NS + 8 * 10**9,
            ended_at_ns=START_NS + 7208 * 10**9,
            exit_code=0,
        ),
        WorkloadFinished(workload=LEASE, state=WorkloadState.SUCCEEDED, reason=limit),
    ]

"""The schedule stage as the cycle runs it: one decision, drafted with the evidence to replay it."""

from dataclasses import replace

from moulin.controlplane.draft import Draft
from moulin.controlplane.endpoints import forget_silent_gateways, frozen_endpoints
from moulin.controlplane.plane import Plane
from moulin.domain.batch_events import PreemptionDecided, UnitFinished
from moulin.domain.events import (
    AttemptDrainDecided,
    AttemptPlaced,
    AttemptStopDecided,
    CycleDecided,
    Payload,
    ReplicasDecided,
    UnitRequeued,
    WorkloadFinished,
)
from moulin.domain.ids import WorkloadId
from moulin.domain.plan import Plan
from moulin.domain.replica_events import SuccessionDecided
from moulin.scheduler import SchedulerPolicy, decide, plan_digest, plan_events


def schedule(plane: Plane, draft: Draft) -> Plan:
    """Decide from the drafted state and draft what was decided.

    The cycle's time, the state it saw and the plan's digest are logged with every plan that
    changes something, so that a replay can be checked.
    """
    forget_silent_gateways(plane, draft)
    policy = present_policy(draft, plane.policy)
    plan = decide(draft.books.schedule, draft.now_ns, policy)
    if plan.is_empty:
        return plan
    evidence = draft.append(
        CycleDecided(
            now_ns=plan.now_ns, input_sequence=plan.input_sequence, plan_digest=plan_digest(plan)
        )
    )
    for payload in plan_events(plan):
        draft.append(payload, causation=evidence.sequence, project=_project(draft, payload))
    return plan


def present_policy(draft: Draft, policy: SchedulerPolicy) -> SchedulerPolicy:
    """Return the operator's policy with who has no money left, as the drafted books say."""
    return replace(
        policy,
        projects_exhausted=exhausted(draft),
        workloads_exhausted=exhausted_workloads(draft),
        endpoints_frozen=frozen_endpoints(draft),
    )


def exhausted(draft: Draft) -> tuple[str, ...]:
    """Return the projects whose charges have used up their whole budget, by name."""
    return tuple(
        name
        for name, money in sorted(draft.books.balances.projects.items())
        if 0 <= money.budget_neur <= money.spent_neur
    )


def exhausted_workloads(draft: Draft) -> tuple[str, ...]:
    """Return the workloads without an end that nothing is left for, in order of that moment.

    Such a workload holds its first hour; then it lives on what its project has not promised to
    others, charged interval by interval. What the last interval overdraws is debt.
    """
    balances = draft.books.balances
    return tuple(
        workload
        for workload in balances.used_up
        if (left := balances.available_neur(balances.project_by_workload[workload])) is not None
        and left <= 0
        and draft.books.schedule.workloads[WorkloadId(workload)].is_lasting
    )


def _project(draft: Draft, payload: Payload) -> str:
    schedule_state = draft.books.schedule
    match payload:
        case AttemptPlaced(workload=workload) | UnitRequeued(workload=workload):
            return schedule_state.workloads[workload].submission.project
        case WorkloadFinished(workload=workload) | ReplicasDecided(workload=workload):
            return schedule_state.workloads[workload].submission.project
        case PreemptionDecided(workload=workload) | UnitFinished(workload=workload):
            return schedule_state.workloads[workload].submission.project
        case (
            AttemptStopDecided(attempt=attempt)
            | AttemptDrainDecided(attempt=attempt)
            | SuccessionDecided(attempt=attempt)
        ):
            row = schedule_state.attempts[attempt]
            return schedule_state.workloads[WorkloadId(row.workload)].submission.project
        case _:
            return ""

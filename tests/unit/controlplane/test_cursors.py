"""What metering still owes of a workload, folded from events that no test bench would produce."""

from collections.abc import Sequence
from dataclasses import replace

from moulin.controlplane.books import Books, read_books
from moulin.domain.events import (
    AttemptPlaced,
    AttemptStopDecided,
    IntervalMetered,
    Payload,
    WorkloadFinished,
    WorkloadStopRequested,
    WorkloadSubmitted,
)
from moulin.domain.ids import StepId, attempt_id, step_id
from moulin.domain.observation import TaskPhase
from moulin.domain.plan import StopCause, TaskPlacement
from moulin.domain.workload import WorkloadState
from tests.golden.beginning import NODE, beginning
from tests.golden.story import (
    JOB,
    charged,
    job_spec,
    metered,
    numbered,
    observed,
    placed,
    submission,
)

ATTEMPT = attempt_id(JOB, 0, 1)
BOTH = (step_id(ATTEMPT, 0), step_id(ATTEMPT, 1))
SUBMITTED = WorkloadSubmitted(
    submission=submission(JOB, job_spec(nodes=2)), reserved_neur=1000, policy_decision="allow"
)
FINISHED = WorkloadFinished(workload=JOB, state=WorkloadState.SUCCEEDED)


def books(payloads: Sequence[Payload]) -> Books:
    return read_books(numbered([*beginning(), *payloads]))


def gang() -> AttemptPlaced:
    tasks = tuple(TaskPlacement(rank=rank, node=NODE) for rank in (0, 1))
    return replace(placed(JOB), tasks=tasks)


def metered_both() -> IntervalMetered:
    def both(amount: int) -> dict[str, int]:
        return dict.fromkeys(BOTH, amount)

    return replace(
        metered(ATTEMPT),
        task_cpu_ns=both(10**9),
        task_energy_mj=both(450_000),
        task_overhead_mj=both(90_000),
        task_standing_mj=both(150_000),
    )


def ended(step: StepId) -> Payload:
    return observed(ATTEMPT, TaskPhase.EXITED, step=step, exit_code=0)


def test_two_tasks_of_an_attempt_on_one_node_owe_one_usage():
    over: list[Payload] = [SUBMITTED, gang(), *map(ended, BOTH), FINISHED, metered_both()]
    assert books(over).balances.reserved_by_workload == {JOB: 1000}
    assert books([*over, charged(JOB, 400)]).balances.reserved_by_workload == {}


def test_an_interval_may_name_tasks_that_never_started():
    stopped: list[Payload] = [
        SUBMITTED,
        gang(),
        WorkloadStopRequested(workload=JOB, by="key_member"),
        AttemptStopDecided(attempt=ATTEMPT, cause=StopCause.CANCELLED, grace_s=1),
        *(
            observed(ATTEMPT, TaskPhase.ABSENT, step=step, claim=None, started_at_ns=0)
            for step in BOTH
        ),
        replace(FINISHED, state=WorkloadState.CANCELLED),
    ]
    assert books(stopped).balances.reserved_by_workload == {}
    after = books([*stopped, metered_both()])
    assert after.balances.reserved_by_workload == {}
    assert after.cursors.admissions == {}

"""Batch work in the story: arrays, what waits for others, holds; and what must hold of each.

Judged from the log and from what really runs; what the control plane believes of eligibility is not
asked.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moulin.domain.batch_events import UnitFinished, WorkloadAdjusted
from moulin.domain.events import (
    AttemptPlaced,
    Event,
    WorkloadFinished,
    WorkloadStopRequested,
    WorkloadSubmitted,
)
from moulin.domain.ids import attempt_id, step_id
from moulin.domain.reasons import ReasonCode
from moulin.domain.workload import AfterWhen, Submission, WorkloadState
from tests.simulation.invariants import must

if TYPE_CHECKING:
    from tests.simulation.invariants import Judge


@dataclass(slots=True)
class Steering:
    """Tallies of its own over the log; `judge` knows what really runs."""

    judge: "Judge"
    submissions: dict[str, Submission] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    ended: dict[str, WorkloadState] = field(default_factory=dict)
    stopped: set[tuple[str, int]] = field(default_factory=set)
    units: dict[tuple[str, int], WorkloadState] = field(default_factory=dict)
    generations: dict[tuple[str, int], int] = field(default_factory=dict)

    def read(self, event: Event) -> None:
        """Take in one event and judge it."""
        match event.payload:
            case WorkloadSubmitted(submission=submission):
                self._submit(submission)
            case WorkloadAdjusted(workload=workload, is_held=is_held) if is_held is not None:
                (self.held.add if is_held else self.held.discard)(workload)
            case WorkloadStopRequested(workload=workload, units=units):
                self.stopped.update((workload, unit) for unit in units)
            case AttemptPlaced() as placed:
                self._judge_placement(placed)
            case UnitFinished() as finished:
                self._judge_unit(finished)
            case WorkloadFinished() as finished:
                self._judge_end(finished)
            case _:
                pass

    def _submit(self, submission: Submission) -> None:
        self.submissions[submission.id] = submission
        if submission.spec.is_held:
            self.held.add(submission.id)

    def _judge_placement(self, placed: AttemptPlaced) -> None:
        spec = self.submissions[placed.workload].spec
        unit = (placed.workload, placed.unit)
        must(placed.workload not in self.held, f"{placed.attempt} is placed while it is held")
        must(unit not in self.units, f"{placed.attempt} is placed after its element ended")
        must(unit not in self.stopped, f"{placed.attempt} is placed after its element was stopped")
        for after in spec.after:
            state = self.ended.get(after.workload)
            must(state is not None, f"{placed.attempt} is placed before {after.workload} ended")
            must(
                after.when is AfterWhen.ANY or state is WorkloadState.SUCCEEDED,
                f"{placed.attempt} is placed though {after.workload} ended {state}",
            )
        self.generations[unit] = placed.generation
        if spec.array is not None and spec.array.at_most:
            begun = f"{placed.workload}.u"
            live = {
                task.attempt
                for task in self.judge.books.schedule.steps.values()
                if task.attempt.startswith(begun)
            }
            must(
                len(live) <= spec.array.at_most,
                f"{len(live)} elements of {placed.workload} hold something at once",
            )

    def _judge_unit(self, finished: UnitFinished) -> None:
        unit = (finished.workload, finished.unit)
        what = f"element {finished.unit} of {finished.workload}"
        must(unit not in self.units, f"{what} ends twice")
        self.units[unit] = finished.state
        begun = f"{finished.workload}.u{finished.unit}.g"
        for step in self.judge.books.schedule.steps:
            must(not step.startswith(begun), f"{what} ends while {step} is held")
        if finished.state is WorkloadState.SUCCEEDED:
            for code in self._exit_codes(finished):
                must(code == 0, f"{what} succeeded with exit code {code}")

    def _exit_codes(self, finished: UnitFinished) -> list[int | None]:
        """Return how the tasks of an element's last attempt ended in their worlds."""
        generation = self.generations[(finished.workload, finished.unit)]
        attempt = attempt_id(finished.workload, finished.unit, generation)
        steps = [step_id(attempt, rank) for rank in range(10)]
        return [
            place.world._tasks[step].exit_code
            for place in self.judge.places.values()
            for step in steps
            if step in place.world._tasks
        ]

    def _judge_end(self, finished: WorkloadFinished) -> None:
        workload = finished.workload
        spec = self.submissions[workload].spec
        self.ended.setdefault(workload, finished.state)
        reason = finished.reason
        if reason is not None and reason.code is ReasonCode.DEPENDENCY_FAILED:
            broken = [
                after
                for after in spec.after
                if after.when is AfterWhen.OK
                and self.ended.get(after.workload) not in (None, WorkloadState.SUCCEEDED)
            ]
            must(bool(broken), f"{workload} ends for a dependency that has not failed")
        if spec.array is None:
            return
        states = [self.units.get((workload, unit)) for unit in range(spec.array.size)]
        if finished.state is WorkloadState.SUCCEEDED:
            must(
                set(states) == {WorkloadState.SUCCEEDED},
                f"{workload} succeeded and its elements ended {states}",
            )
        if reason is not None and reason.code is ReasonCode.ARRAY_PART:
            counted = {
                name: str(sum(state == name for state in states))
                for name in ("succeeded", "failed", "cancelled")
            }
            told = {name: reason.parameters[name] for name in counted}
            must(told == counted, f"{workload} tells of {told}, its elements ended {counted}")

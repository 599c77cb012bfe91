"""What engines were let to forget, judged from the log and the worlds: not too soon, all of it, once.

A task's records may go when its workload is finished, all its tasks are metered to their end and its
retention has passed. Until then a crash or an audit may still need them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moulin.domain.events import Event, TasksForgotten, WorkloadFinished, WorkloadSubmitted
from moulin.domain.ids import StepId
from tests.simulation.holds import Tally
from tests.simulation.invariants import must
from tests.simulation.world import SECOND, Place

# What a quiet end waits for; longer ones outlive a seed.
RETENTION_S_MAX = 300


@dataclass(slots=True)
class Kept:
    """Reads what the auditor's tallies have read; `looked` counts what was judged of each place."""

    places: Mapping[str, Place]
    tallies: Mapping[str, Tally]
    retention_s: dict[str, int] = field(default_factory=dict)
    finished_ns: dict[str, int] = field(default_factory=dict)
    recorded: set[str] = field(default_factory=set)
    looked: dict[str, int] = field(default_factory=dict)

    def read(self, event: Event) -> None:
        """Judge one event."""
        match event.payload:
            case WorkloadSubmitted(submission=submission):
                self.retention_s[submission.id] = submission.spec.retention_s
            case WorkloadFinished(workload=workload):
                self.finished_ns[workload] = event.at_ns
            case TasksForgotten(workloads=workloads):
                for workload in workloads:
                    self._judge_recorded(workload, event.at_ns)
            case _:
                pass

    def look_at_worlds(self) -> None:
        """Judge what engines forgot since the last time, by what is durable now."""
        for name, place in sorted(self.places.items()):
            for step in place.forgotten[self.looked.get(name, 0) :]:
                self._judge_forgotten(step)
            self.looked[name] = len(place.forgotten)

    def judge_end(self) -> None:
        """Whatever was not to be kept for long is gone when all is over."""
        left = {
            workload
            for workload in self.finished_ns
            if self.retention_s[workload] <= RETENTION_S_MAX and workload not in self.recorded
        }
        there = {_workload(step) for place in self.places.values() for step in _steps(place)}
        must(not left & there, f"never forgotten: {sorted(left & there)}")

    def _judge_forgotten(self, step: StepId) -> None:
        workload = _workload(step)
        must(workload in self.finished_ns, f"{step} is forgotten, and {workload} is not finished")
        unmetered = self.tallies[workload].steps
        must(not unmetered, f"{step} is forgotten, and {sorted(unmetered)} are not metered")

    def _judge_recorded(self, workload: str, at_ns: int) -> None:
        must(workload in self.finished_ns, f"{workload} is forgotten before its end")
        must(workload not in self.recorded, f"{workload} is forgotten twice")
        due_ns = self.finished_ns[workload] + self.retention_s[workload] * SECOND
        must(at_ns >= due_ns, f"{workload} is forgotten {due_ns - at_ns} ns too soon")
        there = [s for p in self.places.values() for s in _steps(p) if _workload(s) == workload]
        must(not there, f"{workload} is on record as forgotten, and engines have {there}")
        self.recorded.add(workload)


def _steps(place: Place) -> tuple[StepId, ...]:
    return place.world.started_steps()


def _workload(step: StepId) -> str:
    return step.rsplit(".", 3)[0]

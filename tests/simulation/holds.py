"""When a workload's hold has to end, told from the log by plain sets: the judge of what holds money.

A hold ends with the workload's last charge: it is over, each of its tasks is metered to its end or
never started, and each interval of a replica is charged.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from moulin.domain.events import (
    AttemptPlaced,
    Event,
    IntervalMetered,
    MeteringClosed,
    NodeJoined,
    TaskObserved,
    UsagesCharged,
    WorkloadFinished,
    WorkloadSubmitted,
)
from moulin.domain.ids import NodeId, StepId, step_id
from moulin.domain.observation import SEEN_PHASES
from moulin.domain.workload import WorkloadKind

# One transaction ends with what is metered and charged; between these kinds nothing is decided.
OF_METERING = (MeteringClosed, IntervalMetered, UsagesCharged)


@dataclass(slots=True)
class Tally:
    """What one workload still owes: tasks not metered to their end, intervals not charged."""

    is_endpoint: bool
    steps: set[StepId] = field(default_factory=set)
    unpaid: set[str] = field(default_factory=set)
    is_finished: bool = False

    @property
    def is_over(self) -> bool:
        return self.is_finished and not (self.steps or self.unpaid)


@dataclass(slots=True)
class Holds:
    """Tallies by workload. `live` are the steps whose end no event has proved yet."""

    live: Collection[StepId]
    tallies: dict[str, Tally] = field(default_factory=dict)
    changed: dict[str, None] = field(default_factory=dict)
    node_of: dict[StepId, NodeId] = field(default_factory=dict)
    started: set[StepId] = field(default_factory=set)
    ended_ns: dict[StepId, int] = field(default_factory=dict)

    def read(self, event: Event) -> None:
        """Take over one event, after `live` has."""
        match event.payload:
            case WorkloadSubmitted(submission=submission):
                is_endpoint = submission.spec.kind is WorkloadKind.ENDPOINT
                self.tallies[submission.id] = Tally(is_endpoint)
            case WorkloadFinished(workload=workload):
                self.tallies[workload].is_finished = True
                self.changed[workload] = None
            case AttemptPlaced(attempt=attempt, tasks=tasks):
                for task in tasks:
                    step = step_id(attempt, task.rank)
                    self.node_of[step] = task.node
                    self._tally(step).steps.add(step)
            case IntervalMetered() as metered:
                self._meter(metered)
            case UsagesCharged(items=items):
                for item in items:
                    if not item.is_from_grant:
                        self.tallies[item.workload].unpaid.discard(item.usage)
                        self.changed[item.workload] = None
            case _:
                self._read_ends(event)

    def _read_ends(self, event: Event) -> None:
        match event.payload:
            case TaskObserved() as seen:
                if seen.started_at_ns or seen.cpu_ns or seen.phase in SEEN_PHASES:
                    self.started.add(seen.step)
                self._end(seen.step, seen.ended_at_ns or seen.observed_at_ns)
            case NodeJoined(capacity=capacity):
                for step, node in self.node_of.items():
                    if node == capacity.node:
                        self._end(step, event.at_ns)
            case _:
                pass

    def over(self) -> Iterator[str]:
        """Return the workloads whose hold ends with what was read since the last time."""
        changed, self.changed = self.changed, {}
        return (workload for workload in changed if self.tallies[workload].is_over)

    def _tally(self, step: StepId) -> Tally:
        return self.tallies[_workload(step)]

    def _end(self, step: StepId, at_ns: int) -> None:
        if step in self.live or step in self.ended_ns:
            return
        self.ended_ns[step] = at_ns
        if step not in self.started:
            self._forget(step)

    def _meter(self, metered: IntervalMetered) -> None:
        for name in metered.task_cpu_ns:
            step = StepId(name)
            attempt = step.rsplit(".", 1)[0]
            energy_mj = metered.task_energy_mj[name] + metered.task_overhead_mj[name]
            if energy_mj or self._tally(step).is_endpoint:
                usage = f"use_{attempt}.{metered.node}.{metered.start_ns}"
                self._tally(step).unpaid.add(usage)
            if step in self.ended_ns and self.ended_ns[step] <= metered.end_ns:
                self._forget(step)

    def _forget(self, step: StepId) -> None:
        self._tally(step).steps.discard(step)
        self.node_of.pop(step, None)
        self.changed[_workload(step)] = None


def _workload(step: StepId) -> str:
    return step.rsplit(".", 3)[0]

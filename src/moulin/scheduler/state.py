"""The state a decision is made from: everything the log said that placement depends on.

It is changed by `fold` alone; whoever decides, explains or shows only reads.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from moulin.domain.factory import Site
from moulin.domain.ids import AttemptId, NodeId, StepId, WorkloadId
from moulin.domain.reasons import Reason
from moulin.scheduler.declared import Declared
from moulin.scheduler.demand import Demand
from moulin.scheduler.digest import digest_of
from moulin.scheduler.nodes import NodeTable
from moulin.scheduler.queues import Due, Ticket, Timeline, Waiting
from moulin.scheduler.rows import (
    AttemptRow,
    DrainRow,
    Held,
    LoadRow,
    PromiseRow,
    TaskRow,
    UnitRow,
    WorkloadRow,
)

GatewayEpoch = tuple[str, int]
# Ended workloads stay readable in memory up to this number; older ones live in the store alone.
FINISHED_KEPT: Final = 10_000


@dataclass(slots=True)
class State:
    """The folded log.

    `workloads` holds every unfinished workload and the last `FINISHED_KEPT` finished ones;
    `attempts` the latest attempt of each unit; `steps` the tasks not proved ended, in order of
    placement. `touched` are ids of workloads whose row changed since somebody last cleared it: no
    part of the digest, and nothing decides from it. `impossible` remembers what `possible` found of
    zones, hardware and power since these last changed: no part of the digest either. `gateways` are
    the open gateway epochs, `loads` their last words about load, `drains` replicas that get no new
    request and are not stopped yet. `attended` are endpoints whose replicas may have to change: they
    follow their load, or have one too many. `dependents` are those that wait for the end of another
    workload, by that. `ailing` are the nodes whose health a decision has to look at,
    `unread_checks` the checks of nodes that have ended and whose results nobody has read.
    `waits` are the last waits of replicas for a machine, from being wanted to running, in ns by pool.
    `idle` are the attempts that have used next to nothing for as long as their idle stop says. `promises` are nodes
    kept for units that others give way to.
    """

    sequence: int = 0
    declared: Declared = field(default_factory=Declared)
    nodes: NodeTable = field(default_factory=NodeTable)
    workloads: dict[WorkloadId, WorkloadRow] = field(default_factory=dict)
    attempts: dict[AttemptId, AttemptRow] = field(default_factory=dict)
    steps: dict[StepId, TaskRow] = field(default_factory=dict)
    waiting: Waiting = field(default_factory=Waiting)
    backing_off: Timeline = field(default_factory=Timeline)
    time_limits: Timeline = field(default_factory=Timeline)
    deadlines: Timeline = field(default_factory=Timeline)
    unsettled: dict[WorkloadId, None] = field(default_factory=dict)
    unfinished_by_project: dict[str, dict[WorkloadId, None]] = field(default_factory=dict)
    held_by_project: dict[str, Held] = field(default_factory=dict)
    ports_held: dict[int, AttemptId] = field(default_factory=dict)
    finished: deque[WorkloadId] = field(default_factory=deque)
    touched: dict[WorkloadId, None] = field(default_factory=dict)
    impossible: dict[Demand, tuple[Reason, ...]] = field(default_factory=dict)
    gateways: dict[GatewayEpoch, None] = field(default_factory=dict)
    loads: dict[GatewayEpoch, LoadRow] = field(default_factory=dict)
    drains: dict[AttemptId, DrainRow] = field(default_factory=dict)
    attended: dict[WorkloadId, None] = field(default_factory=dict)
    dependents: dict[WorkloadId, dict[WorkloadId, None]] = field(default_factory=dict)
    ailing: dict[NodeId, None] = field(default_factory=dict)
    unread_checks: dict[AttemptId, None] = field(default_factory=dict)
    waits: dict[str, tuple[int, ...]] = field(default_factory=dict)
    idle: dict[AttemptId, None] = field(default_factory=dict)
    promises: dict[tuple[WorkloadId, int], PromiseRow] = field(default_factory=dict)

    def digest(self) -> str:
        """Return the SHA-256 of everything folded; equal logs give equal digests in any process.

        Cost: O(state); for checks, not for every cycle.
        """
        return digest_of(
            {
                "sequence": self.sequence,
                "declared": self.declared,
                "nodes": [self.nodes.names, self.nodes.rows, self.nodes.columns.tolist()],
                "workloads": self.workloads,
                "attempts": self.attempts,
                "steps": list(self.steps),
                "waiting": {demand: list(line) for demand, line in self.waiting.lines.items()},
                "due": [self.backing_off.entries, self.time_limits.entries, self.deadlines.entries],
                "unsettled": list(self.unsettled),
                "held": self.held_by_project,
                "ports": self.ports_held,
                "finished": list(self.finished),
                "gateways": list(self.gateways),
                "loads": self.loads,
                "drains": self.drains,
                "attended": list(self.attended),
                "dependents": self.dependents,
                "ailing": [list(self.ailing), self.nodes.absent, list(self.unread_checks)],
                "waits": self.waits,
                "idle": list(self.idle),
                "promises": self.promises,
            }
        )

    def site_of_node(self, node: NodeId) -> Site | None:
        """Return the declared site of a node."""
        return self.declared.site_of(self.zone_of_node(node))

    def zone_of_node(self, node: NodeId) -> str:
        """Return the name of a node's zone, empty while its pool is not declared."""
        row = self.nodes.row(node)
        pool = self.declared.pools.get(row.pool) if row is not None else None
        return pool.zone if pool is not None else ""

    def latest_attempt(self, unit: UnitRow) -> AttemptRow | None:
        """Return the latest attempt of a unit, None before its first."""
        return self.attempts.get(unit.attempt) if unit.attempt is not None else None

    def live_attempts(self, row: WorkloadRow) -> list[AttemptRow]:
        """Return the attempts of a workload that still hold something, by unit."""
        found = (self.latest_attempt(unit) for unit in row.units)
        return [attempt for attempt in found if attempt is not None and attempt.is_live]


def empty_state() -> State:
    """Return the state before the first event."""
    return State()


def live_steps(state: State) -> Sequence[tuple[StepId, NodeId]]:
    """Return every task not proved ended with its node, in order of placement."""
    return [(task.step, task.node) for task in state.steps.values()]


def ticket_of(row: WorkloadRow, unit: UnitRow) -> Ticket:
    """Return a unit's place in its line."""
    submission = row.submission
    return Ticket(submission.submitted_at_ns, submission.id, unit.unit)


def back_off_of(row: WorkloadRow, unit: UnitRow) -> Due:
    """Return the entry of a unit that waits for a time."""
    return Due(unit.not_before_ns, row.submission.id, unit.unit)

"""One decision: reactions to what happened, then waiting units to nodes, in the order of the law.

Never mutates the state, looks at no clock and rolls no dice: equal states, times and policies give
bit-identical plans in any process.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from moulin.domain.batch_events import PreemptionDecided, UnitFinished
from moulin.domain.events import (
    AttemptDrainDecided,
    AttemptPlaced,
    AttemptStopDecided,
    Payload,
    ReplicasDecided,
    UnitRequeued,
    WorkloadFinished,
)
from moulin.domain.health import Verdict
from moulin.domain.ids import AttemptId, NodeId, WorkloadId, attempt_id
from moulin.domain.node_events import NodeJudged
from moulin.domain.plan import Finish, FinishUnit, Place, Plan, Requeue, Stop, TaskPlacement
from moulin.domain.replica_events import SuccessionDecided
from moulin.domain.workload import WorkloadKind
from moulin.scheduler.demand import Demand, options
from moulin.scheduler.policy import SchedulerPolicy
from moulin.scheduler.preempt import Preempting, allows_preemption, promised
from moulin.scheduler.preflight import check_s, misfit
from moulin.scheduler.queues import Line, Ticket
from moulin.scheduler.quota import QuotaCheck, wanted_by
from moulin.scheduler.room import Chosen, Room
from moulin.scheduler.rows import Held, WorkloadRow
from moulin.scheduler.scaling import drains, scales
from moulin.scheduler.settle import Reaction, react
from moulin.scheduler.state import State
from moulin.scheduler.walltime import successions
from moulin.scheduler.wellbeing import judged

ALL_UNITS: Final = -1


def decide(state: State, now_ns: int, policy: SchedulerPolicy) -> Plan:
    """Return everything that follows from the state at `now_ns`.

    Gangs are placed whole or not at all. A unit that waits for capacity keeps nodes free for
    itself (see `Room.reserve`); one that waits only for its own quota or zones holds up nobody.

    Units:  `now_ns` in ns UTC, not before the last event's time.
    Order:  waiting units by (priority desc, submitted_at, id, unit); nodes by best fit, then name.
    Cost:   O(demands · nodes) vectorised for candidates, then about constant per placed task.
    """
    reactions = list(react(state, now_ns, policy))
    verdicts = tuple(judged(state, now_ns, policy))
    finishes = tuple(item for item in reactions if isinstance(item, Finish))
    leaving = tuple(drains(state, now_ns))
    placing = Placing(
        state,
        now_ns,
        policy,
        ending=ends_of(reactions),
        leaving=frozenset(item.attempt for item in leaving),
        shunned=[
            *(each.node for each in verdicts if each.verdict is Verdict.QUARANTINED),
            *checked_nodes(state, reactions),
        ],
    )
    if allows_preemption(state):
        stopping = frozenset(item.attempt for item in reactions if isinstance(item, Stop))
        placing.preempting = Preempting(
            state, now_ns, policy, stopping | frozenset(item.attempt for item in leaving)
        )
    places = tuple(placing.places())
    preempting = placing.preempting
    return Plan(
        now_ns=now_ns,
        input_sequence=state.sequence,
        places=places,
        stops=(
            *(item for item in reactions if isinstance(item, Stop)),
            *(preempting.stops if preempting is not None else ()),
        ),
        requeues=tuple(item for item in reactions if isinstance(item, Requeue)),
        finishes=finishes,
        scales=tuple(scales(state, now_ns, policy)),
        drains=leaving,
        unit_finishes=tuple(item for item in reactions if isinstance(item, FinishUnit)),
        judgements=verdicts,
        successions=tuple(successions(state, now_ns)),
        preemptions=tuple(preempting.preemptions) if preempting is not None else (),
    )


def plan_events(plan: Plan) -> tuple[Payload, ...]:
    """Return a plan as the events to append, in order.

    Verdicts on nodes, ends (of elements before those of arrays), retries, who gives way, stops,
    placements, then replicas that leave, new numbers of them and successors: these may take units out
    of lines that the placements were taken from.
    """
    return (*_endings(plan), *_beginnings(plan))


def _endings(plan: Plan) -> list[Payload]:
    events: list[Payload] = [
        NodeJudged(node=item.node, verdict=item.verdict, reason=item.reason)
        for item in plan.judgements
    ]
    events.extend(
        UnitFinished(
            workload=item.workload,
            unit=item.unit,
            state=item.state,
            reason=item.reason,
            ended_at_ns=item.ended_at_ns,
        )
        for item in plan.unit_finishes
    )
    events.extend(
        WorkloadFinished(
            workload=item.workload,
            state=item.state,
            reason=item.reason,
            ended_at_ns=item.ended_at_ns,
        )
        for item in plan.finishes
    )
    events.extend(
        UnitRequeued(
            workload=item.workload,
            unit=item.unit,
            generation=item.generation,
            not_before_ns=item.not_before_ns,
            reason=item.reason,
        )
        for item in plan.requeues
    )
    return events


def _beginnings(plan: Plan) -> list[Payload]:
    events: list[Payload] = [
        PreemptionDecided(
            workload=item.workload,
            unit=item.unit,
            nodes=item.nodes,
            attempts=item.attempts,
            until_ns=item.until_ns,
        )
        for item in plan.preemptions
    ]
    events.extend(
        AttemptStopDecided(attempt=item.attempt, cause=item.cause, grace_s=item.grace_s)
        for item in plan.stops
    )
    events.extend(
        AttemptPlaced(
            attempt=item.attempt,
            workload=item.workload,
            unit=item.unit,
            generation=item.generation,
            tasks=item.tasks,
            choice=item.choice,
            check_s=item.check_s,
        )
        for item in plan.places
    )
    events.extend(
        AttemptDrainDecided(attempt=item.attempt, cause=item.cause, until_ns=item.until_ns)
        for item in plan.drains
    )
    events.extend(
        ReplicasDecided(workload=item.workload, replicas=item.replicas, reason=item.reason)
        for item in plan.scales
    )
    events.extend(
        SuccessionDecided(attempt=item.attempt, ends_at_ns=item.ends_at_ns, reason=item.reason)
        for item in plan.successions
    )
    return events


def checked_nodes(state: State, reactions: Iterable[Reaction]) -> Iterator[NodeId]:
    """Yield the nodes that were checked for a gang that may wait only now: nobody else gets them yet."""
    for item in reactions:
        if isinstance(item, Requeue):
            unit = state.workloads[item.workload].units[item.unit]
            attempt = state.latest_attempt(unit)
            if attempt is not None and attempt.is_check:
                yield from (task.node for task in attempt.tasks if task.node in state.nodes.index)


def ends_of(reactions: Iterable[Reaction]) -> set[tuple[WorkloadId, int]]:
    """Return which units end by a decision, so that it places none of them; -1 means every one."""
    whole = {(item.workload, ALL_UNITS) for item in reactions if isinstance(item, Finish)}
    return whole | {
        (item.workload, item.unit) for item in reactions if isinstance(item, FinishUnit)
    }


class Entry(NamedTuple):
    """A waiting unit in the order of decision; `position` is its place in `line`, -1 for none."""

    priority_negated: int
    ticket: Ticket
    position: int
    demand: Demand


class Placing:
    """The placing half of one decision."""

    def __init__(
        self,
        state: State,
        now_ns: int,
        policy: SchedulerPolicy,
        *,
        ending: set[tuple[WorkloadId, int]],
        leaving: frozenset[AttemptId] = frozenset(),
        shunned: Sequence[NodeId] = (),
    ) -> None:
        self.state = state
        self.now_ns = now_ns
        self.policy = policy
        self.ending = ending
        self.leaving = leaving
        self.shunned = shunned
        self._room: Room | None = None
        self.preempting: Preempting | None = None
        self._promised: dict[Demand, list[int]] = {}
        for demand, nodes in promised(state, now_ns):
            here = (state.nodes.index[node] for node in nodes if node in state.nodes.index)
            self._promised.setdefault(demand, []).extend(here)
        self.quota = QuotaCheck(state)
        self.blocked: set[Demand] = set()
        self.reservations = 0
        self._placed: Counter[WorkloadId] = Counter()
        self._zones: dict[tuple[object, ...], tuple[str, ...]] = {}

    @property
    def room(self) -> Room:
        """The free capacity, copied when it is first needed: most cycles have nothing to place."""
        if self._room is None:
            self._room = Room(self.state)
            for node in self.shunned:
                self._room.reserved[self.state.nodes.index[node]] = True
        return self._room

    def places(self) -> Iterator[Place]:
        """Yield placements in order until nothing more fits or the plan is full."""
        return itertools.islice(self._run(None), self.policy.places_max)

    def run_before(self, priority: int, ticket: Ticket) -> None:
        """Place only what comes before a unit, so that the unit's own chances can be judged."""
        for _ in self._run((-priority, ticket)):
            pass

    def _run(self, before: tuple[int, Ticket] | None) -> Iterator[Place]:
        heap = self._heap()
        while heap and (before is None or heap[0][:2] < before):
            entry = heap[0]
            place = None if entry.demand in self.blocked else self.attempt(entry.ticket)
            if place is not None:
                yield place
            self._advance(heap, entry)

    def attempt(self, ticket: Ticket) -> Place | None:
        """Place one unit, or remember why units like it cannot be."""
        row = self.state.workloads[ticket.workload]
        unit = row.units[ticket.unit]
        if row.stop_requested_by or unit.is_stopping or self._is_unpaid(row):
            return None
        whole, own = (ticket.workload, ALL_UNITS), (ticket.workload, ticket.unit)
        if whole in self.ending or own in self.ending:
            return None
        if unit.attempt in self.leaving or not row.is_eligible:
            return None  # it waits to come back, and nobody wants it any more, or not yet
        if row.at_most and row.attempts_live + self._placed[ticket.workload] >= row.at_most:
            return None
        return self.place_row(row, ticket.unit)

    def _is_unpaid(self, row: WorkloadRow) -> bool:
        """Say whether the money is spent: what runs of the workload is being stopped."""
        submission, policy = row.submission, self.policy
        return (
            submission.project in policy.projects_exhausted
            or submission.id in policy.workloads_exhausted
        )

    def place_row(self, row: WorkloadRow, unit: int) -> Place | None:
        """Place one unit of a workload if law, zones, hardware, power and quota all allow it.

        Of the alternatives that would do, the first that fits; room is kept for the first that only
        lacks it.
        """
        demand = row.demand_of(row.units[unit])
        zones = self.zones(demand)
        lacking: tuple[Demand, bool] | None = None
        for choice, option in enumerate(options(demand) if zones else ()):
            wanted = wanted_by(option, workloads=int(self.quota.adds_workload(row)))
            if not self.quota.has_room(row, wanted):
                continue
            chosen, is_apart = self._choose(option, zones)
            if not chosen.nodes:
                # Nodes that are kept apart are kept for nobody, and nobody gives way on them.
                lacking = lacking if is_apart else lacking or (option, chosen.is_power)
                continue
            if option.shape.is_whole_node:
                wanted = self._held_by(option, chosen.nodes, wanted.workloads)
                if not self.quota.has_room(row, wanted):
                    continue
            self.quota.take(row, wanted)
            return self._place(row, unit, option, chosen.nodes, choice)
        self.blocked.add(demand)
        if lacking is not None and demand in self._promised:
            self.room.keep(self._promised[demand])
        elif lacking is not None:
            self._wait(row, unit, lacking, zones)
        return None

    def _choose(self, demand: Demand, zones: tuple[str, ...]) -> tuple[Chosen, bool]:
        """Return nodes for a gang, none of which failed a check with another of them lately.

        The flag says that some were left out for that; others may have them.
        """
        chosen = self.room.choose(demand, zones)
        left_out: list[int] = []
        while len(chosen.nodes) > 1:
            node = misfit(self.state, chosen.nodes, self.now_ns)
            if node < 0:
                break
            left_out.append(node)
            self.room.reserved[node] = True
            chosen = self.room.choose(demand, zones)
        if left_out:
            self.room.reserved[left_out] = False
        return chosen, bool(left_out)

    def _check_s(self, row: WorkloadRow, nodes: list[int]) -> int:
        is_job = row.submission.spec.kind is WorkloadKind.JOB
        return check_s(self.state, nodes, self.now_ns) if is_job and len(nodes) > 1 else 0

    def zones(self, demand: Demand) -> tuple[str, ...]:
        """Return the open zones that names and law permit."""
        key = (demand.countries, demand.zones, demand.organisation)
        found = self._zones.get(key)
        if found is None:
            found = self._zones[key] = self.state.declared.open_zones(demand)
        return found

    def _heap(self) -> list[Entry]:
        state = self.state
        heap = [
            Entry(-demand.priority, line.at(0), 0, demand)
            for demand, line in state.waiting.lines.items()
        ]
        for due in state.backing_off.until(self.now_ns):
            row = state.workloads[WorkloadId(due.id)]
            ticket = Ticket(row.submission.submitted_at_ns, row.submission.id, due.unit)
            demand = row.demand_of(row.units[due.unit])
            heap.append(Entry(-demand.priority, ticket, -1, demand))
        heapq.heapify(heap)
        return heap

    def _advance(self, heap: list[Entry], entry: Entry) -> None:
        line: Line | None = self.state.waiting.lines.get(entry.demand)
        following = entry.position + 1
        if entry.position < 0 or line is None or entry.demand in self.blocked:
            heapq.heappop(heap)
        elif following < len(line):
            successor = Entry(entry.priority_negated, line.at(following), following, entry.demand)
            heapq.heapreplace(heap, successor)
        else:
            heapq.heappop(heap)

    def _wait(
        self, row: WorkloadRow, unit: int, lacking: tuple[Demand, bool], zones: tuple[str, ...]
    ) -> None:
        """Keep for a unit what it lacks: power, nodes that others give up for it, or nodes as they drain."""
        demand, is_power = lacking
        if is_power:
            self.room.freeze_power(demand, zones)
        elif self.reservations < self.policy.reservations_max:
            self.reservations += 1
            nodes: list[int] = []
            if self.preempting is not None:
                nodes = self.preempting.make_room(row, unit, demand, zones, self.room)
            if nodes:
                self.room.keep(nodes)
            else:
                self.room.reserve(demand, zones)

    def _held_by(self, demand: Demand, nodes: list[int], workloads: int) -> Held:
        held = [self.room.held_by(demand.shape, node) for node in nodes]
        return Held(
            sum(cpu for cpu, _, _ in held),
            sum(memory for _, memory, _ in held),
            sum(devices for _, _, devices in held),
            workloads,
        )

    def _place(
        self, row: WorkloadRow, unit: int, demand: Demand, nodes: list[int], choice: int
    ) -> Place:
        names, shape = self.state.nodes.names, demand.shape
        generation = row.units[unit].generation
        workload = row.submission.id
        if row.at_most:
            self._placed[workload] += 1
        return Place(
            attempt=attempt_id(workload, unit, generation),
            workload=workload,
            unit=unit,
            generation=generation,
            tasks=tuple(
                TaskPlacement(rank=rank, node=names[node], devices=self.room.take(shape, node))
                for rank, node in enumerate(nodes)
            ),
            choice=choice,
            check_s=self._check_s(row, nodes),
        )

"""Which running work gives way to work of a higher priority: as little as makes that fit, or nothing.

Only where the operator allows it, and never for what would not fit even then. What is lost is what
the attempts have held since they started. Exact where every attempt in question is one task on one
node; where gangs give way it is irreducible (nobody of it could stay), not always the least.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from moulin.domain.factory import PreemptionScope
from moulin.domain.ids import AttemptId, NodeId, WorkloadId
from moulin.domain.plan import Preempt, Stop, StopCause
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.workload import AttemptState, WorkloadKind
from moulin.scheduler.demand import Demand, Shape
from moulin.scheduler.nodes import Column, draw_mw
from moulin.scheduler.policy import SchedulerPolicy
from moulin.scheduler.room import Room
from moulin.scheduler.rows import AttemptRow, TaskRow, UnitRow, WorkloadRow
from moulin.scheduler.state import State

NS_PER_S: Final = 1_000_000_000
# How long after their grace the nodes of those that give way are kept: their ends take a moment to be seen.
PROMISE_S: Final = 120
# Every set of so many attempts on a node is tried; of more, the cheapest are taken until it fits.
EXACT_MAX: Final = 10
# So many gangs are tried as the first to give way.
GANGS_MAX: Final = 16
# So many nodes are looked at for one gang, those with most free first.
NODES_MAX: Final = 512


class Loss(NamedTuple):
    """Work lost, in the order in which it counts: device time, CPU time, how many start again.

    Of what is equal in these, lower priorities go first.
    """

    device_ns: int = 0
    cpu_milli_ns: int = 0
    attempts: int = 0
    priorities: int = 0

    def plus(self, other: "Loss") -> "Loss":
        """Return the sum of two losses."""
        return Loss(*(mine + its for mine, its in zip(self, other, strict=True)))


class Amounts(NamedTuple):
    """What is free of a node, or becomes free."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    devices: int = 0
    tasks: int = 0

    def plus(self, other: "Amounts") -> "Amounts":
        """Return the sum of two amounts."""
        return Amounts(*(mine + its for mine, its in zip(self, other, strict=True)))


@dataclass(slots=True)
class Giver:
    """An attempt that may give way, with what it would free by node index."""

    attempt: AttemptId
    loss: Loss
    frees: dict[int, Amounts]


@dataclass(slots=True)
class Choice:
    """Nodes for a gang and who gives way on them, while they are being chosen."""

    nodes: list[int] = field(default_factory=list)
    givers: dict[AttemptId, Giver] = field(default_factory=dict)

    @property
    def loss(self) -> Loss:
        """What is lost in all."""
        total = Loss()
        for giver in self.givers.values():
            total = total.plus(giver.loss)
        return total


class Preempting:
    """The preempting part of one decision; `stops` and `preemptions` are what it decided so far."""

    def __init__(
        self, state: State, now_ns: int, policy: SchedulerPolicy, stopping: frozenset[AttemptId]
    ) -> None:
        """Judge from a state; attempts that are `stopping` by this decision are as good as ended."""
        self._state = state
        self._now_ns = now_ns
        self._policy = policy
        self._stopping = set(stopping)
        self.preemptions: list[Preempt] = []
        self.stops: list[Stop] = []

    def make_room(
        self, row: WorkloadRow, unit: int, demand: Demand, zones: tuple[str, ...], room: Room
    ) -> list[int]:
        """Decide who gives way to a unit that lacks room and return its nodes; none when nobody can.

        What gave way itself waits for room like anybody else: one preemption never leads to another.

        Order:  the least loss, then domain and node by name.
        Cost:   O(live attempts + nodes looked at), and 2**EXACT_MAX for each of these at most.
        """
        before = self._state.latest_attempt(row.units[unit])
        if before is not None and before.state is AttemptState.PREEMPTED:
            return []
        ending, givers = self._around(row)
        if not givers:
            return []
        best: Choice | None = None
        for nodes in self._domains(room, demand, zones, ending, givers):
            found = _Search(room, demand, ending, givers, nodes).choose()
            if found is not None and (best is None or found.loss < best.loss):
                best = found
        if best is None or not best.givers:
            return []  # whoever ends anyway frees enough: that is waited for
        self._decide(row, unit, best)
        return best.nodes

    def _decide(self, row: WorkloadRow, unit: int, choice: Choice) -> None:
        graces = []
        for attempt in sorted(choice.givers):
            found = self._state.attempts[attempt]
            spec = self._state.workloads[WorkloadId(found.workload)].submission.spec
            grace_s = spec.stop_grace_s
            graces.append(grace_s)
            self._stopping.add(attempt)
            self.stops.append(Stop(attempt=attempt, cause=StopCause.PREEMPTED, grace_s=grace_s))
        names = self._state.nodes.names
        self.preemptions.append(
            Preempt(
                workload=row.submission.id,
                unit=unit,
                nodes=tuple(sorted(names[node] for node in choice.nodes)),
                attempts=tuple(sorted(choice.givers)),
                until_ns=self._now_ns + (max(graces) + PROMISE_S) * NS_PER_S,
            )
        )

    def _around(self, row: WorkloadRow) -> tuple[dict[int, Amounts], list[Giver]]:
        """Return what ends anyway, by node, and who may give way to a workload."""
        ending: dict[int, Amounts] = defaultdict(Amounts)
        givers: list[Giver] = []
        for attempt in self._state.attempts.values():
            if not attempt.is_live:
                continue
            other = self._state.workloads[WorkloadId(attempt.workload)]
            if attempt.stop_cause is not None or attempt.id in self._stopping:
                for node, freed in self._frees(attempt).items():
                    ending[node] = ending[node].plus(freed)
            elif self._gives_way(attempt, other, row):
                loss = self._loss(attempt, other.demand.priority)
                givers.append(Giver(attempt.id, loss, self._frees(attempt)))
        return ending, givers

    def _gives_way(self, attempt: AttemptRow, other: WorkloadRow, row: WorkloadRow) -> bool:
        spec = other.submission.spec
        if (
            attempt.is_check
            or spec.kind is not WorkloadKind.JOB
            or other.demand.priority >= row.demand.priority
        ):
            return False
        project = self._state.declared.projects.get(other.submission.project)
        if project is not None and not project.is_preemptible:
            return False
        is_own = other.submission.project == row.submission.project
        if not all(self._is_allowed(task, is_own=is_own) for task in attempt.tasks):
            return False
        return self._ran_ns(attempt) >= self._calm_ns(other.units[attempt.unit])

    def _is_allowed(self, task: TaskRow, *, is_own: bool) -> bool:
        """Whether work of a task's node may be taken away, and its end would be seen."""
        node = self._state.nodes.row(task.node)
        pool = self._state.declared.pools.get(node.pool) if node is not None else None
        if node is None or pool is None or not node.is_reachable:
            return False
        allowed = {PreemptionScope.ALL: True, PreemptionScope.PROJECT: is_own}
        return allowed.get(pool.preemption, False)

    def _calm_ns(self, unit: UnitRow) -> int:
        """Return how long an attempt is left alone: longer each time, so that it gets somewhere."""
        if not unit.preemptions:
            return 0
        doubled = self._policy.preempt_calm_s << min(unit.preemptions - 1, 30)
        return min(doubled, self._policy.preempt_calm_max_s) * NS_PER_S

    def _ran_ns(self, attempt: AttemptRow) -> int:
        return max(0, self._now_ns - attempt.started_at_ns) if attempt.started_at_ns else 0

    def _loss(self, attempt: AttemptRow, priority: int) -> Loss:
        ran_ns = self._ran_ns(attempt)
        devices = sum(len(task.devices) for task in attempt.tasks)
        cpu_milli = sum(task.cpu_milli for task in attempt.tasks)
        return Loss(devices * ran_ns, cpu_milli * ran_ns, 1, priority)

    def _frees(self, attempt: AttemptRow) -> dict[int, Amounts]:
        index = self._state.nodes.index
        return {
            index[task.node]: self._freed_by(task) for task in attempt.tasks if not task.is_ended
        }

    def _freed_by(self, task: TaskRow) -> Amounts:
        """Return what a task frees by its end: of a node that is given as a whole, all of it."""
        row = self._state.nodes.row(task.node)
        if row is not None and row.capacity.is_exclusive:
            has = row.capacity
            return Amounts(has.cpu_milli, has.memory_bytes, has.accelerators, 1)
        return Amounts(task.cpu_milli, task.memory_bytes, len(task.devices), 1)

    def _domains(
        self,
        room: Room,
        demand: Demand,
        zones: tuple[str, ...],
        ending: dict[int, Amounts],
        givers: list[Giver],
    ) -> Iterator[list[int]]:
        """Yield, of each domain with enough of them, the nodes that would fit a task in the end."""
        later = room.free.copy()
        for node, freed in itertools.chain(
            ending.items(), *(giver.frees.items() for giver in givers)
        ):
            later[:, node] += (*freed[:3], -freed.tasks)
        fits = room.suited(demand.shape, zones, later) & ~room.reserved
        fits &= room.columns[Column.IS_PLACEABLE] > 0
        if demand.shape.is_whole_node:
            fits &= later[3] == 0
        nodes = np.flatnonzero(fits)
        domains = room.columns[Column.DOMAIN][nodes]
        for domain in np.unique(domains).tolist():
            here = nodes[domains == domain].tolist()
            if len(here) >= demand.tasks:
                here.sort(key=lambda node: (-room.devices[node], -room.cpu[node], node))
                yield here[: max(NODES_MAX, demand.tasks)]


class _Search:
    """The choice of nodes and givers for one gang in one domain."""

    def __init__(
        self,
        room: Room,
        demand: Demand,
        ending: dict[int, Amounts],
        givers: Sequence[Giver],
        nodes: list[int],
    ) -> None:
        self._room = room
        self._shape: Shape = demand.shape
        self._tasks = demand.tasks
        self._ending = ending
        self._nodes = nodes
        self._givers_on: dict[int, list[Giver]] = defaultdict(list)
        for giver in sorted(givers, key=lambda each: (each.loss, each.attempt)):
            for node in giver.frees:
                self._givers_on[node].append(giver)

    def choose(self) -> Choice | None:
        """Return the nodes with the least loss found, None where power keeps the gang out.

        Where gangs may give way, each of the cheapest is also tried as the first to: all its nodes
        are then free, which no look at one node shows.
        """
        gangs = {
            giver.attempt: giver
            for givers in self._givers_on.values()
            for giver in givers
            if len(giver.frees) > 1
        }
        cheapest = sorted(gangs.values(), key=lambda each: (each.loss, each.attempt))[:GANGS_MAX]
        found = [self._choose({}), *(self._choose({each.attempt: each}) for each in cheapest)]
        known = [choice for choice in found if choice is not None]
        return min(known, key=lambda choice: (choice.loss, sorted(choice.givers)), default=None)

    def _choose(self, first: dict[AttemptId, Giver]) -> Choice | None:
        choice = Choice(givers=first)
        while len(choice.nodes) < self._tasks:
            offers = (
                (self._cheapest(node, choice.givers), node)
                for node in self._nodes
                if node not in choice.nodes
            )
            known = [(_total(found), node, found) for found, node in offers if found is not None]
            if not known:
                return None
            _, node, found = min(known, key=lambda each: each[:2])
            choice.nodes.append(node)
            choice.givers |= {giver.attempt: giver for giver in found}
        self._spare(choice)
        return choice if self._is_within_power(choice) else None

    def _cheapest(self, node: int, taken: dict[AttemptId, Giver]) -> tuple[Giver, ...] | None:
        """Return who else has to give way for one task on a node, None when that is not enough."""
        free = self._free(node, taken.values())
        if self._fits(node, free):
            return ()
        others = [giver for giver in self._givers_on[node] if giver.attempt not in taken]
        if len(others) > EXACT_MAX:
            return self._greedy(node, free, others)
        found = [
            some
            for count in range(1, len(others) + 1)
            for some in itertools.combinations(others, count)
            if self._fits(node, _freed(free, node, some))
        ]
        return min(found, key=lambda some: (_total(some), _ids(some)), default=None)

    def _greedy(self, node: int, free: Amounts, others: list[Giver]) -> tuple[Giver, ...] | None:
        some: list[Giver] = []
        for giver in others:
            some.append(giver)
            if self._fits(node, _freed(free, node, some)):
                break
        else:
            return None
        for giver in reversed(tuple(some)):
            rest = [each for each in some if each is not giver]
            if self._fits(node, _freed(free, node, rest)):
                some = rest
        return tuple(some)

    def _spare(self, choice: Choice) -> None:
        """Let everybody stay whose end turned out not to be needed, the dearest first."""
        dearest = sorted(choice.givers.values(), key=lambda each: (each.loss, each.attempt))
        for giver in reversed(dearest):
            rest = [each for each in choice.givers.values() if each is not giver]
            if all(self._fits(node, self._free(node, rest)) for node in choice.nodes):
                del choice.givers[giver.attempt]

    def _free(self, node: int, givers: Iterable[Giver]) -> Amounts:
        room = self._room
        now = Amounts(room.cpu[node], room.memory[node], room.devices[node], -room.tasks[node])
        return _freed(now.plus(self._ending.get(node, Amounts())), node, givers)

    def _fits(self, node: int, free: Amounts) -> bool:
        shape = self._shape
        return (
            free.cpu_milli >= shape.cpu_milli
            and free.memory_bytes >= shape.memory_bytes
            and free.devices >= shape.accelerators
            and not (shape.is_whole_node and free.tasks < 0)
        )

    def _is_within_power(self, choice: Choice) -> bool:
        """Whether the site carries the gang when all that ends has ended."""
        power = self._room.power.get(int(self._room.columns[Column.SITE, choice.nodes[0]]))
        if power is None:
            return True
        touched = {*choice.nodes, *self._ending}
        touched |= {node for giver in choice.givers.values() for node in giver.frees}
        site = self._room.columns[Column.SITE]
        added_mw = sum(
            self._draw_after(node, choice) - self._draw_now(node)
            for node in sorted(touched)
            if site[node] == site[choice.nodes[0]]
        )
        return power.carries(added_mw)

    def _draw_now(self, node: int) -> int:
        room = self._room
        return self._draw(node, room.cpu[node], room.devices[node])

    def _draw_after(self, node: int, choice: Choice) -> int:
        free = self._free(node, choice.givers.values())
        cpu, _, devices = (
            self._room.held_by(self._shape, node) if node in choice.nodes else (0, 0, 0)
        )
        return self._draw(node, free.cpu_milli - cpu, free.devices - devices)

    def _draw(self, node: int, cpu_free: int, devices_free: int) -> int:
        capacity = self._room.state.nodes.rows[node].capacity
        span_mw = max(capacity.peak_mw - capacity.idle_mw, 0)
        return draw_mw(
            span_mw,
            (capacity.cpu_milli - cpu_free, capacity.cpu_milli),
            (capacity.accelerators - devices_free, capacity.accelerators),
        )


def allows_preemption(state: State) -> bool:
    """Whether the operator lets any pool take work away."""
    return any(
        pool.preemption is not PreemptionScope.NONE for pool in state.declared.pools.values()
    )


def promised(state: State, now_ns: int) -> Iterator[tuple[Demand, tuple[NodeId, ...]]]:
    """Yield what units still wait for nodes that others gave them, with these nodes."""
    for (workload, number), promise in state.promises.items():
        row = state.workloads.get(workload)
        if row is None or row.is_final or promise.until_ns <= now_ns or not row.is_eligible:
            continue
        unit = row.units[number]
        if unit.is_waiting and not unit.is_withheld:
            yield row.demand_of(unit), promise.nodes


def preemption_reasons(state: State, row: WorkloadRow, now_ns: int) -> Iterator[Reason]:
    """Yield who takes the place of what runs or ran, and who makes room for what waits."""
    for unit in row.units:
        attempt = state.latest_attempt(unit)
        promise = state.promises.get((row.submission.id, unit.unit))
        if unit.is_waiting and promise is not None and promise.until_ns > now_ns:
            found = [state.attempts.get(name) for name in promise.attempts]
            live = [each for each in found if each is not None and each.is_live]
            if live:
                yield _makes_room(state, row, live)
        if attempt is None or not attempt.preempted_by or unit.final is not None:
            continue
        if attempt.is_live:
            yield _gives_way(ReasonCode.GIVES_WAY, attempt)
        elif unit.is_waiting and attempt.state is AttemptState.PREEMPTED:
            yield _gives_way(ReasonCode.PREEMPTED_BY, attempt)


def preempted_by(attempt: AttemptRow) -> Reason:
    """Return who took an attempt's place."""
    return _gives_way(ReasonCode.PREEMPTED_BY, attempt)


def _gives_way(code: ReasonCode, attempt: AttemptRow) -> Reason:
    parameters = {"generation": str(attempt.generation), "workload": attempt.preempted_by}
    return Reason(code=code, parameters=parameters)


def _makes_room(state: State, row: WorkloadRow, live: list[AttemptRow]) -> Reason:
    lowest = max(state.workloads[WorkloadId(attempt.workload)].demand.priority for attempt in live)
    return Reason(
        code=ReasonCode.MAKES_ROOM,
        parameters={
            "workloads": ", ".join(sorted({attempt.workload for attempt in live})),
            "priority": str(lowest),
            "own": str(row.demand.priority),
        },
    )


def _freed(free: Amounts, node: int, givers: Iterable[Giver]) -> Amounts:
    for giver in givers:
        free = free.plus(giver.frees.get(node, Amounts()))
    return free


def _total(givers: Sequence[Giver]) -> Loss:
    total = Loss()
    for giver in givers:
        total = total.plus(giver.loss)
    return total


def _ids(givers: Sequence[Giver]) -> tuple[AttemptId, ...]:
    return tuple(giver.attempt for giver in givers)

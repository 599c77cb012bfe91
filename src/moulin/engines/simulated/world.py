"""A world in memory in which tasks run without programs; it outlives any control plane over it.

It decides when a simulated task starts and ends, from its environment and a clock handed in, and
holds the faults a harness injects. It never runs a program, never answers with tokens, and is
called simulated wherever it is shown.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Final

from moulin.domain.errors import EngineRefused, EngineUnavailable, InUse
from moulin.domain.health import NodeReading
from moulin.domain.ids import NodeId, StepId
from moulin.domain.observation import SEEN_PHASES, Claim, NodeCapacity, Observation, TaskPhase
from moulin.domain.plan import StartStep
from moulin.ports.clock import Clock

DURATION_VARIABLE: Final = "MOULIN_SIMULATED_S"
EXIT_VARIABLE: Final = "MOULIN_SIMULATED_EXIT"
IGNORES_TERM_VARIABLE: Final = "MOULIN_SIMULATED_IGNORES_TERM"
EVIDENCE: Final = "simulated"
_NS_PER_S: Final = 1_000_000_000
_TERMINATED: Final = 128 + 15
_KILLED: Final = 128 + 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What really happened to one step in the world; `ended_at_ns` 0 while it runs."""

    step: StepId
    node: NodeId
    started_at_ns: int
    ended_at_ns: int


@dataclass(slots=True)
class _Task:
    step: StartStep
    node: NodeId
    claim: Claim
    started_at_ns: int
    runs_at_ns: int
    phase: TaskPhase
    exit_code: int | None = None
    ended_at_ns: int = 0
    evidence: str = EVIDENCE
    run: int = 0  # where it is in the world's history


class World:
    """Nodes, tasks and faults. Hooks for a harness are the methods from `set_reachable` on."""

    def __init__(
        self, clock: Clock, nodes: Iterable[NodeCapacity], *, start_delay_ns: int = 0
    ) -> None:
        """Make a world at rest; tasks run `start_delay_ns` after their start."""
        self._clock = clock
        self._nodes = {node.node: node for node in nodes}
        self._start_delay_ns = start_delay_ns
        self._tasks: dict[StepId, _Task] = {}
        self._fenced: set[StepId] = set()
        self._tasks_on: dict[NodeId, dict[StepId, None]] = {node: {} for node in self._nodes}
        # (when, sequence, what): the sequence keeps equal times in order of arrival.
        self._due: list[tuple[int, int, Callable[[int], None]]] = []
        self._sequence = 0
        self._changed: dict[StepId, None] = {}
        self._is_reachable = True
        self._lost_replies = 0
        self._readings: dict[NodeId, NodeReading] = {}
        self.history: list[Run] = []

    # What an engine does to the world.

    def start(self, step: StartStep) -> Claim:
        """Start a step once; O(log n). Raises `EngineRefused`, `EngineUnavailable` as the port."""
        self.advance()
        node = self._node_of(step)
        self._require_reachable(step.step, node.node)
        if step.step in self._fenced:
            raise EngineRefused(
                f"start {step.step}: it was stopped before it started", hint="start a new attempt"
            )
        task = self._tasks.get(step.step)
        if task is None:
            task = self._begin(step, node)
        self._lose_reply(step.step)
        return task.claim

    def stop(self, step: StepId, grace_s: int) -> None:
        """End a task now, or after the grace when it ignores being asked; fence an unknown one."""
        self.advance()
        task = self._tasks.get(step)
        self._require_reachable(step, task.node if task else None)
        if task is None:
            self._fenced.add(step)
        elif task.phase in SEEN_PHASES:
            if task.step.task.env.get(IGNORES_TERM_VARIABLE):
                due_ns = self._clock.now_ns() + grace_s * _NS_PER_S
                self._at(due_ns, lambda at_ns: self._exit(task, at_ns, _KILLED))
            else:
                self._exit(task, self._clock.now_ns(), _TERMINATED)
        self._lose_reply(step)

    def observe(self, step: StepId) -> Observation:
        """Return the true reading of a step, or that it cannot be read; O(1) after `advance`."""
        now_ns = self._clock.now_ns()
        task = self._tasks.get(step)
        if not self._is_reachable or (task and not self._nodes[task.node].is_reachable):
            words = "simulated engine unreachable"
            phase = TaskPhase.UNREACHABLE
            return Observation(step=step, phase=phase, at_ns=now_ns, evidence=words)
        if task is None:
            words = "stopped before it started" if step in self._fenced else "never started"
            phase = TaskPhase.ABSENT
            return Observation(step=step, phase=phase, at_ns=now_ns, evidence=words)
        ran_ns = max(0, (task.ended_at_ns or now_ns) - task.runs_at_ns)
        has_run = task.phase is not TaskPhase.STARTING
        return Observation(
            step=step,
            phase=task.phase,
            at_ns=now_ns,
            claim=task.claim,
            exit_code=task.exit_code,
            started_at_ns=task.started_at_ns,
            ended_at_ns=task.ended_at_ns,
            cpu_ns=ran_ns * task.step.resources.cpu_milli // 1000,
            memory_bytes_max=task.step.resources.memory_bytes if has_run else 0,
            evidence=task.evidence,
        )

    def capacity(self) -> tuple[NodeCapacity, ...]:
        """Return the nodes in the order they were given."""
        if self._is_reachable:
            return tuple(self._nodes.values())
        return tuple(replace(node, is_reachable=False) for node in self._nodes.values())

    def advance(self) -> None:
        """Let everything happen that is due by now, in order of time."""
        now_ns = self._clock.now_ns()
        while self._due and self._due[0][0] <= now_ns:
            at_ns, _, happen = heapq.heappop(self._due)
            happen(at_ns)

    def next_due_ns(self) -> int | None:
        """Return when something happens next by itself, None when nothing will."""
        return self._due[0][0] if self._due else None

    def take_changed(self) -> tuple[StepId, ...]:
        """Return and clear the readable steps whose phase changed, in order of change."""
        self.advance()
        if not self._is_reachable:
            return ()
        taken = tuple(self._changed)
        self._changed.clear()
        return taken

    def started_steps(self) -> tuple[StepId, ...]:
        """Return every step that was ever started and not forgotten, in order of start."""
        return tuple(self._tasks)

    def live_steps(self) -> tuple[StepId, ...]:
        """Return the steps that start or run, in step order."""
        self.advance()
        return tuple(
            sorted(step for step, task in self._tasks.items() if task.phase in SEEN_PHASES)
        )

    def forget(self, step: StepId) -> None:
        """Drop the record of an ended or fenced step.

        Raises `InUse` while it runs, `EngineUnavailable` while its node is cut off.
        """
        self.advance()
        task = self._tasks.get(step)
        self._require_reachable(step, task.node if task else None)
        if task is not None and task.phase in SEEN_PHASES:
            raise InUse(f"forget {step}: its end is not on record", hint="stop it first")
        if task is not None:
            del self._tasks[step]
            self._tasks_on[task.node].pop(step, None)
        self._changed.pop(step, None)
        self._fenced.discard(step)
        self._lose_reply(step)

    # Hooks for a harness.

    def set_reachable(self, node: NodeId, is_reachable: bool) -> None:  # noqa: FBT001 - a state
        """Cut a node off or reconnect it; its tasks go on unseen."""
        self.advance()
        self._nodes[node] = replace(self._nodes[node], is_reachable=is_reachable)
        self._changed.update(self._tasks_on[node])

    def set_reading(self, reading: NodeReading) -> None:
        """Let a node be read like this from now on."""
        self._readings[reading.node] = reading

    def readings(self) -> tuple[NodeReading, ...]:
        """Return the readings of the nodes that can be reached, as they would be taken now."""
        if not self._is_reachable:
            return ()
        now_ns = self._clock.now_ns()
        return tuple(
            replace(self._readings[node], at_ns=now_ns)
            for node, capacity in self._nodes.items()
            if node in self._readings and capacity.is_reachable
        )

    def set_engine_reachable(self, is_reachable: bool) -> None:  # noqa: FBT001 - a state
        """Cut off or reconnect the whole engine; its tasks go on unseen."""
        self.advance()
        self._is_reachable = is_reachable
        self._changed.update(dict.fromkeys(self._tasks))

    def reboot(self, node: NodeId) -> None:
        """Lose whatever runs on a node; with `set_reachable` this is a lost node that returns."""
        self.advance()
        now_ns = self._clock.now_ns()
        self._sequence += 1
        boot_id = f"{node}-boot-{self._sequence}"
        self._nodes[node] = replace(self._nodes[node], boot_id=boot_id)
        for step in tuple(self._tasks_on[node]):
            task = self._tasks[step]
            if task.phase in SEEN_PHASES:
                task.evidence = "simulated node was restarted (boot id changed)"
                self._end(task, now_ns, TaskPhase.GONE)

    def lose_replies(self, count: int) -> None:
        """Let the next calls take effect without their callers hearing of it."""
        self._lost_replies = count

    def _node_of(self, step: StartStep) -> NodeCapacity:
        node = self._nodes.get(step.nodes[step.rank]) if step.rank < len(step.nodes) else None
        if node is None:
            raise EngineRefused(
                f"start {step.step}: its node is not one of this engine",
                hint="the plan is out of date",
            )
        return node

    def _require_reachable(self, step: StepId, node: NodeId | None) -> None:
        if not self._is_reachable or (node is not None and not self._nodes[node].is_reachable):
            raise EngineUnavailable(
                f"reach the simulated node of {step}: it is cut off", hint="try again later"
            )

    def _lose_reply(self, step: StepId) -> None:
        if self._lost_replies > 0:
            self._lost_replies -= 1
            raise EngineUnavailable(f"hear the answer about {step}", hint="ask again")

    def _begin(self, step: StartStep, node: NodeCapacity) -> _Task:
        duration_ns, exit_code = _behaviour(step)
        self._sequence += 1
        now_ns = self._clock.now_ns()
        task = _Task(
            step=step,
            node=node.node,
            claim=Claim(handle=f"simulated/{self._sequence}", boot_id=node.boot_id),
            started_at_ns=now_ns,
            runs_at_ns=now_ns + self._start_delay_ns,
            phase=TaskPhase.STARTING if self._start_delay_ns else TaskPhase.RUNNING,
            run=len(self.history),
        )
        run = Run(step=step.step, node=node.node, started_at_ns=now_ns, ended_at_ns=0)
        self.history.append(run)
        self._tasks[step.step] = task
        self._tasks_on[node.node][step.step] = None
        self._changed[step.step] = None
        if self._start_delay_ns:
            self._at(task.runs_at_ns, lambda _at_ns: self._run(task))
        if duration_ns is not None:
            self._at(
                task.runs_at_ns + duration_ns, lambda at_ns: self._exit(task, at_ns, exit_code)
            )
        return task

    def _at(self, at_ns: int, happen: Callable[[int], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._due, (at_ns, self._sequence, happen))

    def _run(self, task: _Task) -> None:
        if task.phase is TaskPhase.STARTING:
            task.phase = TaskPhase.RUNNING
            self._changed[task.step.step] = None

    def _exit(self, task: _Task, at_ns: int, exit_code: int) -> None:
        if task.phase in SEEN_PHASES:
            task.exit_code = exit_code
            self._end(task, at_ns, TaskPhase.EXITED)

    def _end(self, task: _Task, at_ns: int, phase: TaskPhase) -> None:
        task.phase = phase
        task.ended_at_ns = at_ns
        self._changed[task.step.step] = None
        self.history[task.run] = replace(self.history[task.run], ended_at_ns=at_ns)


def _behaviour(step: StartStep) -> tuple[int | None, int]:
    """Return how many ns a task runs (None: until stopped) and its exit code."""
    duration = step.task.env.get(DURATION_VARIABLE, "")
    exit_code = step.task.env.get(EXIT_VARIABLE, "0")
    try:
        duration_ns = int(Decimal(duration) * _NS_PER_S) if duration else None
        return duration_ns, int(exit_code)
    except (InvalidOperation, ValueError, OverflowError) as cause:
        raise EngineRefused(
            f"start {step.step}: {DURATION_VARIABLE}={duration!r} and {EXIT_VARIABLE}="
            f"{exit_code!r} must be numbers",
            hint="write seconds such as 2.5 and an exit code such as 1",
        ) from cause

"""The engine over a simulated world; like a control plane's connection, it may be made anew.

It holds nothing of the world, only what was handed out and how observations are disturbed on the
way. It never decides what happens: `World` does.
"""

from collections.abc import Sequence

from moulin.domain.errors import EngineUnavailable, NotFound
from moulin.domain.health import NodeReading
from moulin.domain.ids import NodeId, StepId
from moulin.domain.observation import Claim, LogChunk, NodeCapacity, Observation, TaskPhase
from moulin.domain.plan import StartStep
from moulin.engines.simulated.world import World

_LOG = b"simulated: this task ran no program\n"


class SimulatedEngine:
    """An `Engine` that is also `ListsSteps`, `Forgets` and `ReportsChanges`.

    `is_holding` keeps observations back: none change and `observe` repeats the last one handed
    out. `is_doubling` hands every change out twice. Both are for a harness to set.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.is_holding = False
        self.is_doubling = False
        self._dropped = 0
        self._is_first = True
        self._handed_out: dict[StepId, Observation] = {}

    def drop_observations(self, count: int) -> None:
        """Lose the next changes on their way to the caller; polling still shows the truth."""
        self._dropped = count

    def start(self, step: StartStep) -> Claim:
        """Start the step in the world, at most once."""
        return self.world.start(step)

    def observe(self, steps: Sequence[StepId]) -> tuple[Observation, ...]:
        """Return one observation per step, in order."""
        self.world.advance()
        return tuple(self._observe(step) for step in steps)

    def changes(self) -> tuple[Observation, ...]:
        """Return each step whose phase changed since the last call; the first time, all."""
        if self.is_holding:
            return ()
        steps = self.world.take_changed()
        if self._is_first:
            self._is_first = False
            steps = self.world.started_steps()
        kept = steps[self._dropped :]
        self._dropped -= len(steps) - len(kept)
        found = tuple(self._observe(step) for step in kept)
        return found + found if self.is_doubling else found

    def health(self, nodes: Sequence[NodeId] = ()) -> tuple[NodeReading, ...]:
        """Return what a harness says of the nodes; of others there is nothing to read."""
        found = self.world.readings()
        return tuple(each for each in found if not nodes or each.node in nodes)

    def stop(self, step: StepId, grace_s: int) -> None:
        """End the step in the world, or fence it."""
        self.world.stop(step, grace_s)

    def capacity(self) -> tuple[NodeCapacity, ...]:
        """Return the world's nodes in their order."""
        return self.world.capacity()

    def logs(self, step: StepId, cursor: int, limit_bytes: int) -> LogChunk:
        """Return the one line every simulated task leaves.

        Raises `NotFound` for a step that was never started, `EngineUnavailable` when cut off.
        """
        found = self.world.observe(step)
        if found.phase is TaskPhase.ABSENT:
            raise NotFound(f"read the log of {step}", hint="it was never started here")
        if found.phase is TaskPhase.UNREACHABLE:
            raise EngineUnavailable(f"read the log of {step}: it is cut off", hint="try again")
        start = max(0, cursor)
        data = _LOG[start : start + max(0, limit_bytes)]
        has_ended = found.phase in (TaskPhase.EXITED, TaskPhase.GONE)
        next_cursor = start + len(data)
        is_end = has_ended and next_cursor >= len(_LOG)
        return LogChunk(data=data, next_cursor=next_cursor, is_end=is_end)

    def steps(self) -> tuple[StepId, ...]:
        """Return every step that starts or runs in the world, in step order."""
        return self.world.live_steps()

    def forget(self, step: StepId) -> None:
        """Drop the world's record of an ended step."""
        self._handed_out.pop(step, None)
        self.world.forget(step)

    def _observe(self, step: StepId) -> Observation:
        if self.is_holding:
            words = "no observation arrived yet"
            nothing = Observation(step=step, phase=TaskPhase.UNREACHABLE, at_ns=0, evidence=words)
            return self._handed_out.get(step, nothing)
        found = self.world.observe(step)
        self._handed_out[step] = found
        return found

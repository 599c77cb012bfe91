"""The port every engine implements: five verbs, idempotent by step id.

An engine never retries, never decides policy and never guesses: sequence, retries and timeouts
belong to the control plane. Extra abilities are one-method protocols tested once, at wiring.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from moulin.domain.errors import EngineError
from moulin.domain.health import NodeReading, Quarantine
from moulin.domain.ids import NodeId, StepId
from moulin.domain.observation import Claim, LogChunk, NodeCapacity, Observation
from moulin.domain.plan import StartStep
from moulin.domain.session import Entry, EntryWanted
from moulin.domain.standing import Standing


class Engine(Protocol):
    """Makes placements real."""

    def start(self, step: StartStep) -> Claim:
        """Start the step unless it was ever started; a repeated call returns the same claim.

        Returns when the start is on record, not when the program runs.
        Raises `EngineRefused` when the step can never start here (bad workdir, image without a
        container tool) and `EngineUnavailable` when it cannot be known whether it did.
        """
        ...

    def observe(self, steps: Sequence[StepId]) -> tuple[Observation, ...]:
        """Return one observation per step, in order; never raises for a single bad step."""
        ...

    def stop(self, step: StepId, grace_s: int) -> None:
        """Ask the whole process tree of a step to end; force it after `grace_s`.

        Returns at once; the end is seen by `observe`. Stopping an ended step does nothing;
        stopping a step that was never started fences it, so that a late start cannot run it.
        """
        ...

    def capacity(self) -> tuple[NodeCapacity, ...]:
        """Return the nodes this engine serves, in a stable order."""
        ...

    def logs(self, step: StepId, cursor: int, limit_bytes: int) -> LogChunk:
        """Return at most `limit_bytes` of the step's output from byte `cursor`.

        Raises `NotFound` when the engine has no such step.
        """
        ...


@runtime_checkable
class ListsSteps(Protocol):
    """An engine that can say which steps it still owns, known to the control plane or not."""

    def steps(self) -> tuple[StepId, ...]:
        """Return every step with a live or unreaped process, in step order."""
        ...


@runtime_checkable
class StartsMany(Protocol):
    """An engine for which many starts at once are cheaper than one by one."""

    def start_many(self, steps: Sequence[StartStep]) -> tuple[Claim | EngineError, ...]:
        """Start each step as `start` does; return for each what `start` would return or raise.

        An engine may leave some to a later call, as `EngineUnavailable`, so as to return soon.
        """
        ...


@runtime_checkable
class Forgets(Protocol):
    """An engine that keeps records of ended steps until told otherwise."""

    def forget(self, step: StepId) -> None:
        """Delete logs and records of an ended step whose end is durable in the log.

        A step the engine does not know, or has forgotten, changes nothing: calling again is safe.
        Afterwards the step is as one that was never started, so nobody may start it again.
        Raises `InUse` while the end of a started step is not on record, and `EngineUnavailable`
        when it cannot be known whether it was forgotten.
        """
        ...


@runtime_checkable
class ReportsChanges(Protocol):
    """An engine that knows what changed, so that ten thousand unchanged tasks cost nothing."""

    def changes(self) -> tuple[Observation, ...]:
        """Return an observation of each step whose phase changed since the last call, in order.

        The first call of an instance returns every step it has, so a restarted control plane
        misses nothing that happened before. An observation can be lost after it was handed out:
        a caller that relies on this still polls with `observe` now and then.
        """
        ...


@runtime_checkable
class Extends(Protocol):
    """An engine that has a say in, or wants to know, how long a leased node lasts."""

    def extend(self, step: StepId, time_limit_s: int) -> None:
        """Let a running step last `time_limit_s` in all, counted from its start; never less.

        Calling again is safe. Raises `EngineRefused` when it never will, `EngineUnavailable` when
        it cannot be known whether it does.
        """
        ...


@runtime_checkable
class ReportsHealth(Protocol):
    """An engine that can read how well its nodes are."""

    def health(self, nodes: Sequence[NodeId] = ()) -> tuple[NodeReading, ...]:
        """Return a reading of each of `nodes` (none: all) that can be read, in the order of `capacity`.

        Returns soon: it is called from the cycle. Raises `EngineUnavailable` when nothing can be read.
        """
        ...


@runtime_checkable
class Avoids(Protocol):
    """An engine below which somebody else chooses machines, and can be told which not to choose."""

    def avoid(self, nodes: Mapping[NodeId, Quarantine]) -> None:
        """Know which of its nodes are in quarantine now: all of them, and no others any more.

        Called when that changed, and once on every new instance. Raises `EngineUnavailable` when it has
        to be told again.
        """
        ...


@runtime_checkable
class Enters(Protocol):
    """An engine that lets people go into a running task."""

    def entry(self, step: StepId, wanted: EntryWanted) -> Entry:
        """Return the program to run here that does what is wanted inside the task; starts nothing.

        Raises `NotFound` when the step does not run, `EngineRefused` with the reason where it cannot
        be entered, and `EngineUnavailable` when that cannot be known.
        """
        ...


@runtime_checkable
class TellsStandings(Protocol):
    """An engine that puts what it is given into a queue of somebody else's, and knows what is read there."""

    def standings(self, steps: Sequence[StepId]) -> Mapping[StepId, Standing]:
        """Return where those of `steps` stand of which anything is known; never raises.

        Answers at once from what was read last, and asks nobody: it is called from the cycle, also while
        whoever has the queue is silent. A reading too old to be relied on says so in `failure`.
        """
        ...

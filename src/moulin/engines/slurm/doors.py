"""Puts a replica behind a door of its own, and knows where that door is; decides no readiness by time.

A replica's server listens on the loopback address of its node. Beside it stands a sidecar that lets in
who shows the replica's key, and says where: to the control plane, where the pool names its URL, and in
the step's `ready` file, which is enough where nodes reach nobody. A registration that ran out means that
nobody knows whether the replica answers: it gets no request, and nothing else follows. Decision 0036.
Where nodes are not reached from here, the door is reached over the pool's SSH connection. Decision 0044.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

from moulin.domain.ids import AttemptId
from moulin.domain.observation import NodeCapacity
from moulin.domain.plan import StartStep
from moulin.domain.registration import HEARTBEAT_S
from moulin.engines.slurm.forwards import Forwards
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.task.spool import StepFiles, format_record, read_address, write_whole
from moulin.ports.clock import Clock
from moulin.ports.registrations import Registrations

SIDECAR: Final = str(Path(__file__).parent.parent / "task" / "sidecar.py")


class Doors:
    """The doors of one pool's replicas."""

    def __init__(
        self,
        settings: SlurmSettings,
        registrations: Registrations,
        clock: Clock,
        program: str,
        forwards: Forwards | None = None,
    ) -> None:
        """`program` is the path of the sidecar, as the nodes see it; without `forwards` nodes are reached."""
        self._settings = settings
        self._registrations = registrations
        self._clock = clock
        self._program = program
        self._forwards = forwards

    def behind(self, step: StartStep, files: StepFiles, node: NodeCapacity) -> StartStep:
        """Return an endpoint's step with its program behind a door; any other step as it is.

        Puts its keys into a file that its owner alone reads; raises `OSError`.
        """
        if step.endpoint is None:
            return step
        facts = {
            "replica_key": self._registrations.replica_key(step.attempt),
            "registration_key": self._registrations.registration_key(step.attempt),
            "host": node.address,
            "url": self._settings.control_url,
            "ca": self._settings.control_ca,
            "model": step.endpoint.model,
            "attempt": step.attempt,
            "heartbeat_s": HEARTBEAT_S,
        }
        write_whole(f"{files.directory}/door", format_record(facts), is_durable=False)
        sidecar = (self._settings.python, "-I", "-S", "-E", self._program)
        return replace(step, task=replace(step.task, command=(*sidecar, *step.task.command)))

    def address(self, attempt: AttemptId, files: StepFiles) -> str:
        """Return where a replica answers, as seen from here; empty if that is unknown."""
        own = self._own_address(attempt, files)
        return self._forwards.address(attempt, own) if own and self._forwards is not None else own

    def trouble(self, attempt: AttemptId) -> str:
        """Return why no request goes to a replica that runs, empty when nothing is known against it."""
        if self._registrations.of(attempt) is not None and not self._is_believed(attempt):
            return "its registration ran out"
        return self._forwards.why_not(attempt) if self._forwards is not None else ""

    def word(self, attempt: AttemptId) -> str:
        """Return what is known of the way to a replica, in a form that changes when that does."""
        held = self._registrations.of(attempt)
        said = "" if held is None else held.address if self._is_believed(attempt) else "ran out"
        way = self._forwards.word(attempt) if self._forwards is not None else ""
        return f"{said} by {way}" if way else said

    def tend(self) -> None:
        """See to the ways to replicas, in the background."""
        if self._forwards is not None:
            self._forwards.tend()

    def release(self, attempt: AttemptId) -> None:
        """Give up the way to a replica that has ended."""
        if self._forwards is not None:
            self._forwards.release(attempt)

    def _own_address(self, attempt: AttemptId, files: StepFiles) -> str:
        """Return where its door is over there: as it registered, else as its file says."""
        held = self._registrations.of(attempt)
        if held is None:
            return read_address(files)
        return held.address if self._is_believed(attempt) else ""

    def _is_believed(self, attempt: AttemptId) -> bool:
        held = self._registrations.of(attempt)
        return held is not None and self._clock.now_ns() < held.expires_at_ns

"""Puts a replica behind a door of its own, and knows where that door is; decides no readiness by time.

A replica's server listens on the loopback address of its node. Beside it stands a sidecar that lets in
who shows the replica's key, and says where: to the control plane, where the pool names its URL, and in
the step's `ready` file, which is enough where nodes reach nobody. A registration that ran out means that
nobody knows whether the replica answers: it gets no request, and nothing else follows. Decision 0036.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

from moulin.domain.ids import AttemptId
from moulin.domain.observation import NodeCapacity
from moulin.domain.plan import StartStep
from moulin.domain.registration import HEARTBEAT_S
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.task.spool import StepFiles, format_record, read_address, write_whole
from moulin.ports.clock import Clock
from moulin.ports.registrations import Registrations

SIDECAR: Final = str(Path(__file__).parent.parent / "task" / "sidecar.py")


class Doors:
    """The doors of one pool's replicas."""

    def __init__(
        self, settings: SlurmSettings, registrations: Registrations, clock: Clock, program: str
    ) -> None:
        """`program` is the path of the sidecar, as the nodes see it."""
        self._settings = settings
        self._registrations = registrations
        self._clock = clock
        self._program = program

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
        """Return where a replica answers: as it registered, else as its file says; empty if unknown."""
        held = self._registrations.of(attempt)
        if held is None:
            return read_address(files)
        return held.address if self._is_believed(attempt) else ""

    def has_run_out(self, attempt: AttemptId) -> bool:
        """Say whether a replica had a registration and has not renewed it."""
        return self._registrations.of(attempt) is not None and not self._is_believed(attempt)

    def word(self, attempt: AttemptId) -> str:
        """Return what is known of a replica's registration, in a form that changes when that does."""
        held = self._registrations.of(attempt)
        if held is None:
            return ""
        return held.address if self._is_believed(attempt) else "ran out"

    def _is_believed(self, attempt: AttemptId) -> bool:
        held = self._registrations.of(attempt)
        return held is not None and self._clock.now_ns() < held.expires_at_ns

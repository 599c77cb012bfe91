"""The boundary to one Slurm: what it is asked and told, whichever way it is reached.

Clients translate and draw no conclusion. Complaints are of two kinds: Slurm will never take it
(`EngineRefused`), or nobody knows and it may be tried again (`EngineUnavailable`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from moulin.domain.errors import EngineRefused, EngineUnavailable
from moulin.domain.session import Entry
from moulin.engines.slurm.formats import SlurmJob, SlurmNode, SlurmPartition

# A complaint that holds one of these may pass; any other about a submission is Slurm's last word.
_TRANSIENT: Final = (
    *("unable to contact", "timed out", "connection refused", "zero bytes", "transport endpoint"),
    *("temporarily", "communication connection failure", "no route to host", "backup controller"),
    *("munge", "protocol authentication", "invalid authentication credential"),
    *("configuration source", "connection reset", "in standby", "try again", "i/o error"),
    # Of releases since 24.11: too many jobs or questions at once, and a key that is being renewed.
    *("maxjobcount", "rate limit", "credential expired", "authentication failure"),
    *("read-only file system", "no space left", "socket"),
    "required partition not available",  # drained or inactive, until somebody sets it up again
)
# As in AssocGrpSubmitJobsLimit or QOSMaxSubmitJobPerUserLimit.
_TOO_MANY: Final = "submitjob"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """One job to submit: `nodes` nodes with one task on each, or an array of such jobs.

    `hosts` are Slurm's names of the nodes, none: any but those in `excluded`. `output` may hold `%a`, the element.
    `array_size` 0 is no array, else elements are numbered from 0. `time_limit_minutes` 0 leaves the
    time to Slurm, which takes its partition's default; `is_unlimited` asks for no limit in so many words.
    """

    name: str
    comment: str
    directory: str
    output: str
    script: bytes
    nodes: int = 1
    cpus: int = 1
    memory_mib: int = 1
    gres: str = ""
    hosts: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    time_limit_minutes: int = 0
    is_unlimited: bool = False
    array_size: int = 0
    partition: str = ""
    account: str = ""
    qos: str = ""
    reservation: str = ""
    constraint: str = ""
    is_exclusive: bool = False

    @property
    def time(self) -> str:
        """The time it asks for, as all of Slurm's clients write it; empty when it asks for none."""
        return "UNLIMITED" if self.is_unlimited else str(self.time_limit_minutes or "")


@runtime_checkable
class Converses(Protocol):
    """A way to Slurm by which a command can be talked with."""

    def talking(self, command: Sequence[str], *, is_terminal: bool) -> Entry:
        """Return the program that runs a command with this process's pipes, or on its terminal."""
        ...


@runtime_checkable
class ExtendsJobs(Protocol):
    """A way to Slurm by which a job may be given more time."""

    def extend(self, job: str, minutes: int) -> None:
        """Let a job last so many minutes in all; raises `EngineRefused` when Slurm does not."""
        ...


@runtime_checkable
class KeepsAway(Protocol):
    """A way to Slurm by which jobs that wait may be kept away from nodes."""

    def keep_away(self, jobs: Sequence[str], hosts: Sequence[str]) -> None:
        """Let waiting jobs run anywhere but on `hosts`; what does not wait any more is no error."""
        ...


@runtime_checkable
class DrainsNodes(Protocol):
    """A way to Slurm by which a node may be closed to everybody's jobs."""

    def drain(self, host: str, reason: str) -> None:
        """Drain a node, or resume it where there is no reason; raises `EngineRefused` when Slurm does not."""
        ...


@runtime_checkable
class FindsImageTool(Protocol):
    """A way to Slurm by which it can be found out what runs images."""

    def image_tool(self) -> str:
        """Return `pyxis`, the name of Apptainer's program, or empty when neither is there."""
        ...


class SlurmClient(Protocol):
    """A way to one Slurm. Every call raises `EngineUnavailable` when it gave no answer."""

    def jobs(self) -> tuple[SlurmJob, ...]:
        """Return all jobs that the controller lists, in one question."""
        ...

    def nodes(self) -> tuple[SlurmNode, ...]:
        """Return all nodes, in Slurm's order."""
        ...

    def partitions(self) -> tuple[SlurmPartition, ...]:
        """Return all partitions."""
        ...

    def array_size_max(self) -> int:
        """Return how many elements one array may have, 0 where there are no arrays."""
        ...

    def submit(self, job: JobRequest) -> int:
        """Submit a job and return its number; raises `EngineRefused` when Slurm never takes it."""
        ...

    def find(self, name: str) -> tuple[tuple[int, str], ...]:
        """Return number and comment of each job of that name, ended ones that are listed too."""
        ...

    def cancel(self, jobs: Sequence[str]) -> None:
        """End jobs; those that have ended are no error."""
        ...

    def ring(self, jobs: Sequence[str], *, is_gang: bool) -> None:
        """Send SIGCONT, which programs ignore, to the shims of jobs."""
        ...

    def recall(self, jobs: Sequence[str]) -> Mapping[str, SlurmJob] | None:
        """Return what accounting says of jobs that the controller dropped; None without any."""
        ...


class Crowded(EngineUnavailable):
    """Slurm has not taken a job, because its account or user has as many as it may; later it does."""


def complaint(what: str, said: str) -> EngineRefused | EngineUnavailable:
    """Return the error for a submission that Slurm did not take, from its own words."""
    if _TOO_MANY in said.lower():
        return Crowded(f"{what}: Slurm says: {said}", hint="it is tried again")
    if not said or any(word in said.lower() for word in _TRANSIENT):
        return unavailable(what, said)
    return EngineRefused(f"Slurm refuses the job: {said}", hint="ask for what the cluster has")


def unavailable(what: str, said: str) -> EngineUnavailable:
    """Return the error for an answer that says nothing of what was asked."""
    return EngineUnavailable(
        f"{what}: Slurm says: {said or 'nothing'}",
        hint="`scontrol ping` says whether the controller is up",
    )

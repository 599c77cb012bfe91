"""Asks one Slurm cluster and tells it what to do, in its own words; draws no conclusion.

All jobs are read in one question and all nodes in another, each kept for as long as the pool says.
Complaints are sorted into two: Slurm will never take it (`EngineRefused`), or nobody knows and it may
be tried again (`EngineUnavailable`).
"""

from collections.abc import Mapping, Sequence
from typing import Final

from moulin.domain.errors import EngineRefused, EngineUnavailable
from moulin.domain.plan import StartStep
from moulin.domain.workload import Resources
from moulin.engines.slurm.formats import (
    SlurmJob,
    SlurmNode,
    SlurmPartition,
    read_accounting,
    read_jobs,
    read_nodes,
    read_partitions,
)
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.slurm.transport import Answer, Transport
from moulin.engines.slurm.watched import Reading, Watched

Jobs = Mapping[int, SlurmJob]
NODES_PERIOD_S: Final = 4.0
PARTITIONS_PERIOD_S: Final = 60.0
# What the controller is given for a task's grace and for writing its record, beyond its time limit.
TIME_MARGIN_S: Final = 120
# A job that Slurm itself never takes again says one of these; all else is final.
_TRANSIENT: Final = (
    *("unable to contact", "timed out", "connection refused", "zero bytes", "transport endpoint"),
    *("temporarily", "communication connection failure", "no route to host", "backup controller"),
    *("munge", "protocol authentication", "invalid authentication credential"),
    *("configuration source", "connection reset", "in standby", "try again", "i/o error"),
    *("read-only file system", "no space left", "socket"),
)
_ENDED_ALREADY: Final = ("invalid job id", "already completing", "already completed")


class Cluster:
    """One cluster as one pool meets it."""

    def __init__(self, transport: Transport, settings: SlurmSettings, *, own_comment: str) -> None:
        """`own_comment` is how the comments of this pool's own jobs begin."""
        self._transport = transport
        self._settings = settings
        self._own_comment = own_comment
        self._jobs: Watched[Jobs] = Watched(self._ask_jobs, settings.poll_s)
        nodes_period_s = min(NODES_PERIOD_S, 4 * settings.poll_s)
        self._nodes: Watched[tuple[SlurmNode, ...]] = Watched(self._ask_nodes, nodes_period_s)
        self._partition: Watched[SlurmPartition] = Watched(self._ask_partition, PARTITIONS_PERIOD_S)
        self._has_accounting: bool | None = None

    def jobs(self) -> Reading[Jobs]:
        """Return the newest reading of all jobs, by number."""
        return self._jobs.read()

    def nodes(self) -> Reading[tuple[SlurmNode, ...]]:
        """Return the newest reading of the partition's nodes, in Slurm's order."""
        return self._nodes.read()

    def partition(self) -> SlurmPartition:
        """Return the pool's partition; raises `EngineUnavailable`, `EngineRefused` if there is none."""
        return self._partition.read().known()

    def hurry(self) -> None:
        """Look at jobs more often for a moment."""
        self._jobs.hurry()

    def require(self) -> None:
        """Raise `EngineUnavailable` when the controller gave no answer lately."""
        self._jobs.read().known()

    def is_ours(self, job: SlurmJob) -> bool:
        """Say whether this pool submitted the job."""
        return job.comment.startswith(self._own_comment)

    def submit(self, command: Sequence[str], script: bytes) -> int:
        """Submit a job and return its number.

        Raises `EngineRefused` when Slurm will never take it, `EngineUnavailable` when it is not known
        whether it did.
        """
        answer = self._transport.run(command, stdin=script)
        number = answer.output.decode(errors="replace").strip().partition(";")[0]
        if answer.status == 0 and number.isdigit():
            return int(number)
        raise self._complaint("submit the job", answer)

    def find(self, name: str) -> int:
        """Return the number of this pool's job of that name, 0 when Slurm knows none.

        Raises `EngineUnavailable` when it cannot be asked.
        """
        answer = self._transport.run(
            ("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%i|%k")
        )
        if answer.status != 0:
            raise self._unavailable("look for the job", answer)
        lines = (line.partition("|") for line in answer.output.decode(errors="replace").split("\n"))
        found = [
            int(number)
            for number, _, comment in lines
            if number.isdigit() and comment.startswith(self._own_comment)
        ]
        return min(found, default=0)

    def cancel(self, job: int) -> None:
        """End a job that this pool submitted; one that has ended is no error."""
        self._scancel(str(job))

    def ring(self, job: int, *, is_gang: bool) -> None:
        """Send SIGCONT, which programs ignore, to the shims of a job."""
        whom = () if is_gang else ("--full",)
        self._scancel(*whom, "--signal=CONT", str(job))

    def recall(self, job: int) -> SlurmJob | None:
        """Return what accounting says of a job that the controller has dropped; None without any."""
        if self._has_accounting is False:
            return None
        columns = "--format=JobIDRaw,JobName,State,ExitCode,Start,End"
        answer = self._transport.run(
            ("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", columns)
        )
        self._has_accounting = answer.status == 0
        return (
            read_accounting(answer.output.decode(errors="replace")) if answer.status == 0 else None
        )

    def gres_type(self, resources: Resources) -> str:
        """Return Slurm's name for the accelerators asked for, empty when any will do."""
        if not resources.accelerators or not resources.accelerator_class:
            return ""
        for node in self.nodes().known():
            named = self._settings.accelerator_class or node.accelerator_type
            if node.accelerators and named == resources.accelerator_class:
                return node.accelerator_type
        return ""

    def time_limit_s(self, step: StartStep) -> int:
        """Return the limit to ask Slurm for: a little more than Moulin's own, which comes first.

        Without one it is the partition's longest, 0 when that has none. Raises `EngineRefused` for
        more than the partition ever gives.
        """
        partition, asked_s = self.partition(), step.time_limit_s
        longest_s = partition.time_limit_s
        if longest_s and asked_s > longest_s:
            raise EngineRefused(
                f"a time limit of {asked_s} s is more than the {longest_s} s of partition"
                f" {partition.name}",
                hint="ask for less, or for a zone whose pools allow it",
            )
        wanted_s = asked_s + step.stop_grace_s + TIME_MARGIN_S if asked_s else longest_s
        return min(wanted_s, longest_s) if longest_s else wanted_s

    def _ask_jobs(self) -> Jobs:
        answer = self._transport.run(("squeue", "--json", "--states=all"))
        if answer.status != 0:
            raise self._unavailable("read the jobs", answer)
        return {job.id: job for job in read_jobs(answer.output)}

    def _ask_nodes(self) -> tuple[SlurmNode, ...]:
        answer = self._transport.run(("scontrol", "show", "node", "-d", "-o"))
        if answer.status != 0:
            raise self._unavailable("read the nodes", answer)
        name = self.partition().name
        found = read_nodes(answer.output.decode(errors="replace"))
        return tuple(node for node in found if name in node.partitions)

    def _ask_partition(self) -> SlurmPartition:
        answer = self._transport.run(("scontrol", "show", "partition", "-o"))
        if answer.status != 0:
            raise self._unavailable("read the partitions", answer)
        wanted = self._settings.partition
        found = read_partitions(answer.output.decode(errors="replace"))
        for partition in found:
            if partition.name == wanted or (not wanted and partition.is_default):
                return partition
        names = ", ".join(partition.name for partition in found)
        raise EngineRefused(
            f"there is no partition {wanted!r}" if wanted else "no partition is the default",
            hint=f"the pool's setting `partition` names one of: {names}",
        )

    def _scancel(self, *words: str) -> None:
        answer = self._transport.run(("scancel", "--quiet", *words))
        if answer.status != 0 and not any(w in answer.words.lower() for w in _ENDED_ALREADY):
            raise self._unavailable("signal the job", answer)

    def _complaint(self, what: str, answer: Answer) -> EngineRefused | EngineUnavailable:
        if any(word in answer.words.lower() for word in _TRANSIENT) or not answer.words:
            return self._unavailable(what, answer)
        said = answer.words.replace("sbatch: error: ", "")
        return EngineRefused(f"Slurm refuses the job: {said}", hint="ask for what the cluster has")

    @staticmethod
    def _unavailable(what: str, answer: Answer) -> EngineUnavailable:
        said = answer.words or f"status {answer.status}"
        return EngineUnavailable(
            f"{what}: Slurm says: {said}", hint="`scontrol ping` says whether the controller is up"
        )

"""One cluster as one pool meets it: what was read of it last, and what the pool asks of it.

All jobs are read in one question and all nodes in another, shared with the other pools of that cluster
(`readings.py`) and each believed for as long as this pool says. Decision 0047.
"""

from collections.abc import Sequence
from typing import Final

from moulin.domain.errors import EngineError, EngineRefused, EngineUnavailable
from moulin.domain.plan import StartStep
from moulin.engines.slurm.classes import type_meant
from moulin.engines.slurm.client import (
    Converses,
    DrainsNodes,
    ExtendsJobs,
    FindsImageTool,
    JobRequest,
    KeepsAway,
)
from moulin.engines.slurm.formats import (
    JobBook,
    SlurmJob,
    SlurmNode,
    SlurmPartition,
    find_partition,
    no_partition,
)
from moulin.engines.slurm.readings import Readings
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.slurm.watched import Reading, Watched

Jobs = JobBook
NODES_PERIOD_S: Final = 4.0
PARTITIONS_PERIOD_S: Final = 15.0
ARRAYS_PERIOD_S: Final = 600.0
# More in one array is no gain, and a submission that Slurm takes whole stays short.
ARRAY_MAX: Final = 5000
# What the controller is given for a task's grace and for writing its record, beyond its time limit.
TIME_MARGIN_S: Final = 120


class Cluster:
    """One cluster, its newest readings, and the pool's own jobs."""

    def __init__(self, readings: Readings, settings: SlurmSettings, *, own_comment: str) -> None:
        """Share `readings` with other pools; `own_comment` is how the comments of own jobs begin."""
        client = readings.client
        self._client = client
        self._settings = settings
        self.own_comment = own_comment
        self._jobs: Watched[Jobs] = Watched(readings.jobs, settings.poll_s)
        nodes_period_s = min(NODES_PERIOD_S, 4 * settings.poll_s)
        self._nodes: Watched[tuple[SlurmNode, ...]] = Watched(readings.nodes, nodes_period_s)
        self._own_nodes: tuple[tuple[int, str], tuple[SlurmNode, ...]] = ((0, ""), ())
        partitions_period_s = min(PARTITIONS_PERIOD_S, 15 * settings.poll_s)
        self._partitions: Watched[tuple[SlurmPartition, ...]] = Watched(
            readings.partitions, partitions_period_s
        )
        self._array_max: Watched[int] = Watched(readings.array_max, ARRAYS_PERIOD_S)
        self.miss = readings.accounting.miss
        self.recall = readings.accounting.recall
        self.ring = client.ring
        self.cancel = client.cancel
        self.door: Converses | None = client if isinstance(client, Converses) else None

    def jobs(self) -> Reading[Jobs]:
        """Return the newest reading of all jobs."""
        return self._jobs.read()

    def jobs_now(self) -> Reading[Jobs]:
        """Return a reading of all jobs that begins now: it has whatever was submitted before."""
        self._jobs.doubt()
        return self._jobs.read()

    def listed(self) -> tuple[Reading[Jobs] | None, EngineError | None]:
        """Return the last answer about jobs, asking for none, and why it is not newer if it is too old."""
        return self._jobs.peek()

    def hangs(self) -> bool:
        """Say whether a command now would only hold up its caller."""
        self._jobs.read()
        return self._jobs.is_silent

    def nodes(self) -> Reading[tuple[SlurmNode, ...]]:
        """Return the newest reading of the partition's nodes, in Slurm's order."""
        reading = self._nodes.read()
        if reading.value is None:
            return reading
        try:
            name = self.partition().name
        except EngineError as failure:
            return Reading(reading.number, reading.asked_s, None, failure)
        which, own = self._own_nodes
        if which != (reading.number, name):
            own = tuple(node for node in reading.value if name in node.partitions)
            self._own_nodes = ((reading.number, name), own)
        return Reading(reading.number, reading.asked_s, own)

    def nodes_now(self) -> Reading[tuple[SlurmNode, ...]]:
        """Return a reading of the partition's nodes that begins now."""
        self._nodes.doubt()
        return self.nodes()

    def partition(self) -> SlurmPartition:
        """Return the pool's partition; raises `EngineUnavailable`, `EngineRefused` if there is none."""
        wanted, found = self._settings.partition, self._partitions.read().known()
        partition = find_partition(found, wanted)
        if partition is not None:
            return partition
        names = ", ".join(each.name for each in found)
        raise EngineRefused(
            no_partition(wanted),
            hint=f"the pool's setting `partition` names one of: {names}",
        )

    def array_max(self) -> int:
        """Return how many elements an array of this pool may have; below 2 there are no arrays."""
        try:
            return min(ARRAY_MAX, self._array_max.read().known())
        except EngineError:
            return 0

    def doubt_nodes(self) -> None:
        """Read the nodes anew before anything else is put on them: Slurm has lost one."""
        self._nodes.doubt()

    def hurry(self) -> None:
        """Look at jobs more often for a moment."""
        self._jobs.hurry()

    def require(self) -> None:
        """Raise `EngineUnavailable` when the controller gave no answer lately."""
        self._jobs.read().known()

    def is_ours(self, job: SlurmJob) -> bool:
        """Say whether this pool submitted the job."""
        return job.comment.startswith(self.own_comment)

    def is_of(self, job: SlurmJob, name: str) -> bool:
        """Say whether it is the job that was submitted under a name.

        A controller that lost its newest jobs in a crash gives their numbers to others.
        """
        return job.name == name or job.comment == f"{self.own_comment}{name}"

    def number(self, job: str) -> str:
        """Return Slurm's own number of a job that has begun: an element of an array has one, too.

        Empty when Slurm does not list that element. Raises `EngineUnavailable` when it cannot be asked.
        """
        if job.isdigit():
            return job
        found = self._jobs.read().known().get(job)
        if found is None or found.element is None:  # as long as it waited, it was the array
            found = self.jobs_now().known().get(job)
        return str(found.id) if found is not None and found.element is not None else ""

    def submit(self, job: JobRequest) -> int:
        """Submit a job and return its number.

        Raises `EngineRefused` when Slurm will never take it, `EngineUnavailable` when it is not known
        whether it did.
        """
        try:
            return self._client.submit(job)
        except EngineUnavailable:
            self._partitions.hurry()  # it may have been closed
            raise

    def find(self, name: str) -> int:
        """Return the number of this pool's job of that name, 0 when Slurm knows none.

        Raises `EngineUnavailable` when it cannot be asked.
        """
        found = self._client.find(name)
        own = [number for number, comment in found if comment.startswith(self.own_comment)]
        return min(own, default=0)

    def gres_type(self, step: StartStep) -> str:
        """Return Slurm's name for the accelerators that a step asks for, empty when any will do."""
        asked, settings = step.resources, self._settings
        if not asked.accelerators or not asked.accelerator_class:
            return ""
        names = (node.removeprefix(settings.prefix) for node in step.nodes)
        placed = () if settings.is_delegated else tuple(names)
        nodes = self.nodes().known()
        return type_meant(nodes, placed, settings.accelerator_class, asked.accelerator_class)

    def offered_s(self) -> int:
        """Return how long a replica may run here, so that it ends before Slurm ends it; 0 is for ever.

        That is what the operator says, and a little less than the partition's longest.
        """
        longest_s = self.partition().time_limit_s
        given_s = longest_s - min(TIME_MARGIN_S, longest_s // 10)
        return min((s for s in (self._settings.replica_time_limit_s, given_s) if s), default=0)

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

    def outlasts_default(self, step: StartStep) -> bool:
        """Say whether a step without a limit would get one: Slurm has a default, and no longest time."""
        partition = self.partition()
        return bool(partition.default_time_s) and not (partition.time_limit_s or step.time_limit_s)

    def extend(self, job: str, time_limit_s: int) -> None:
        """Let a job last `time_limit_s`, and what it takes to end, in all.

        Raises `EngineRefused` when Slurm or its partition does not allow it.
        """
        longest_s = self.partition().time_limit_s
        if longest_s and time_limit_s > longest_s:
            raise EngineRefused(f"partition {self.partition().name} ends jobs after {longest_s} s")
        if not isinstance(self._client, ExtendsJobs):
            raise EngineRefused("this way to Slurm cannot change a job's time limit")
        wanted_s = time_limit_s + TIME_MARGIN_S
        wanted_s = min(wanted_s, longest_s) if longest_s else wanted_s
        self._client.extend(job, -(-wanted_s // 60))

    def keep_away(self, jobs: Sequence[str], hosts: Sequence[str]) -> None:
        """Let waiting jobs run anywhere but on `hosts`, where this way to Slurm can say so."""
        if isinstance(self._client, KeepsAway):
            self._client.keep_away(jobs, hosts)

    def drain(self, host: str, reason: str) -> None:
        """Close a node to everybody's jobs, or open it where there is no reason.

        Raises `EngineRefused` when this is not for us to do, `EngineUnavailable` when nobody knows.
        """
        if not isinstance(self._client, DrainsNodes):
            raise EngineRefused("this way to Slurm changes no nodes", hint="leave `drain` out")
        self._client.drain(host, reason)
        self._nodes.doubt()

    def image_tool(self) -> str:
        """Return what the nodes run images with, empty when nothing was found."""
        return self._client.image_tool() if isinstance(self._client, FindsImageTool) else ""

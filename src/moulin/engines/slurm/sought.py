"""Jobs that Slurm may have taken though its answer was lost, of attempts that were stopped since.

Nobody wants them, and nobody knows their numbers: they are looked for by their names among the jobs
that Slurm lists, for a while, because a submission may lie in a slow controller. It cancels nothing.
"""

import time
from typing import Final

from moulin.domain.ids import AttemptId
from moulin.engines.slurm.attempt import STOPPED, Attempt
from moulin.engines.slurm.cluster import Cluster

# No submission is under way for longer, counted from the stop, or from when the spool was opened.
SOUGHT_S: Final = 900.0


class Sought:
    """The jobs that one pool looks for."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._wanted: dict[AttemptId, tuple[str, str, float]] = {}
        self._number = -1

    def __bool__(self) -> bool:
        """Say whether anything is looked for."""
        return bool(self._wanted)

    def add(self, attempt: Attempt) -> None:
        """Look for the job of an attempt, if it was stopped while nobody knew its number."""
        if attempt.is_submitted and not attempt.job and attempt.owner() == STOPPED:
            element = f"_{attempt.index}" if attempt.array is not None else ""
            until_s = time.monotonic() + SOUGHT_S
            self._wanted[attempt.id] = (attempt.job_name, element, until_s)

    def found(self) -> set[str]:
        """Return what Slurm calls those that it lists by now, each once. Cost: O(jobs) a reading."""
        reading = self._cluster.jobs()
        if not self._wanted or reading.value is None or reading.number == self._number:
            return set()
        self._number = reading.number
        listed = {
            job.name: job.array or job.id
            for job in reading.value.all()
            if self._cluster.is_ours(job)
        }
        found = {
            attempt: f"{listed[name]}{element}"
            for attempt, (name, element, _) in self._wanted.items()
            if name in listed
        }
        now_s = time.monotonic()
        for attempt, (_, _, until_s) in tuple(self._wanted.items()):
            if attempt in found or now_s > until_s:
                del self._wanted[attempt]
        return set(found.values())

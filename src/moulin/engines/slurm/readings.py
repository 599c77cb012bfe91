"""What one way to Slurm tells, asked once for all pools that reach Slurm that way.

Each pool watches these questions with a period of its own (`cluster.py`); nothing is asked that no pool
reads, so that nothing has to be told when a pool goes.
"""

import threading
import time
from pathlib import Path
from typing import Final

from moulin.domain.errors import EngineUnavailable
from moulin.engines.slurm.client import SlurmClient
from moulin.engines.slurm.formats import JobBook, SlurmJob, SlurmNode, SlurmPartition
from moulin.engines.slurm.watched import Question
from moulin.engines.slurm.wellbeing import ToldFiles
from moulin.ports.clock import Clock

# So many ends that accounting told are remembered: none of them changes any more.
RECALLED_MAX: Final = 20_000
# Accounting that failed is left alone for so long: each of ten thousand tasks may ask it.
RECALL_RETRY_S: Final = 5.0


class Readings:
    """The questions to one Slurm; safe to use from several threads."""

    def __init__(self, client: SlurmClient) -> None:
        """Ask nothing yet."""
        self.client = client
        self.jobs: Question[JobBook] = Question(self._ask_jobs)
        self.nodes: Question[tuple[SlurmNode, ...]] = Question(client.nodes)
        self.partitions: Question[tuple[SlurmPartition, ...]] = Question(client.partitions)
        self.array_max: Question[int] = Question(client.array_size_max)
        self.accounting = Accounting(client)
        self._told: dict[Path, ToldFiles] = {}

    def told(self, folder: Path, clock: Clock) -> ToldFiles:
        """Return what readers on the nodes write in a folder, for all pools that have it; `OSError`."""
        if folder not in self._told:
            self._told[folder] = ToldFiles(folder, clock)
        return self._told[folder]

    def _ask_jobs(self) -> JobBook:
        return JobBook(self.client.jobs())


class Accounting:
    """What accounting says of jobs that the controller has dropped; all such are asked after at once."""

    def __init__(self, client: SlurmClient) -> None:
        """Ask nothing yet."""
        self._client = client
        self._lock = threading.Lock()
        self._missed: set[str] = set()
        self._recalled: dict[str, SlurmJob | None] = {}
        self._again_s = float("-inf")

    def miss(self, job: str) -> None:
        """Note a job that the controller does not list."""
        with self._lock:
            self._missed.add(job)

    def recall(self, job: str) -> SlurmJob | None:
        """Return what accounting says of a job; None without any.

        Raises `EngineUnavailable` when it cannot be asked, and for a moment after that.
        """
        with self._lock:
            if job not in self._recalled:
                self._ask(job)
            known = self._recalled[job]
            if known is None or not known.has_ended:
                del self._recalled[job]
            return known

    def _ask(self, job: str) -> None:
        if time.monotonic() < self._again_s:
            raise EngineUnavailable("accounting gave no answer a moment ago")
        wanted = sorted({*self._missed, job})
        try:
            found = self._client.recall(wanted) or {}
        except EngineUnavailable:
            self._again_s = time.monotonic() + RECALL_RETRY_S
            raise
        if len(self._recalled) > RECALLED_MAX:
            self._recalled.clear()
        self._recalled.update((each, found.get(each)) for each in wanted)
        self._missed.clear()

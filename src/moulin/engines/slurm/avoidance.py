"""Keeps a pool's jobs away from machines in quarantine, where Slurm chooses; it chooses none itself.

On an owned pool jobs name their nodes, and only what is to be drained is. What runs is left to whoever
stops it.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from moulin.domain.errors import EngineUnavailable
from moulin.domain.health import Quarantine
from moulin.domain.ids import NodeId
from moulin.engines.slurm.cluster import Cluster
from moulin.engines.slurm.draining import Draining
from moulin.engines.slurm.formats import PENDING
from moulin.engines.slurm.places import machine_of
from moulin.engines.slurm.settings import SlurmSettings

# What Slurm could not be told is told again after this.
RETRY_S: Final = 5.0


class Avoidance:
    """The machines that no job of a pool is to be put on."""

    def __init__(self, spool: Path, cluster: Cluster, settings: SlurmSettings) -> None:
        self._draining = Draining(spool, cluster, settings)
        self._cluster = cluster
        self._settings = settings
        self.nodes: Mapping[NodeId, Quarantine] = {}
        self._again_s = float("-inf")

    def avoid(self, nodes: Mapping[NodeId, Quarantine]) -> None:
        """Keep jobs away from these from now on, those that wait in Slurm as well.

        Raises `EngineUnavailable` when Slurm could not be told, and for a moment after that.
        """
        self.nodes = dict(nodes)
        now_s = time.monotonic()
        if now_s < self._again_s:
            raise EngineUnavailable("Slurm could not be told what to keep away from a moment ago")
        self._again_s = now_s + RETRY_S
        if self._settings.is_delegated:
            self._keep_waiting_away()
        try:
            self._draining.follow(nodes)
        except OSError as cause:
            raise EngineUnavailable(f"drain nodes: the spool failed with {cause!r}") from cause
        self._again_s = float("-inf")

    def _keep_waiting_away(self) -> None:
        jobs = self._cluster.jobs_now().known().all()
        waiting = {
            str(job.array or job.id)
            for job in jobs
            if job.state in PENDING and self._cluster.is_ours(job) and not job.required_nodes
        }
        if waiting:
            self._cluster.keep_away(sorted(waiting), self.hosts())

    def hosts(self) -> tuple[str, ...]:
        """Return Slurm's names of them, in order; none where Slurm is told each job's nodes."""
        if not self._settings.is_delegated:
            return ()
        prefix = self._settings.prefix
        return tuple(filter(None, (machine_of(node, prefix) for node in sorted(self.nodes))))

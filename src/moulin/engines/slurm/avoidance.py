"""Keeps a pool's jobs away from machines in quarantine, where Slurm chooses; it chooses none itself.

On an owned pool jobs name their nodes, and only what is to be drained is. What runs is left to whoever
stops it.
"""

import time
from collections.abc import Mapping
from typing import Final

from moulin.domain.errors import EngineUnavailable
from moulin.domain.health import Quarantine
from moulin.domain.ids import NodeId
from moulin.domain.slurmwords import expand_hosts
from moulin.engines.slurm.cluster import Cluster
from moulin.engines.slurm.draining import Draining
from moulin.engines.slurm.formats import PENDING
from moulin.engines.slurm.places import machine_of
from moulin.engines.slurm.settings import SlurmSettings

# What Slurm could not be told is told again after this.
RETRY_S: Final = 5.0


class Avoidance:
    """The machines that no job of a pool is to be put on."""

    def __init__(self, folder: str, cluster: Cluster, settings: SlurmSettings) -> None:
        """`folder` is where pools that share machines put what they say of them."""
        self._draining = Draining(folder, cluster, settings)
        self._cluster = cluster
        self._settings = settings
        self.nodes: Mapping[NodeId, Quarantine] = {}
        self._kept: tuple[str, ...] | None = None
        self._again_s = float("-inf")

    def avoid(self, nodes: Mapping[NodeId, Quarantine]) -> None:
        """Keep jobs away from these from now on, those that wait in Slurm as well.

        Raises `EngineUnavailable` when Slurm could not be told, and for a moment after that.
        """
        self.nodes = dict(nodes)
        now_s = time.monotonic()
        if now_s < self._again_s:
            raise EngineUnavailable(
                "Slurm could not be told what to keep away from a moment ago",
                hint="it is told again in a few seconds",
            )
        self._again_s = now_s + RETRY_S
        if self._settings.is_delegated and self._kept != self.hosts():
            self._keep_waiting_away(self.hosts())
            self._kept = self.hosts()
        try:
            self._draining.follow(nodes)
        except OSError as cause:
            raise EngineUnavailable(
                f"drain nodes: the records of it failed with {cause!r}",
                hint="check the file system that the pool's `directory` is on; it is tried again",
            ) from cause
        self._again_s = float("-inf")

    def _keep_waiting_away(self, hosts: tuple[str, ...]) -> None:
        """Tell Slurm of those jobs that wait and know it otherwise."""
        waiting = {
            str(job.array or job.id)
            for job in self._cluster.jobs_now().known().all()
            if job.state in PENDING and self._cluster.is_ours(job) and not job.required_nodes
            if set(expand_hosts(job.excluded_nodes)) != set(hosts)
        }
        if waiting:
            self._cluster.keep_away(sorted(waiting), hosts)

    def hosts(self) -> tuple[str, ...]:
        """Return Slurm's names of them, in order; none where Slurm is told each job's nodes."""
        if not self._settings.is_delegated:
            return ()
        prefix = self._settings.prefix
        return tuple(filter(None, (machine_of(node, prefix) for node in sorted(self.nodes))))

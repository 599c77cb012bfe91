"""Drains in Slurm what Moulin has in quarantine, where the operator wants that: nobody's jobs go there.

A node is drained once for each quarantine, and resumed when that ends if the reason that Slurm shows is
still ours: what people drained, or resumed after a repair, stays as they left it.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from moulin.domain.errors import EngineRefused
from moulin.domain.health import Quarantine
from moulin.domain.ids import NodeId
from moulin.engines.slurm.cluster import Cluster
from moulin.engines.slurm.places import machine_of
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.task.spool import make_directory, read_small, write_whole

# In the spool: of each node the quarantine it was drained for, so that it is drained once for it.
FOLDER: Final = ".drained"
MARK: Final = "moulin: "
WORDS_MAX: Final = 160
_DRAINED: Final = frozenset({"drain", "drained", "draining"})
_LOG: Final = logging.getLogger(__name__)


class Draining:
    """The nodes of one pool that were drained for a quarantine."""

    def __init__(self, spool: Path, cluster: Cluster, settings: SlurmSettings) -> None:
        self._folder = str(spool / FOLDER)
        self._cluster = cluster
        self._settings = settings

    def follow(self, nodes: Mapping[NodeId, Quarantine]) -> None:
        """Drain those in quarantine and resume the others, as far as Slurm lets this user.

        Raises `EngineUnavailable` when Slurm could not be asked, and `OSError`.
        """
        if not self._settings.drains:
            return
        prefix = self._settings.prefix
        wanted = {machine_of(node, prefix): why for node, why in sorted(nodes.items())}
        make_directory(self._folder)
        for host in sorted(set(os.listdir(self._folder)) - wanted.keys()):
            self._resume(host)
            os.unlink(f"{self._folder}/{host}")
        for host, why in wanted.items():
            since = b"%d" % why.since_ns
            if read_small(f"{self._folder}/{host}") != since:
                self._drain(host, why)
                write_whole(f"{self._folder}/{host}", since, is_durable=False)

    def _drain(self, host: str, why: Quarantine) -> None:
        flags, _ = self._shown(host)
        if not flags & _DRAINED:
            self._tell(host, f"{MARK}{' '.join(why.words.split())}"[:WORDS_MAX])

    def _resume(self, host: str) -> None:
        flags, reason = self._shown(host)
        if flags & _DRAINED and reason.startswith(MARK):
            self._tell(host, "")

    def _tell(self, host: str, reason: str) -> None:
        try:
            self._cluster.drain(host, reason)
        except EngineRefused as refused:
            verb = "drain" if reason else "resume"
            _LOG.warning("%s %s in Slurm: %s; %s", verb, host, refused.message, refused.hint)

    def _shown(self, host: str) -> tuple[frozenset[str], str]:
        """Return what Slurm shows of a node now: what it is, and why."""
        found = [node for node in self._cluster.nodes_now().known() if node.name == host]
        return (found[0].flags, found[0].reason) if found else (frozenset(), "")

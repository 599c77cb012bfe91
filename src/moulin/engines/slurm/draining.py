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
        ended = sorted(set(os.listdir(self._folder)) - wanted.keys())
        new = [host for host, why in wanted.items() if self._recorded(host) != _name(why)]
        if not (ended or new):
            return
        shown = {node.name: node for node in self._cluster.nodes_now().known()}
        for host in ended:
            node = shown.get(host)
            if node is not None and node.flags & _DRAINED and node.reason.startswith(MARK):
                self._tell(host, "")
            os.unlink(f"{self._folder}/{host}")
        for host in new:
            node, why = shown.get(host), wanted[host]
            if node is not None and not node.flags & _DRAINED:
                self._tell(host, f"{MARK}{' '.join(why.words.split())}"[:WORDS_MAX])
            write_whole(f"{self._folder}/{host}", _name(why), is_durable=False)

    def _recorded(self, host: str) -> bytes | None:
        return read_small(f"{self._folder}/{host}")

    def _tell(self, host: str, reason: str) -> None:
        try:
            self._cluster.drain(host, reason)
        except EngineRefused as refused:
            verb = "drain" if reason else "resume"
            _LOG.warning("%s %s in Slurm: %s; %s", verb, host, refused.message, refused.hint)


def _name(why: Quarantine) -> bytes:
    """Return what tells a quarantine of a node from the next one."""
    return b"%d" % why.since_ns

"""Drains in Slurm what Moulin has in quarantine, where the operator wants that: nobody's jobs go there.

A node is drained once for each quarantine, and resumed when the last pool's has ended, if the reason that
Slurm shows is still ours: what people drained, or resumed after a repair, stays as they left it. One that
Slurm calls down is left to it: with another reason it would not take the node back by itself.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Final

from moulin.domain.errors import EngineError, EngineRefused, EngineUnavailable
from moulin.domain.health import Quarantine
from moulin.domain.ids import NodeId
from moulin.engines.slurm.cluster import Cluster
from moulin.engines.slurm.formats import SlurmNode
from moulin.engines.slurm.places import machine_of
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.task.spool import make_directory, read_small, write_whole

# For each node the pools that wanted it drained, each with the quarantine that was drained for.
FOLDER: Final = ".drained"
MARK: Final = "moulin: "
WORDS_MAX: Final = 160
_DRAINED: Final = frozenset({"drain", "drained", "draining"})
_DOWN: Final = frozenset({"down", "not_responding", "no_respond"})
_LOG: Final = logging.getLogger(__name__)


class Draining:
    """The nodes that one pool wants drained; other pools may have the same nodes."""

    def __init__(self, folder: str, cluster: Cluster, settings: SlurmSettings) -> None:
        """Keep records in `folder`, which those others share."""
        self._folder = f"{folder}/{FOLDER}"
        self._cluster = cluster
        self._prefix = settings.prefix
        self._drains = settings.drains

    def follow(self, nodes: Mapping[NodeId, Quarantine]) -> None:
        """Drain those in quarantine and resume the others, as far as Slurm lets this user.

        Raises `EngineUnavailable` when that is to be tried again, after all was tried, and `OSError`.
        """
        wanted: dict[str, Quarantine] = {}
        if self._drains:
            make_directory(self._folder)
            named = ((machine_of(node, self._prefix), why) for node, why in sorted(nodes.items()))
            wanted = {host: why for host, why in named if host}  # a place is no machine
        recorded = self._recorded()
        ended = sorted(recorded.keys() - wanted.keys())
        new = [host for host, why in wanted.items() if recorded.get(host) != _name(why)]
        if not (ended or new):
            return
        shown = {node.name: node for node in self._cluster.nodes_now().known()}
        left = [host for host in ended if not self._ended(host, shown.get(host))]
        left += [host for host in new if not self._drained(host, shown.get(host), wanted[host])]
        if left:
            raise EngineUnavailable(
                f"drain or resume {', '.join(left)} in Slurm: not yet",
                hint="nodes that are down are drained when they answer; it is tried again",
            )

    def _drained(self, host: str, node: SlurmNode | None, why: Quarantine) -> bool:
        """Say whether a node was drained, or is not ours to drain."""
        if node is not None and node.flags & _DOWN:
            return False
        is_open = node is not None and not node.flags & _DRAINED
        if is_open and not self._tell(host, f"{MARK}{' '.join(why.words.split())}"[:WORDS_MAX]):
            return False
        make_directory(f"{self._folder}/{host}")
        write_whole(self._record(host), _name(why), is_durable=False)
        return True

    def _ended(self, host: str, node: SlurmNode | None) -> bool:
        """Say whether a node was resumed, or is not ours to resume."""
        is_ours = (
            node is not None and node.flags & _DRAINED and node.reason.startswith(MARK)
        ) and self._pools(host) == [self._prefix]
        if is_ours and not self._tell(host, ""):
            return False
        os.unlink(self._record(host))
        return True

    def _tell(self, host: str, reason: str) -> bool:
        try:
            self._cluster.drain(host, reason)
        except EngineRefused as refused:
            verb = "drain" if reason else "resume"
            _LOG.warning("%s %s in Slurm: %s; %s", verb, host, refused.message, refused.hint)
        except EngineError:
            return False
        return True

    def _recorded(self) -> Mapping[str, bytes | None]:
        """Return what this pool had drained, and for which quarantine."""
        hosts = os.listdir(self._folder) if os.path.isdir(self._folder) else []
        found = {host: read_small(self._record(host)) for host in hosts}
        return {host: name for host, name in found.items() if name is not None}

    def _record(self, host: str) -> str:
        return f"{self._folder}/{host}/{self._prefix}"

    def _pools(self, host: str) -> Sequence[str]:
        return [name for name in os.listdir(f"{self._folder}/{host}") if name.endswith("-")]


def _name(why: Quarantine) -> bytes:
    """Return what tells a quarantine of a node from the next one."""
    return b"%d" % why.since_ns

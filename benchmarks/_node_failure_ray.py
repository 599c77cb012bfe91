"""Servers of a real Ray that are switched off and on, or whose Ray dies while their tasks live on.

Ray calls a node dead that merely does not answer, so its word is no evidence (decision 0031): only the
server itself says what became of its tasks, once it is there again.
"""

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from benchmarks._crash_census import step_processes
from benchmarks._crash_kills import shim_of, step_directories
from benchmarks._engines_front import moulin
from benchmarks._node_failure_watch import Case, Gang
from benchmarks._plants import ray_pool
from tests.ray_cluster import NODES, RayCluster, running_ray
from tests.slurm_cluster import end_at_once

AGENT: Final = b"moulin.engines.ray.agent"
AWAY_S: Final = 40.0
KINDS: Final = ("node_leaves", "agent_silent", "power_cycle")


def cases(folder: Path, rounds: int, kinds: Sequence[str]) -> list[Case]:
    """Strike a gang of two on two servers."""
    with running_ray() as cluster:
        return strike(folder, cluster, rounds, kinds)


def strike(folder: Path, cluster: RayCluster, rounds: int, kinds: Sequence[str] = ()) -> list[Case]:
    """Do it on a cluster that runs; its servers are well again afterwards."""
    other = NODES[1]
    with moulin(folder, ray_pool(cluster), nodes=len(NODES)) as front:
        gang = Gang.begin("ray", front.client, folder, ranks=len(NODES))
        node = f"{cluster.pool.name}-{other}"
        for kind in [*(kinds or KINDS)] * rounds:
            if kind == "node_leaves":
                gang.is_silent(
                    kind,
                    node,
                    lambda: cluster.kill_node(other),
                    lambda: cluster.start_node(other),
                    seconds_max=AWAY_S,
                )
            elif kind == "agent_silent":
                gang.is_silent(
                    kind,
                    node,
                    lambda: _signal_agent(cluster, signal.SIGSTOP),
                    lambda: _signal_agent(cluster, signal.SIGCONT),
                    seconds_max=AWAY_S,
                )
            elif kind == "power_cycle":
                gang.fails(
                    kind,
                    node,
                    lambda: _power_cycle(cluster, other, node),
                    lambda: None,
                    is_back=True,
                )
        gang.end()
    return gang.cases


def _power_cycle(cluster: RayCluster, name: str, node: str) -> None:
    """End everything of a server, tasks too, and start it again."""
    cluster.kill_node(name)
    end_at_once(lambda: _processes(Path(cluster.pool.spool) / node / "spool"))
    cluster.start_node(name)


def _processes(spool: Path) -> list[int]:
    shims = [shim for each in step_directories(spool) if (shim := shim_of(each)) is not None]
    return [*(shim.pid for shim in shims), *step_processes(spool)]


def _signal_agent(cluster: RayCluster, number: int) -> None:
    """Send a signal to the agent of this cluster."""
    port = cluster.pool.agent_address.rpartition(":")[2].encode()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if AGENT in words and port in words:
                os.kill(int(entry.name), number)

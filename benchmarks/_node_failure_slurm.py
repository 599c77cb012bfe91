"""Nodes of a real Slurm that lose their power or a device, or fall silent, and a line to it that breaks.

Of devices their node's driver tells, which is replayed; who hears it is the reader beside a task.
"""

import getpass
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks._engines_front import Front, moulin
from benchmarks._moulin import wait_for
from benchmarks._node_failure_local import BLOWS, RESOURCES, device_of
from benchmarks._node_failure_watch import BEGUN_S_MAX, Case, Gang
from benchmarks._plants import FAR_ZONE, Absent, slurm, slurm_pool
from moulin.domain.node_events import NodeHealthObserved
from tests.slurm_cluster import SlurmCluster
from tests.ssh_server import SshServer
from tests.ssh_server import missing_programs as missing_for_ssh

RANKS: Final = 3
POOL: Final = "hpc"
FAR: Final = "far"
DEVICE_KINDS: Final = ("xid", "device_missing", "ecc_uncorrected")
KINDS: Final = ("power_off", *DEVICE_KINDS, "slurmd_silent", "controller_silent", "line_cut")
# Slurm gives a node up after this; three times in that time it asks those it did not hear for a third of it
# whether they are there. For a silence its patience is longer than the silence, and that longer than Slurm
# takes to notice it: up to two thirds of its patience and some 13 s.
TIMEOUT_S: Final = 6
PATIENCE_S: Final = 90
AWAY_S: Final = 80.0
SSH: Final = """\
#!/bin/sh
exec {ssh} {options} "$@"
"""


def cases(folder: Path, rounds: int, kinds: Sequence[str]) -> list[Case]:
    """Strike a gang of three on four nodes, and one task on nodes that are reached over SSH."""
    has_drivers = bool({*(kinds or KINDS)} & {*DEVICE_KINDS})
    if has_drivers and shutil.which("cc") is None:
        raise Absent("no C compiler for the replayed driver: apt-get install gcc")
    with slurm(timeout_s=TIMEOUT_S, has_drivers=has_drivers) as cluster:
        return strike(folder, cluster, rounds, kinds)


def strike(
    folder: Path, cluster: SlurmCluster, rounds: int, kinds: Sequence[str] = ()
) -> list[Case]:
    """Do it on a cluster that runs; its nodes are well again afterwards."""
    wanted = kinds or KINDS
    line = Line.open() if "line_cut" in wanted and not missing_for_ssh() else None
    pools, environment = slurm_pool(cluster, POOL), None
    if line is not None:
        pools += "\n  " + slurm_pool(
            cluster, FAR, zone=FAR_ZONE, partition="short", ssh=line.destination
        )
        environment = line.environment
    try:
        with moulin(folder, pools, len(cluster.names), environment) as front:
            return _strike(folder, front, cluster, line, [*wanted] * rounds)
    finally:
        if line is not None:
            line.close()


def _strike(
    folder: Path, front: Front, cluster: SlurmCluster, line: "Line | None", kinds: Sequence[str]
) -> list[Case]:
    gang = Gang.begin("slurm", front.client, folder, ranks=RANKS, resources=RESOURCES, zone="hall")
    far = None
    if line is not None:
        far = Gang.begin("slurm", front.client, folder, ranks=1, name=FAR, zone=FAR_ZONE)
    for number, kind in enumerate(kinds):
        # The far task's node is spared: what befalls it there is another case.
        taken = host(far.nodes()[0]) if far is not None else ""
        there = [node for node in gang.nodes() if host(node) != taken]
        node = there[number % len(there)]
        if kind == "power_off":
            lost = host(node)
            gang.fails(
                kind, node, partial(cluster.power_off, lost), partial(cluster.start_node, lost)
            )
        elif kind in DEVICE_KINDS:
            lose_device(kind, gang, node, front, cluster)
        elif kind == "slurmd_silent":
            frozen = host(node)
            cluster.set_timeout(PATIENCE_S)
            gang.is_silent(
                kind,
                node,
                partial(cluster.freeze, frozen),
                partial(cluster.thaw, frozen),
                seconds_max=AWAY_S,
            )
            cluster.set_timeout(cluster.timeout_s)
        elif kind == "controller_silent":
            gang.is_silent(
                kind,
                node,
                partial(cluster.freeze, "slurmctld"),
                partial(cluster.thaw, "slurmctld"),
                seconds_max=AWAY_S,
            )
        elif line is not None and far is not None:
            far.is_silent(kind, far.nodes()[0], line.cut, line.mend, seconds_max=AWAY_S)
    found = gang.cases + (far.cases if far is not None else [])
    for each in (gang, far):
        if each is not None:
            each.end()
    return found


def lose_device(kind: str, gang: Gang, node: str, front: Front, cluster: SlurmCluster) -> None:
    """Let one node's driver tell of the device that a task of a gang holds there."""
    device = device_of(gang.pids()[gang.nodes().index(node)])
    readers = front.running.data.glob
    files = f"**/.health/*/{host(node)}/{gang.job.id}.*.g{gang.generation()}.t*"
    known = wait_for(lambda: any(readers(files)) and is_read(front, node, device), BEGUN_S_MAX)
    if not known:
        raise RuntimeError(f"nobody reads device {device} of {node}")
    driver = cluster.drivers[host(node)]
    gang.fails(kind, node, partial(BLOWS[kind], driver, device), driver.heal)


def is_read(front: Front, node: str, device: int) -> bool:
    """Say whether it is known how a device was: what it tells then is news."""
    payloads = (event.payload for event in front.client.events(is_following=False))
    return any(
        each.node == node and device in {it.index for it in each.reading.devices or ()}
        for each in payloads
        if isinstance(each, NodeHealthObserved)
    )


def host(node: str) -> str:
    """Return how Slurm calls a node."""
    return node.removeprefix(f"{POOL}-").removeprefix(f"{FAR}-")


class Line:
    """A connection to the cluster over SSH, which can be cut."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = SshServer(folder)
        self.destination = f"{getpass.getuser()}@127.0.0.1"
        program = folder / "bin" / "ssh"
        program.parent.mkdir()
        options = " ".join(self.server.options)
        program.write_text(SSH.format(ssh=shutil.which("ssh"), options=options))
        program.chmod(0o755)

    @classmethod
    def open(cls) -> "Line":
        """Make a server in a folder of its own."""
        return cls(Path(tempfile.mkdtemp(prefix="moulin-ssh-")))

    @property
    def environment(self) -> Mapping[str, str]:
        """What makes `ssh` find the way."""
        return {"PATH": f"{self.folder}/bin:{os.environ.get('PATH', '')}"}

    def cut(self) -> None:
        """End every connection and let no new one in."""
        self.server.cut()

    def mend(self) -> None:
        """Let connections in again."""
        self.server.start()

    def close(self) -> None:
        """End the server."""
        self.server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

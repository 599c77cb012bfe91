"""What `crash` kills beside Moulin: nothing on this machine alone, the daemons of a real Slurm on another.

A killed daemon comes back after a while, as an administrator's supervisor brings it back: mostly soon,
sometimes only after the controller has given its node up. A controller saves its jobs every five
seconds, so a killed one forgets the newest, gives their numbers to others and drains the nodes where it
then meets both ("Duplicate jobid"); those are put back to work, as an administrator does.
"""

import random
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from benchmarks._crash_kills import SLURMCTLD, SLURMD, Victim, shim_of, step_directories
from benchmarks._crash_world import CLUSTER, HALL
from benchmarks._moulin import wait_for
from moulin.app.processes import mark_of
from tests.slurm_cluster import SlurmCluster

POOL: Final = "hpc"
POOLS: Final = """\
  {pool}:
    zone: {zone}
    engine: slurm
    machine_class: this-cpu
    settings: {{partition: batch, conf: {conf}, poll_ms: 500}}
"""
# Slurm gives up a node after 10 s (`SlurmdTimeout` of the tests' cluster).
SOON_S: Final = (0.2, 4.0)
LATE_S: Final = (12.0, 18.0)
LATE_SHARE: Final = 0.25
RESUME_PERIOD_S: Final = 3.0
MENDED_S_MAX: Final = 120.0
COMPLETED_S_MAX: Final = 60.0


class LocalPlant:
    """This machine: its only daemons are Moulin's."""

    pools = ""
    zone = HALL

    def __init__(self, data: Path) -> None:
        self.data = data

    def spools(self) -> tuple[Path, ...]:
        """Return where the steps' files are."""
        return (self.data / "spool",)

    def victims(self) -> Iterable[Victim]:
        """Return no daemon."""
        return ()

    def killed(self, _victim: Victim) -> tuple[str, ...]:
        """Bring nothing back: the supervisor does."""
        return ()

    def mend(self) -> None:
        """Wait for nothing."""

    def left(self) -> Iterable[str]:
        """Return nothing: processes are counted by whoever asks."""
        return ()

    def close(self) -> None:
        """End nothing."""


class SlurmPlant(LocalPlant):
    """A Slurm whose daemons die and come back."""

    zone = CLUSTER

    def __init__(self, data: Path, cluster: SlurmCluster, dice: random.Random) -> None:
        super().__init__(data)
        self.cluster = cluster
        conf = cluster.environment["SLURM_CONF"]
        self.pools = POOLS.format(pool=POOL, zone=CLUSTER, conf=conf)
        self._dice = dice
        self._outages = Outages(cluster)
        self._outages.start()

    @property
    def _spool(self) -> Path:
        return self.data / "slurm" / POOL / "spool"

    def spools(self) -> tuple[Path, ...]:
        """Return where the steps' files are."""
        return (*super().spools(), self._spool)

    def victims(self) -> Iterator[Victim]:
        """Yield the daemons that live now."""
        for label in (SLURMCTLD, *self.cluster.names):
            mark = mark_of(self.cluster.pid(label))
            if mark is not None:
                yield Victim(SLURMCTLD if label == SLURMCTLD else SLURMD, mark, label)

    def killed(self, victim: Victim) -> tuple[str, ...]:
        """Bring a daemon back later; return the steps of what was under way on it."""
        if victim.kind not in (SLURMCTLD, SLURMD):
            return ()
        is_late = victim.kind == SLURMD and self._dice.random() < LATE_SHARE
        self._outages.begin(victim.step, self._dice.uniform(*(LATE_S if is_late else SOON_S)))
        return tuple(self._under_way("" if victim.kind == SLURMCTLD else victim.step))

    def mend(self) -> None:
        """Return when every daemon is back and every node takes work."""
        if not wait_for(self._is_mended, MENDED_S_MAX):
            why = self.cluster.run("sinfo", "-h", "-R", "-o", "%n %T %E")
            raise RuntimeError(f"Slurm did not come back: {why}")

    def left(self) -> Iterator[str]:
        """Yield the jobs that Slurm still has, once it had time to end those it is ending."""
        wait_for(lambda: not self._listed(), COMPLETED_S_MAX)
        yield from (f"Slurm has job {line}" for line in self._listed())

    def close(self) -> None:
        """Let nothing come back any more, and leave what the daemons logged beside Moulin's data."""
        self._outages.stop()
        logs = self.data.parent / "slurm"
        logs.mkdir()
        for log in self.cluster.folder.glob("*.log"):
            shutil.copy(log, logs)

    def _is_mended(self) -> bool:
        states = self.cluster.states()
        return (
            self._outages.are_over() and bool(states) and states <= {"idle", "mixed", "allocated"}
        )

    def _listed(self) -> list[str]:
        return self.cluster.run("squeue", "-h", "-o", "%i %j %T").splitlines()

    def _under_way(self, node: str) -> Iterator[str]:
        """Yield the steps without an end whose attempt has a task on a node, or any."""
        for directory in step_directories(self._spool):
            if (directory / "exit").exists() and shim_of(directory) is None:
                continue
            if not node or _is_there(directory, node):
                yield f"{directory.parent.name}.t{directory.name}"


def _is_there(directory: Path, node: str) -> bool:
    """Say whether a step's gang has, or a single task could have, a task on a node."""
    try:
        return node in (directory.parent / "hosts").read_text().split()
    except OSError:
        shim = shim_of(directory)
        mark = f"SLURMD_NODENAME={node}".encode()
        return shim is None or mark in _environment(shim.pid)


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


class Outages(threading.Thread):
    """Brings daemons back when their time has come."""

    def __init__(self, cluster: SlurmCluster) -> None:
        super().__init__(daemon=True)
        self._cluster = cluster
        self._due_s: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def begin(self, label: str, seconds: float) -> None:
        """Bring a daemon back after so many seconds."""
        with self._lock:
            self._due_s[label] = time.monotonic() + seconds

    def are_over(self) -> bool:
        """Say whether every daemon is back."""
        with self._lock:
            return not self._due_s

    def run(self) -> None:
        """Bring back until stopped."""
        resume_s = time.monotonic()
        while not self._stopping.wait(0.1):
            now_s = time.monotonic()
            if now_s >= resume_s:
                self._resume()
                resume_s = now_s + RESUME_PERIOD_S
            with self._lock:
                due = [label for label, due_s in self._due_s.items() if due_s <= now_s]
            for label in due:
                self._bring_back(label)
                with self._lock:
                    del self._due_s[label]

    def stop(self) -> None:
        """Bring nothing back any more."""
        self._stopping.set()
        self.join()

    def _resume(self) -> None:
        for node in self._cluster.run("sinfo", "-h", "-N", "-o", "%N %T").splitlines():
            name, state = node.split()
            if state.startswith("drain"):
                self._cluster.run("scontrol", "update", f"NodeName={name}", "State=RESUME")

    def _bring_back(self, label: str) -> None:
        if label == SLURMCTLD:
            self._cluster.kill_controller()  # it is dead; its record goes
            self._cluster.start_controller()
        else:
            self._cluster.kill_node(label)
            self._cluster.start_node(label)

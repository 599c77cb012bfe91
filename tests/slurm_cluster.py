"""A real Slurm on this machine for a test session: munged, slurmctld and four slurmd with GPUs that are files.

Where a test wants it, each node has a driver of its own that tells of its GPUs. Its library and what
it answers reach programs as a site lets them, by Slurm's TaskProlog; those whose environment is made
anew find a `python3` that knows them.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path

import pytest

from moulin.app.demo.cluster.own_slurm import (
    PATH,
    OwnSlurm,
    end_at_once,
    free_ports,
    living_pids,
    missing_programs,
    running,
)
from tests import nvml
from tests.lacking import lacking

__all__ = (
    "PATH",
    "SlurmCluster",
    "driven_cluster",
    "end_at_once",
    "free_ports",
    "living_pids",
    "missing_programs",
    "programs_of",
    "running",
    "slurm_cluster",
    "slurm_of",
)

# Releases of Debian whose Slurm runs here, too. `make conformance` adds `sid`, which changes by the day.
SUITES = os.environ.get("MOULIN_SLURM_SUITES", "trixie").split()
UNPACK = Path(__file__).parent.parent / "scripts" / "slurm_release.sh"
NODES = 4
CPUS = 8
MEMORY_MB = 4000
GPUS = 4
TIMEOUT_S = 10
PATIENCE_S = 120
SITE_PYTHON = """\
#!/bin/sh
export LD_LIBRARY_PATH={folder} {variable}={folder}/$SLURMD_NODENAME
exec /usr/bin/env PATH="${{PATH#{folder}/bin:}}" python3 "$@"
"""
TASK_PROLOG = """\
#!/bin/sh
echo export LD_LIBRARY_PATH={folder}
echo export {variable}={folder}/$SLURMD_NODENAME
echo export "PATH={folder}/bin:${{PATH#{folder}/bin:}}"
"""


class SlurmCluster(OwnSlurm):
    """A Slurm whose nodes have GPUs, with a second partition and faults to order."""

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = NODES,
        prefix: str = "node-",
        cpus: int = CPUS,
        memory_mb: int = MEMORY_MB,
        timeout_s: int = TIMEOUT_S,
        has_drivers: bool = False,
        programs: str = "",
    ) -> None:
        """Write what Slurm needs; a node that says nothing for `timeout_s` is given up."""
        drivers = folder / "drivers"
        prolog = (f"TaskProlog={drivers}/task_prolog",) if has_drivers else ()
        super().__init__(
            folder,
            nodes=nodes,
            prefix=prefix,
            cpus=cpus,
            memory_mb=memory_mb,
            timeout_s=timeout_s,
            programs=programs,
            node_words=f"Gres=gpu:h100:{GPUS}",
            more=(
                "GresTypes=gpu",
                f"PartitionName=short Nodes={prefix}[0-1] MaxTime=30 State=UP",
                *prolog,
            ),
        )
        self.timeout_s = timeout_s
        devices = folder / "dev"
        devices.mkdir()
        for index in range(GPUS):
            (devices / f"gpu{index}").touch()
        (folder / "gres.conf").write_text(
            f"NodeName={prefix}[0-{nodes - 1}] Name=gpu Type=h100"
            f" File={devices}/gpu[0-{GPUS - 1}]\n"
        )
        self.drivers = make_drivers(drivers, self.names) if has_drivers else {}

    def stop_controller(self) -> None:
        """Let the controller save its state and end; nodes and tasks go on."""
        self._end("slurmctld", signal.SIGTERM)

    def kill_controller(self) -> None:
        """End the controller without a word: what it did not save yet, it never knew."""
        self._end("slurmctld", signal.SIGKILL)

    def set_timeout(self, seconds: int) -> None:
        """Give a node up only after it said nothing for so long, from now on."""
        lines = [
            f"SlurmdTimeout={seconds}" if line.startswith("SlurmdTimeout=") else line
            for line in self.conf.read_text().splitlines()
        ]
        self.conf.write_text("\n".join([*lines, ""]))
        self.run("scontrol", "reconfigure")

    @contextmanager
    def node_down(self, name: str, reason: str) -> Iterator[None]:
        """Let an operator call a node down that does not answer, until the block ends.

        One that answers is taken back by this cluster at once, whatever was said of it.
        """
        self.kill_node(name)
        self.run("scontrol", "update", f"node={name}", "state=down", f"reason={reason}")
        try:
            yield
        finally:
            self.start_node(name)
            self.wait_for(lambda: self.is_up(name), f"{name} does not come back")

    def is_up(self, name: str) -> bool:
        """Tell whether a node answers Slurm and is not down; it may be drained."""
        state = self.run("sinfo", "-h", "-N", "-p", "batch", "-n", name, "-o", "%T")
        return bool(state) and "down" not in state and not state.endswith("*")

    def pid(self, label: str) -> int:
        """Return the process of `slurmctld` or of a node's slurmd, 0 when none was started."""
        process = self._processes.get(label)
        return process.pid if process is not None else 0

    def freeze(self, label: str) -> None:
        """Let a daemon neither answer nor end."""
        self._processes[label].send_signal(signal.SIGSTOP)

    def thaw(self, label: str) -> None:
        """Let a frozen daemon go on."""
        self._processes[label].send_signal(signal.SIGCONT)


def make_drivers(folder: Path, nodes: Sequence[str]) -> Mapping[str, nvml.Driver]:
    """Build the library and what lets programs of each node find it; needs a C compiler."""
    python = folder / "bin" / "python3"
    python.parent.mkdir(parents=True)
    nvml.build(folder)
    for path, text in ((python, SITE_PYTHON), (folder / "task_prolog", TASK_PROLOG)):
        path.write_text(text.format(folder=folder, variable=nvml.SCRIPT_VARIABLE))
        path.chmod(0o755)
    return {node: nvml.Driver(folder / node, GPUS, f"GPU-{node}") for node in nodes}


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Start a cluster once; people without Slurm skip its tests, CI fails."""
    _need_slurm()
    with running(SlurmCluster) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def driven_cluster() -> Iterator[SlurmCluster]:
    """Start one whose nodes have drivers, which tell of devices; no node of it is given up soon."""
    _need_slurm()
    if shutil.which("cc") is None:
        lacking("needs a C compiler: apt-get install build-essential")
    with running(partial(SlurmCluster, timeout_s=PATIENCE_S, has_drivers=True)) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def slurm_of() -> Iterator[Callable[[str], SlurmCluster]]:
    """Start the Slurm of another release of Debian when it is asked for, each once."""
    with ExitStack() as stack:

        @cache
        def start(suite: str) -> SlurmCluster:
            _need_slurm()
            try:
                make = partial(SlurmCluster, programs=programs_of(suite))
            except LookupError as reason:
                lacking(str(reason))
            return stack.enter_context(running(make))

        yield start


def programs_of(suite: str) -> str:
    """Return the folder of a release's programs, fetched where it was not yet; raises `LookupError`."""
    done = subprocess.run([UNPACK, suite], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LookupError(done.stderr.strip())
    return done.stdout.strip()


def _need_slurm() -> None:
    missing = missing_programs()
    if missing:
        lacking(f"no Slurm found ({', '.join(missing)}): apt-get install slurm-wlm munge")

"""A Slurm of one's own on this machine: munged, slurmctld and a slurmd per node, on free ports.

Everything is private to one folder: key, sockets, state, logs. The daemons run in the foreground as
children and are ended by their process ids. What its nodes have is written, not measured.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from moulin.domain.errors import DeadlineExceeded, LocalError

PROGRAMS: Final = (
    *("munged", "slurmctld", "slurmd", "sbatch", "squeue", "srun", "scancel", "scontrol"),
)
PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
START_S: Final = 60.0
STOP_S: Final = 20.0
CONFIGURATION: Final = """\
ClusterName=mill
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={controller_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MinJobAge=30
KillWait=5
SlurmdTimeout={timeout_s}
MessageTimeout=3
TCPTimeout=2
InactiveLimit=0
SchedulerParameters=batch_sched_delay=0
{nodes}
PartitionName=batch Nodes=node-[0-{last}] Default=YES MaxTime=1-00:00:00 State=UP
"""
NODE: Final = (
    "NodeName=node-{index} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port}"
    " CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1"
    " RealMemory={memory_mb}"
)


class OwnSlurm:
    """One controller and its nodes; `conf` is what Slurm's commands need to find it."""

    def __init__(
        self, folder: Path, *, nodes: int, cpus: int, memory_mb: int, timeout_s: int
    ) -> None:
        """Write what Slurm needs; a node that says nothing for `timeout_s` is given up.

        Raises `LocalError` when one of Slurm's programs is not installed.
        """
        missing = missing_programs()
        if missing:
            raise LocalError(
                f"start a Slurm here: {', '.join(missing)} is not installed",
                hint="apt-get install slurm-wlm munge, as root, or use `make demo-slurm`",
            )
        self.folder = folder
        self.names = tuple(f"node-{index}" for index in range(nodes))
        self.conf = folder / "slurm.conf"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "state").mkdir(parents=True)
        folder.chmod(0o755)  # munged refuses a socket where others cannot reach it
        ports = _free_ports(nodes + 1)
        lines = (
            NODE.format(index=index, port=ports[index], cpus=cpus, memory_mb=memory_mb)
            for index in range(nodes)
        )
        self.conf.write_text(
            CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0],
                user=getpass.getuser(),
                folder=folder,
                controller_port=ports[-1],
                timeout_s=timeout_s,
                last=nodes - 1,
                nodes="\n".join(lines),
            ),
            encoding="utf-8",
        )
        key = folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)

    def start(self) -> None:
        """Start every daemon and wait until every node is idle.

        Raises `DeadlineExceeded` with the last words of what did not start.
        """
        files = {
            "socket": "munge.socket",
            "key-file": "munge.key",
            "pid-file": "munged.pid",
            "log-file": "munged.log",
            "seed-file": "munged.seed",
        }
        options = [f"--{option}={self.folder / name}" for option, name in files.items()]
        self._spawn("munged", "--foreground", "--force", "--num-threads=2", *options)
        self._wait((self.folder / "munge.socket").exists, "munged.log", "munged does not listen")
        self._spawn("slurmctld", "-D")
        self._wait(lambda: "UP" in self.run("scontrol", "ping"), "slurmctld.log", "no answer")
        for name in self.names:
            self._spawn("slurmd", "-D", "-N", name, label=name)
        self._wait(
            lambda: set(self.run("sinfo", "-h", "-N", "-o", "%T").split()) == {"idle"},
            "slurmctld.log",
            "its nodes are not idle",
        )

    def power_off(self, name: str) -> None:
        """End a node's slurmd and whatever it ever started, as a cut of its power does."""
        self._end(name, signal.SIGKILL)
        while found := self._of_node(name):
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def stop(self) -> None:
        """Cancel what is left, then end the daemons."""
        if "slurmctld" in self._processes:
            with suppress(subprocess.SubprocessError, DeadlineExceeded):
                self.run("scancel", "--quiet", f"--user={getpass.getuser()}")
                self._wait(
                    lambda: not self.run("squeue", "-h"), "slurmctld.log", "jobs stay", STOP_S
                )
        for label in (*self.names, "slurmctld", "munged"):
            self._end(label, signal.SIGTERM)

    def run(self, *command: str) -> str:
        """Return what one of Slurm's commands prints, nothing when it fails."""
        done = subprocess.run(
            command,
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def _environment(self) -> dict[str, str]:
        return {"PATH": PATH, "SLURM_CONF": str(self.conf)}

    def _spawn(self, program: str, *arguments: str, label: str = "") -> None:
        found = shutil.which(program, path=PATH) or program
        with (self.folder / f"{label or program}.out").open("ab") as out:
            self._processes[label or program] = subprocess.Popen(
                [found, *arguments],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.folder,
                start_new_session=True,
            )

    def _wait(
        self, is_true: Callable[[], bool], log: str, words: str, wait_s: float = START_S
    ) -> None:
        deadline_s = time.monotonic() + wait_s
        while not is_true():
            if time.monotonic() > deadline_s:
                path = self.folder / log
                said = path.read_text(errors="replace")[-500:] if path.exists() else ""
                raise DeadlineExceeded(f"start a Slurm here: {words}; {said}")
            time.sleep(0.1)

    def _end(self, label: str, number: int) -> None:
        process = self._processes.pop(label, None)
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=STOP_S)

    def _of_node(self, name: str) -> list[int]:
        """Return the living processes that a node's slurmd started: by its log or their variables."""
        log = str(self.folder / f"slurmd.{name}.log")
        marks = {f"SLURMD_NODENAME={name}".encode(), f"SLURM_CONF={self.conf}".encode()}
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with suppress(OSError):
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                words = set((entry / "environ").read_bytes().split(b"\0"))
                is_its = marks <= words or any(
                    str(each.readlink()) == log for each in (entry / "fd").iterdir()
                )
                if is_its and state not in ("Z", "X"):
                    found.append(int(entry.name))
        return found


def missing_programs() -> Sequence[str]:
    """Return Slurm's programs that are not installed here."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]

"""A real Slurm on this machine for a test session: munged, slurmctld and four slurmd on free ports.

Everything is private to a folder of its own: key, sockets, state, logs. Daemons run in the foreground
as children, and are ended by their process ids.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

NODES = 4
CPUS = 8
MEMORY_MB = 4000
GPUS = 4
TIMEOUT_S = 10
START_DEADLINE_S = 60
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "srun", "scancel", "scontrol")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

CONFIGURATION = """\
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
GresTypes=gpu
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MinJobAge=30
KillWait=5
SlurmdTimeout={timeout}
MessageTimeout=3
TCPTimeout=2
InactiveLimit=0
SchedulerParameters=batch_sched_delay=0
{nodes}
PartitionName=batch Nodes={prefix}[0-{last}] Default=YES MaxTime=1-00:00:00 State=UP
PartitionName=short Nodes={prefix}[0-1] MaxTime=30 State=UP
"""
NODE = (
    "NodeName={prefix}{index} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port}"
    " CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1"
    " RealMemory={memory} Gres=gpu:h100:{gpus}"
)


class SlurmCluster:
    """One controller and its nodes; `environment` is what Slurm's commands need to find it."""

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = NODES,
        prefix: str = "node-",
        cpus: int = CPUS,
        memory_mb: int = MEMORY_MB,
        timeout_s: int = TIMEOUT_S,
    ) -> None:
        """Write what Slurm needs; a node that says nothing for `timeout_s` is given up."""
        self.folder = folder
        self.names = tuple(f"{prefix}{index}" for index in range(nodes))
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        ports = free_ports(nodes + 1)
        devices = folder / "dev"
        (folder / "state").mkdir(parents=True)
        devices.mkdir()
        for index in range(GPUS):
            (devices / f"gpu{index}").touch()
        node_lines = [
            NODE.format(
                prefix=prefix,
                index=index,
                port=ports[index],
                cpus=cpus,
                memory=memory_mb,
                gpus=GPUS,
            )
            for index in range(nodes)
        ]
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0],
                user=getpass.getuser(),
                folder=folder,
                controller_port=ports[-1],
                prefix=prefix,
                timeout=timeout_s,
                last=nodes - 1,
                nodes="\n".join(node_lines),
            )
        )
        (folder / "gres.conf").write_text(
            f"NodeName={prefix}[0-{nodes - 1}] Name=gpu Type=h100"
            f" File={devices}/gpu[0-{GPUS - 1}]\n"
        )
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)

    def start(self) -> None:
        """Start every daemon and wait until every node is idle."""
        self._start_munge()
        self.start_controller()
        for name in self.names:
            self.start_node(name)
        self.wait_for(lambda: self.states() == {"idle"}, "the nodes are not idle")

    def _start_munge(self) -> None:
        names = {
            "socket": "munge.socket",
            "key-file": "munge.key",
            "pid-file": "munged.pid",
            "log-file": "munged.log",
            "seed-file": "munged.seed",
        }
        files = [f"--{option}={self.folder / name}" for option, name in names.items()]
        self._spawn("munged", "--foreground", "--force", "--num-threads=2", *files)
        self.wait_for((self.folder / "munge.socket").exists, "munged does not listen")

    def start_controller(self) -> None:
        """Start slurmctld, which goes on from what it saved."""
        self._spawn("slurmctld", "-D")
        self.wait_for(lambda: "UP" in self.run("scontrol", "ping"), "slurmctld does not answer")

    def stop_controller(self) -> None:
        """Let the controller save its state and end; nodes and tasks go on."""
        self._end("slurmctld", signal.SIGTERM)

    def set_timeout(self, seconds: int) -> None:
        """Give a node up only after it said nothing for so long."""
        conf = self.folder / "slurm.conf"
        lines = [
            f"SlurmdTimeout={seconds}" if line.startswith("SlurmdTimeout=") else line
            for line in conf.read_text().splitlines()
        ]
        conf.write_text("\n".join([*lines, ""]))
        self.run("scontrol", "reconfigure")

    def kill_controller(self) -> None:
        """End the controller without a word: what it did not save yet, it never knew."""
        self._end("slurmctld", signal.SIGKILL)

    def start_node(self, name: str) -> None:
        """Start the slurmd of one node."""
        self._spawn("slurmd", "-D", "-N", name, label=name)

    def kill_node(self, name: str) -> None:
        """End the slurmd of one node without a word; its steps' processes live on."""
        self._end(name, signal.SIGKILL)

    def power_off(self, name: str) -> None:
        """End the slurmd of one node and all that it ever started, as a cut of its power does."""
        self.kill_node(name)
        end_at_once(lambda: self.processes(name))

    def processes(self, name: str) -> list[int]:
        """Return what lives of a node's steps: by the log of its slurmd, or by what tasks are told."""
        log, marks = str(self.folder / f"slurmd.{name}.log"), self._marks(name)
        return [pid for pid in living_pids() if _is_of_node(pid, log, marks)]

    def _marks(self, name: str) -> set[bytes]:
        variables = {"SLURMD_NODENAME": name, **self.environment}
        return {f"{key}={value}".encode() for key, value in variables.items()}

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

    def stop(self) -> None:
        """Cancel what is left, then end the daemons by their process ids."""
        if "slurmctld" in self._processes:
            with suppress(subprocess.SubprocessError):
                self.run("scancel", "--quiet", f"--user={getpass.getuser()}")
                self.wait_for(lambda: not self.run("squeue", "-h"), "jobs do not end", 20)
        for label in [*self.names, "slurmctld", "munged"]:
            self._end(label, signal.SIGTERM)

    def states(self) -> set[str]:
        """Return the states of all nodes, as sinfo calls them."""
        return set(self.run("sinfo", "-h", "-N", "-o", "%T").split())

    def run(self, *command: str) -> str:
        """Run one of Slurm's commands and return its output; empty when it fails."""
        done = subprocess.run(
            command,
            env={"PATH": PATH, **self.environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def wait_for(self, is_true, words: str, wait_s: float = START_DEADLINE_S) -> None:
        """Wait for something that must come; else fail with the controller's last words."""
        deadline_s = time.monotonic() + wait_s
        while not is_true():
            if time.monotonic() > deadline_s:
                log = self.folder / "slurmctld.log"
                said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
                raise AssertionError(f"{words}; {said}")
            time.sleep(0.1)

    def _spawn(self, program: str, *arguments: str, label: str = "") -> None:
        found = shutil.which(program, path=PATH) or program
        with (self.folder / f"{label or program}.out").open("ab") as out:
            self._processes[label or program] = subprocess.Popen(
                [found, *arguments],
                env={"PATH": PATH, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.folder,
                start_new_session=True,
            )

    def _end(self, label: str, number: int) -> None:
        process = self._processes.pop(label, None)
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=20)


def missing_programs() -> Sequence[str]:
    """Return Slurm's programs that are not installed here."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Start a cluster once; people without Slurm skip its tests, CI fails."""
    missing = missing_programs()
    if missing:
        reason = f"no Slurm found ({', '.join(missing)}): apt-get install slurm-wlm munge"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="moulin-slurm-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        cluster = SlurmCluster(folder)
        stack.callback(cluster.stop)
        cluster.start()
        yield cluster


def end_at_once(find: Callable[[], Sequence[int]]) -> None:
    """End processes so that none sees another's end; `find` is asked again for what came since."""
    frozen: set[int] = set()
    while new := set(find()) - frozen:
        _send(new, signal.SIGSTOP)
        frozen |= new
    while found := find():
        _send(found, signal.SIGKILL)
        time.sleep(0.02)


def _send(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def living_pids() -> list[int]:
    """Return the processes of this machine that have not ended."""
    found = []
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        with suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state not in ("Z", "X"):
                found.append(pid)
    return found


def _is_of_node(pid: int, log: str, marks: set[bytes]) -> bool:
    with suppress(OSError):
        if any(str(entry.readlink()) == log for entry in Path(f"/proc/{pid}/fd").iterdir()):
            return True
    with suppress(OSError):
        return marks <= set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return False


def free_ports(count: int) -> list[int]:
    """Return different free ports of this machine."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]

"""A Slurm of one's own on this machine: munged, slurmctld and a slurmd per node, on free ports.

Everything is private to one folder: key, sockets, state, logs. The daemons run in the foreground as
children and are ended by their process ids. What its nodes have is written, not measured.
"""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from moulin.domain.errors import DeadlineExceeded, LocalError

PROGRAMS: Final = (
    *("munged", "slurmctld", "slurmd", "sbatch", "squeue", "srun", "scancel", "scontrol"),
)
PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
PORT_MIN: Final = 10_000
PORTS: Final = 10_000
START_S: Final = 60.0
STOP_S: Final = 20.0
# Slurm's sockets lie deep in its folder, and no path of a socket may be longer than 107 bytes.
SHORT: Final = "/tmp"  # noqa: S108 - mkdtemp makes a private folder in it
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
{more}
PartitionName=batch Nodes=ALL Default=YES MaxTime=1-00:00:00 State=UP
"""
NODE: Final = (
    "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port}"
    " CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1"
    " RealMemory={memory_mb} {node_words}"
)


S = TypeVar("S", bound="OwnSlurm")


class OwnSlurm:
    """One controller and its nodes; `environment` is what Slurm's commands need to find it."""

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int,
        cpus: int,
        memory_mb: int,
        timeout_s: int,
        prefix: str = "node-",
        node_words: str = "",
        more: Sequence[str] = (),
        programs: str = "",
    ) -> None:
        """Write what Slurm needs; a node that says nothing for `timeout_s` is given up.

        `node_words` are further words of each node, `more` further lines of the configuration,
        `programs` the folder of Slurm's programs where they are not in PATH.
        Raises `LocalError` when one of Slurm's programs is not installed.
        """
        self.path = f"{programs}:{PATH}" if programs else PATH
        missing = missing_programs(self.path)
        if missing:
            raise LocalError(
                f"start a Slurm here: {', '.join(missing)} is not installed",
                hint="apt-get install slurm-wlm munge, as root, or use `make demo-slurm`",
            )
        self.folder = folder
        self.names = tuple(f"{prefix}{index}" for index in range(nodes))
        self.conf = folder / "slurm.conf"
        self.environment = {
            "SLURM_CONF": str(self.conf),
            **({"PATH": self.path} if programs else {}),
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "state").mkdir(parents=True)
        folder.chmod(0o755)  # munged refuses a socket where others cannot reach it
        *ports, controller_port = free_ports(nodes + 1)
        sizes = {"cpus": cpus, "memory_mb": memory_mb, "node_words": node_words}
        lines = (
            NODE.format(name=name, port=port, **sizes).rstrip()
            for name, port in zip(self.names, ports, strict=True)
        )
        self.plugins = unpacked_plugins(self.path)
        if self.plugins:
            more = (f"PluginDir={self.plugins}", *more)
            # A release so new takes the machine's own groups where it may, unless it is told.
            (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n", encoding="utf-8")
        text = CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0],
            user=getpass.getuser(),
            folder=folder,
            controller_port=controller_port,
            timeout_s=timeout_s,
            more="\n".join((*lines, *more)),
        )
        self.conf.write_text(text, encoding="utf-8")
        key = folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)

    def start(self) -> None:
        """Start every daemon and wait until every node is idle.

        Raises `DeadlineExceeded` with the controller's last words.
        """
        self._start_munge()
        self.start_controller()
        for name in self.names:
            self.start_node(name)
        self.wait_for(lambda: self.states() == {"idle"}, "its nodes are not idle")

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
        """Start slurmctld, which goes on from what it saved. Raises `DeadlineExceeded`."""
        self._spawn("slurmctld", "-D")
        self.wait_for(lambda: "UP" in self.run("scontrol", "ping"), "slurmctld does not answer")

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
        log = str(self.folder / f"slurmd.{name}.log")
        variables = {"SLURMD_NODENAME": name, **self.environment}
        marks = {f"{key}={value}".encode() for key, value in variables.items()}
        return [pid for pid in living_pids() if _is_of_node(pid, log, marks)]

    def stop(self) -> None:
        """Cancel what is left, then end the daemons by their process ids."""
        if "slurmctld" in self._processes:
            with suppress(subprocess.SubprocessError, DeadlineExceeded):
                self.run("scancel", "--quiet", f"--user={getpass.getuser()}")
                self.wait_for(lambda: not self.run("squeue", "-h"), "jobs do not end", STOP_S)
        for label in (*self.names, "slurmctld", "munged"):
            self._end(label, signal.SIGTERM)

    def states(self) -> set[str]:
        """Return the states of all nodes, as sinfo calls them."""
        return set(self.run("sinfo", "-h", "-N", "-o", "%T").split())

    def run(self, *command: str) -> str:
        """Return what one of Slurm's commands prints, nothing when it fails."""
        done = subprocess.run(
            command,
            env={"PATH": self.path, **self.environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def wait_for(self, is_true: Callable[[], bool], words: str, wait_s: float = START_S) -> None:
        """Wait for what must come; raises `DeadlineExceeded` with the controller's last words."""
        deadline_s = time.monotonic() + wait_s
        while not is_true():
            if time.monotonic() > deadline_s:
                log = self.folder / "slurmctld.log"
                said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
                raise DeadlineExceeded(f"wait for a Slurm here: {words}; {said}")
            time.sleep(0.1)

    def _spawn(self, program: str, *arguments: str, label: str = "") -> None:
        found = shutil.which(program, path=self.path) or program
        with (self.folder / f"{label or program}.out").open("ab") as out:
            self._processes[label or program] = subprocess.Popen(
                [found, *arguments],
                env={"PATH": self.path, **self.environment},
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
            process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=STOP_S)


@contextmanager
def running(make: Callable[[Path], S]) -> Iterator[S]:
    """Run a Slurm, made in a folder of its own, until the block ends. Raises `DeadlineExceeded`."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="moulin-slurm-", dir=SHORT))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        cluster = make(folder)
        stack.callback(cluster.stop)
        cluster.start()
        yield cluster


def missing_programs(path: str = PATH) -> Sequence[str]:
    """Return Slurm's programs that are in no folder of `path`."""
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def unpacked_plugins(path: str) -> str:
    """Return where the plugins of a Slurm are that was unpacked beside an installed one, else nothing."""
    folder = Path(shutil.which("slurmctld", path=path) or "").parent / "plugins"
    return str(folder) if folder.is_dir() else ""


def end_at_once(find: Callable[[], Sequence[int]]) -> None:
    """End processes so that none sees another's end; `find` is asked again for what came since."""
    frozen: set[int] = set()
    while new := set(find()) - frozen:
        _send(new, signal.SIGSTOP)
        frozen |= new
    while found := find():
        _send(found, signal.SIGKILL)
        time.sleep(0.02)


def living_pids() -> list[int]:
    """Return the processes of this machine that have not ended."""
    found = []
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        with suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state not in ("Z", "X"):
                found.append(pid)
    return found


def free_ports(count: int) -> list[int]:
    """Return different free ports of this machine, none of which it gives anybody by itself.

    A daemon that is started again then finds its port as it left it.
    """
    with ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            probe = stack.enter_context(socket.socket())
            port = PORT_MIN + secrets.randbelow(PORTS)
            with suppress(OSError):
                probe.bind(("", port))  # as slurmd does, at every address
                found.append(port)
        return found


def _send(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _is_of_node(pid: int, log: str, marks: set[bytes]) -> bool:
    with suppress(OSError):
        if any(str(entry.readlink()) == log for entry in Path(f"/proc/{pid}/fd").iterdir()):
            return True
    with suppress(OSError):
        return marks <= set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return False

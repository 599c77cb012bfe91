"""A real SSH server on a free local port, for this user and one key that is made for it."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from moulin.app.demo.cluster.own_slurm import unpacked_plugins
from tests.lacking import lacking
from tests.postgres_server import free_port

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
START_DEADLINE_S = 30


class SshServer:
    """One sshd; `options` let a client in, `connections` says how often one came."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        for name in ("host", "user"):
            words = ("-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
            subprocess.run(["ssh-keygen", *words], check=True)
        (folder / "authorized").write_bytes((folder / "user.pub").read_bytes())
        (folder / "config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {folder}/host\n"
            f"PidFile {folder}/sshd.pid\nAuthorizedKeysFile {folder}/authorized\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nLogLevel VERBOSE\n"
            f"PermitRootLogin prohibit-password\n{in_path()}"
        )
        self.start()

    def start(self) -> None:
        """Listen, and wait until it does."""
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        sshd = shutil.which("sshd", path=PATH) or "sshd"
        (self.folder / "log").unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sshd, "-D", "-e", "-f", str(self.folder / "config")],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + START_DEADLINE_S
        while "Server listening" not in self.log():
            assert time.monotonic() < deadline_s, self.log()
            time.sleep(0.05)

    @property
    def options(self) -> tuple[str, ...]:
        """What `ssh` needs to get in, without looking at anybody's configuration."""
        return (
            *("-F", "none", "-p", str(self.port), "-i", str(self.folder / "user")),
            *("-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={self.folder}/known"),
        )

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def connections(self) -> int:
        """Return how many connections were let in so far."""
        return self.log().count("Accepted publickey")

    def cut(self) -> None:
        """End it and every connection at once, as a broken line does."""
        os.kill(self._process.pid, signal.SIGSTOP)  # it lets nobody in any more
        for pid in (*self._children(), self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(timeout=20)

    def freeze(self) -> None:
        """Let every connection there is say nothing any more, as a lost network does; new ones come."""
        for pid in self._children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def drop_frozen(self) -> None:
        """End the connections that say nothing."""
        for pid in self._children():
            with suppress(OSError):
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                    os.kill(pid, signal.SIGKILL)

    def _children(self) -> tuple[int, ...]:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return tuple(map(int, children.read_text().split()))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)


def in_path() -> str:
    """Let the Slurm that tests run with be found over SSH, too, when it is not the installed one."""
    return f"SetEnv PATH={PATH}\n" if unpacked_plugins(PATH) else ""


def missing_programs() -> list[str]:
    """Return what is not there to start a server with."""
    missing = [name for name in ("sshd", "ssh", "ssh-keygen") if not shutil.which(name, path=PATH)]
    return missing if os.geteuid() == 0 else [*missing, "the right to be root"]


def need_ssh() -> None:
    """Let people who cannot start a server skip its tests; CI fails."""
    if missing := missing_programs():
        lacking(f"no SSH server can be started ({', '.join(missing)})")


@pytest.fixture(scope="session")
def ssh_server() -> Iterator[SshServer]:
    """Start a server once; people without one skip its tests, CI fails."""
    need_ssh()
    folder = Path(tempfile.mkdtemp(prefix="moulin-ssh-"))
    server = SshServer(folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)

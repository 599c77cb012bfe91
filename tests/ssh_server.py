"""A real SSH server on a free local port, for this user and one key that is made for it."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

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
            "PermitRootLogin prohibit-password\n"
        )
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        sshd = shutil.which("sshd", path=PATH) or "sshd"
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sshd, "-D", "-e", "-f", str(folder / "config")], stdout=log, stderr=log
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

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)


@pytest.fixture(scope="session")
def ssh_server() -> Iterator[SshServer]:
    """Start a server once; people without one skip its tests, CI fails."""
    missing = [name for name in ("sshd", "ssh", "ssh-keygen") if not shutil.which(name, path=PATH)]
    if missing or os.geteuid() != 0:
        reason = f"no SSH server can be started ({', '.join(missing) or 'not root'})"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="moulin-ssh-"))
    server = SshServer(folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)

"""A real slurmrestd before a Slurm of its own, as another user and with tokens, as it asks for."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from moulin.app.demo.cluster.own_slurm import unpacked_plugins
from tests.lacking import lacking
from tests.slurm_cluster import PATH, SlurmCluster, free_ports, missing_programs, running

TOKENS = "CredType=cred/munge\nAuthAltTypes=auth/jwt\nAuthAltParameters=jwt_key={key}"
PLUGINS = ("/usr/lib/x86_64-linux-gnu/slurm-wlm", "/usr/lib/aarch64-linux-gnu/slurm-wlm")


class RestCluster(SlurmCluster):
    """Two nodes, a controller that knows tokens, and slurmrestd at `url`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, nodes=2, prefix="r-")
        key = folder / "jwt.key"
        key.write_bytes(os.urandom(32))
        key.chmod(0o600)
        path = folder / "slurm.conf"
        text = path.read_text().replace("CredType=cred/munge", TOKENS.format(key=key))
        path.write_text(text)
        self._port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self._port}"
        self.token_file = folder / "token"

    def start(self) -> None:
        """Start the cluster, then slurmrestd; it refuses to be root."""
        super().start()
        self.token_file.write_text(self.run("scontrol", "token", "username=root", "lifespan=7200"))
        self.token_file.chmod(0o600)
        other = ("--reuid=nobody", "--regid=nogroup", "--clear-groups")
        served = "openapi/slurmctld" if self.plugins else "openapi/v0.0.38"
        form = ("-a", "rest_auth/jwt", "-s", served, f"127.0.0.1:{self._port}")
        with (self.folder / "slurmrestd.out").open("ab") as out:
            self._processes["slurmrestd"] = subprocess.Popen(
                ["setpriv", *other, "slurmrestd", *form],
                env={"PATH": self.path, **self.environment, "SLURM_JWT": "daemon"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        said = self.folder / "slurmrestd.out"
        self.wait_for(lambda: f":{self._port}" in listening(), said.read_text()[-500:])

    def stop(self) -> None:
        """End slurmrestd, then the rest."""
        self._end("slurmrestd", signal.SIGTERM)
        super().stop()


def listening() -> str:
    """Return the local addresses on which somebody listens, as `:PORT` each."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    listed = (line.split() for line in lines)
    ports = (int(fields[1].rpartition(":")[2], 16) for fields in listed if fields[3] == "0A")
    return " ".join(f":{port}" for port in ports)


@pytest.fixture(scope="session")
def rest_cluster() -> Iterator[RestCluster]:
    """Start a cluster with slurmrestd once; people without it skip its tests, CI fails."""
    missing = [*missing_programs()]
    missing += [name for name in ("slurmrestd", "setpriv") if shutil.which(name, path=PATH) is None]
    unpacked = unpacked_plugins(PATH)
    folders = (unpacked,) if unpacked else PLUGINS
    if not any(Path(folder, "auth_jwt.so").exists() for folder in folders):
        missing.append("auth_jwt.so")
    if missing or os.geteuid() != 0:
        reason = f"no slurmrestd ({', '.join(missing) or 'not root'}): apt-get install slurmrestd slurm-wlm-jwt-plugin"
        lacking(reason)
    with running(RestCluster) as cluster:
        yield cluster

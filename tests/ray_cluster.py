"""A real Ray of two nodes on this machine for a test session, on free ports, ended by process ids.

Ray lives in an environment of its own, made once from the lock that ships. The nodes have addresses of
their own on the loopback, so that they are told apart as two servers would be.
"""

import fcntl
import hashlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest

import moulin
from moulin.app.clock import SystemClock
from moulin.domain.errors import EngineError
from moulin.engines.ray.engine import RayEngine, RayPool
from moulin.engines.ray.package import pack
from tests.lacking import lacking
from tests.real_model import cache_directory

LOCK = Path(moulin.__file__).parent / "engines" / "ray" / "ray.txt"
PACKAGES = (
    "moulin.domain",
    "moulin.ports",
    "moulin.engines.local",
    "moulin.engines.task",
    "moulin.engines.ray",
)
OPENS = "moulin.engines.local.member:LocalMember"
NODES = ("0", "1")
CPUS = 4
GPUS = 4
MEMORY_BYTES = 4 * 10**9
# Ray gives up on itself after 15 s and 30 s where it must not on a busy machine; ports that are told
# need no waiting for.
PORTS = (
    "node-manager-port",
    "object-manager-port",
    "metrics-export-port",
    "dashboard-agent-grpc-port",
    "dashboard-agent-listen-port",
    "runtime-env-agent-port",
)
STARTS = 3
READY_S = 60.0
OPEN_S = 120.0


@cache
def ray_directory() -> Path:
    """Return the environment with Ray, one for each lock, made when needed; `lacking` where it cannot be."""
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]
    place = cache_directory() / f"ray-{digest}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("ab") as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)  # tests run side by side
        _make(place)
    return place


def _make(place: Path) -> None:
    mark = place / "lock.txt"
    if not mark.exists():
        venv.create(place, clear=True)
        command = [sys.executable, "-m", "uv", "pip", "install", "--quiet"]
        command += ["--python", str(place / "bin" / "python"), "--require-hashes", "--no-deps"]
        command += ["--only-binary", ":all:", "-r", str(LOCK)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            lacking(f"Ray could not be installed: {made.stderr[-300:]}")
        mark.write_bytes(LOCK.read_bytes())


def free_ports(count: int, address: str) -> list[int]:
    """Return ports that are free on an address now."""
    with ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((address, 0))
        return [int(one.getsockname()[1]) for one in sockets]


class RayCluster:
    """A head and another node, and an engine's way to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token_file = folder / "token"
        self.token_file.touch(0o600)
        self.token_file.write_text(secrets.token_hex(32))
        # Of this cluster alone: another session may have one on this machine.
        self._network = f"127.{1 + secrets.randbelow(254)}.{secrets.randbelow(256)}"
        head = self.address(NODES[0])
        self.gcs_port, self._client, self._dashboard, self._agent = free_ports(4, head)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.pool = RayPool(
            name="node",
            address=f"http://{head}:{self._dashboard}",
            agent_address=f"http://{head}:{self._agent}",
            token_file=self.token_file,
            package=pack(PACKAGES),
            opens=OPENS,
            machine_class="here",
            spool=str(folder / "spool"),
        )

    def address(self, name: str) -> str:
        """Return where a node is, or one that is yet to join."""
        return f"{self._network}.{2 + int(name)}"

    def engine(self, directory: Path) -> RayEngine:
        """Return a fresh engine of this cluster over a directory."""
        return RayEngine(directory, pool=self.pool, clock=SystemClock())

    def start(self) -> None:
        """Start all nodes and wait until their doors are open."""
        for name in NODES:
            self.start_node(name)
        self.wait_for_nodes(len(NODES))

    def wait_for_nodes(self, count: int) -> None:
        """Wait until so many nodes answer."""
        engine = self.engine(self.folder / "watching")
        deadline = time.monotonic() + OPEN_S
        seen: object = None
        try:
            while time.monotonic() < deadline:
                try:
                    seen = [node for node in engine.capacity() if node.is_reachable]
                except EngineError as error:
                    seen = error
                if isinstance(seen, list) and len(seen) == count:
                    return
                time.sleep(0.3)
        finally:
            engine.close()
        pytest.fail(f"the nodes of Ray do not answer: {seen}")

    def start_node(self, name: str) -> None:
        """Start a node, again if Ray gives up on itself, and wait until it has joined."""
        for _ in range(STARTS):
            process = self._spawn(name)
            deadline = time.monotonic() + READY_S
            while process.poll() is None and time.monotonic() < deadline:
                if b"will now block forever" in self._log(name).read_bytes():
                    return
                time.sleep(0.1)
            self.kill_node(name)
        pytest.fail(f"Ray does not start: {self._log(name).read_text()[-2000:]}")

    def kill_node(self, name: str) -> None:
        """End all processes of a node without a word; what its tasks started lives on."""
        process = self._processes.pop(name, None)
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def stop(self) -> None:
        """End every node, the head last."""
        for name in reversed(NODES):
            self.kill_node(name)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _spawn(self, name: str) -> subprocess.Popen[bytes]:
        place = ray_directory() / "bin"
        address = self.address(name)
        words = ["--block", f"--node-ip-address={address}", f"--labels=moulin-node={name}"]
        words += [f"--num-cpus={CPUS}", f"--num-gpus={GPUS}", "--object-store-memory=80000000"]
        words += [
            f"--{port}={free}" for port, free in zip(PORTS, free_ports(6, address), strict=True)
        ]
        environment = {
            # Programs that a test puts there are found on the nodes.
            "PATH": f"{self.folder / 'bin'}:{place}:{os.environ.get('PATH', '')}",
            "HOME": str(self.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_gcs_server_port_wait_time_s": "60",
            # How full this machine is with what others do is no matter of these tests.
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_local_fs_capacity_threshold": "1",
        }
        with self._log(name).open("wb") as log:
            process = subprocess.Popen(
                [str(place / "ray"), "start", *words, *self._place_words(name)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes[name] = process
        return process

    def _place_words(self, name: str) -> Sequence[str]:
        head = self.address(NODES[0])
        memory = [f"--memory={MEMORY_BYTES}"]
        if name != NODES[0]:
            return [*memory, f"--address={head}:{self.gcs_port}"]
        return [
            *memory,
            "--head",
            f"--port={self.gcs_port}",
            f"--ray-client-server-port={self._client}",
            f"--dashboard-host={head}",
            f"--dashboard-port={self._dashboard}",
            "--include-log-monitor=false",
            f"--temp-dir={self.folder}/ray",
        ]


@contextmanager
def running_ray() -> Iterator[RayCluster]:
    """Run a Ray of two nodes until the block ends; skips a test where Ray cannot be."""
    ray_directory()
    # Ray puts sockets there, whose paths are short.
    with tempfile.TemporaryDirectory(prefix="mray-", ignore_cleanup_errors=True) as folder:
        cluster = RayCluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    """Start one cluster for the whole session."""
    with running_ray() as cluster:
        yield cluster


if __name__ == "__main__":
    cluster = RayCluster(Path(sys.argv[1]))
    cluster.start()
    print(cluster.pool.address, cluster.pool.agent_address, flush=True)
    time.sleep(float(sys.argv[2]))
    cluster.stop()

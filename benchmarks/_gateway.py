"""A gateway process with a control plane of a few lines, and the means to measure it.

Shared by the benchmarks of the gateway. The control plane hands out a snapshot and escrow and counts
what the journal says; prices are not zero. CPU is user + system time from the kernel's scheduler.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import orjson

from moulin.domain.snapshot import GatewaySnapshot, KeyView, ModelView, ProjectView, ReplicaView
from moulin.domain.wire import encode
from moulin.identity.keys import digest, make_key

PEERS = Path(__file__).parent / "gateway_peers"
ROOT = Path(__file__).parent.parent
PEPPER = bytes(32)
KEY = make_key(b"benchmark-key-20-byt")
MODEL = "mock"
CONNECTIONS = 32
BODY = json.dumps(
    {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant. Answer in one sentence."},
            {"role": "user", "content": "What is the capital of France, and on which river is it?"},
        ],
        "temperature": 0.2,
        "max_tokens": 64,
    }
)


def moulin_command(folder: Path, control: "ControlStub", port: int) -> list[str]:
    """Return the command line of a gateway with a data directory of its own."""
    data = folder / "moulin"
    data.mkdir()
    (data / "pepper").write_bytes(PEPPER)
    (data / "service.key").write_text("service")
    return [
        sys.executable, "-m", "moulin.gateway", "--control-url", f"http://127.0.0.1:{control.port}",
        "--key-file", str(data / "service.key"), "--data", str(data), "--port", str(port),
    ]  # fmt: skip


@contextmanager
def started(command: list[str] | None, core: int, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program on one core until the block ends; it counts as started when its port answers."""
    if command is None:
        raise SystemExit("error: nginx and wrk are needed (apt-get install nginx wrk)")
    folders = f"{ROOT / 'src'}:{ROOT}"
    process = subprocess.Popen(
        ["taskset", "-c", str(core), *command],
        env={**os.environ, "PYTHONPATH": folders},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port, process)
        yield process
    finally:
        process.terminate()
        process.wait(30)


class ControlStub:
    """Hands out a snapshot and escrow and counts what the journal says; prices are not zero."""

    def __init__(self, shown: GatewaySnapshot) -> None:
        self.ended = 0
        self._through: dict[int, int] = {}
        self._snapshot = encode(shown)
        handler = type("Handler", (_Handler,), {"control": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def sync(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one call."""
        if request["snapshot_version"] == 1 and request.get("wait_s"):
            time.sleep(request["wait_s"])
        epoch = request["records_epoch"]
        for record in request["records"]:
            if record["sequence"] != self._through.get(epoch, 0) + 1:
                continue  # sent again: its answer had been lost
            self._through[epoch] = record["sequence"]
            self.ended += record["kind"] == "end" and record["outcome"] == "completed"
        return {
            "acknowledged_sequence": self._through.get(epoch, 0),
            "now_ns": str(time.time_ns()),
            "snapshot": None if request["snapshot_version"] == 1 else self._snapshot,
            "grants": [
                {"project": want["project"], "amount_neur": want["amount_neur"]}
                for want in request.get("wants", [])
            ],
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one write per answer: two would wait for each other's acknowledgement
    control: ControlStub

    def do_POST(self) -> None:
        """Answer a sync."""
        body = self.rfile.read(int(self.headers["content-length"]))
        reply = orjson.dumps(self.control.sync(orjson.loads(body)))
        self.send_response(200)
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)
        self.wfile.flush()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def priced_model(replicas: tuple[ReplicaView, ...], name: str = MODEL) -> ModelView:
    """Return a model of project `lab` at 0.15 and 0.60 euros for a million tokens in and out."""
    return ModelView(
        name=name,
        endpoint="end_1",
        project="lab",
        is_public=False,
        context_tokens=4096,
        tokens_output_default=256,
        price_input_neur=150_000_000,
        price_output_neur=600_000_000,
        price_per=1_000_000,
        replicas=replicas,
    )


def snapshot(address: str, *, name: str = MODEL, key: str = "replica") -> GatewaySnapshot:
    """Return one model with one replica, and one key that may use it in two countries."""
    replica = ReplicaView(
        attempt="end_1.u0.g1",
        address=address,
        key=key,
        zone="z1",
        country="FR",
        country_basis="asserted by the operator",
        parallel_requests=4096,
        energy_uj_per_token_input=1000,
        energy_uj_per_token_output=20_000,
        carbon_ng_per_j=10_000,
    )
    model = priced_model((replica,), name)
    caller = KeyView(
        id="key_1",
        digest=digest(PEPPER, KEY),
        organisation="uni",
        project="lab",
        countries=("FR", "SE"),
    )
    return GatewaySnapshot(
        version=1,
        issued_at_ns=time.time_ns(),
        staleness_max_s=60,
        keys=(caller,),
        models=(model,),
        projects=(ProjectView(name="lab", organisation="uni"),),
    )


def load(folder: Path, port: int, seconds: float, body: str = BODY) -> tuple[int, int]:
    """Run wrk on a port; return answers and errors."""
    script = folder / "wrk.lua"
    script.write_text(
        f"wrk.method = 'POST'\nwrk.body = {json.dumps(body)}\n"
        f"wrk.headers['authorization'] = 'Bearer {KEY}'\n"
        "wrk.headers['content-type'] = 'application/json'\n"
        "done = function(summary, latency, requests)\n"
        "  local e = summary.errors\n"
        "  print('TOTAL', summary.requests, e.connect + e.read + e.write + e.status + e.timeout)\n"
        "end\n"
    )
    command = [
        "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "-s", str(script),
        f"http://127.0.0.1:{port}/v1/chat/completions",
    ]  # fmt: skip
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    total = next(line for line in output.splitlines() if line.startswith("TOTAL")).split()
    return int(total[1]), int(total[2])


def own_count(port: int) -> int:
    """Return what Moulin itself says it served."""
    with urlopen(Request(f"http://127.0.0.1:{port}/metrics"), timeout=5) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("moulin_gateway_requests_total") and "completed" in line:
                return int(line.rpartition(" ")[2])
    return 0


def _tree(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found.extend(_tree(int(child)))
    return found


def cpu_ns(pid: int) -> int:
    """Return time on CPU of a process tree, every thread, in ns."""
    return sum(
        int((task / "schedstat").read_text().split()[0])
        for each in _tree(pid)
        for task in Path(f"/proc/{each}/task").iterdir()
    )


def rss_mb(pid: int) -> float:
    """Return resident memory in MB (10^6 bytes)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def free_port() -> int:
    """Return a port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a port of this machine takes connections.

    Raises `OSError` after 90 s (some peers take their time), or when the program ended before.
    """
    deadline_s = time.monotonic() + 90
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError as refused:
            if process.poll() is not None:
                raise OSError(f"it ended with status {process.returncode}") from refused
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)

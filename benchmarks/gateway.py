"""How much CPU does one request cost at the gateway, beside nginx and Envoy on the same machine?

Each gateway runs on one core, the load (wrk) and a canned nginx as replica on another. Moulin does
all it does in service: key, budget, reservation, journal, routing, failover, metering, receipt
headers. `nginx` has a key map, limit_req and an access log; `envoy` is Envoy with its defaults;
`nginx_bare` passes requests on and nothing else (the speed of light here). Runs are interleaved, and
CPU is user + system time of the gateway's process tree, from the kernel's scheduler.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say how long and in how many slices."""
    parser.add_argument("--seconds", type=float, default=30.0, help="of load per gateway, in total")
    parser.add_argument("--rounds", type=int, default=3, help="slices, interleaved")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; a peer that is not installed is left out and named in `missing`."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moulin-bench-")))
        cores = sorted(os.sched_getaffinity(0))
        load_core, gateway_core = cores[0], cores[-1]
        os.sched_setaffinity(0, {load_core})
        upstream = _free_port()
        stack.enter_context(_started(_nginx(folder, "upstream", upstream, 0), load_core, upstream))
        control = ControlStub(upstream)
        gateways: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        missing = []
        for name, port, command in _commands(folder, upstream, control):
            if command is None:
                missing.append(name)
                continue
            process = stack.enter_context(_started(command, gateway_core, port))
            gateways[name] = (process, port)
        spent = {name: Spent() for name in gateways}
        slice_s = options.seconds / options.rounds
        for _, port in gateways.values():
            _load(folder, port, 1.0)  # connections, caches and escrow warm up
        for _ in range(options.rounds):
            for name, gateway in gateways.items():
                spent[name].add(_measure(folder, name, gateway, slice_s))
        rss_mb = {name: _rss_mb(process.pid) for name, (process, _) in gateways.items()}
        time.sleep(1)  # the last journal lines reach the control plane
        return {
            **_result(spent),
            "requests_settled_at_control_plane": control.ended,
            "seconds_each": options.seconds,
            "connections": CONNECTIONS,
            "rss_mb": rss_mb,
            "missing": missing,
        }


class Spent:
    """What one gateway used over all slices."""

    def __init__(self) -> None:
        self.slices: list[dict[str, float]] = []

    def add(self, measured: dict[str, float]) -> None:
        """Add a slice."""
        self.slices.append(measured)

    @property
    def requests(self) -> int:
        """All requests."""
        return int(sum(each["requests"] for each in self.slices))

    @property
    def cpu_us(self) -> float:
        """µs of CPU per request."""
        return round(sum(each["cpu_ns"] for each in self.slices) / 1000 / max(1, self.requests), 2)

    @property
    def each_us(self) -> list[float]:
        """µs of CPU per request, slice by slice."""
        return [round(s["cpu_ns"] / 1000 / max(1, s["requests"]), 2) for s in self.slices]

    @property
    def rate(self) -> int:
        """Requests per second."""
        return round(self.requests / sum(each["seconds"] for each in self.slices))


def _result(spent: dict[str, Spent]) -> dict[str, Any]:
    cpu_us = {name: each.cpu_us for name, each in spent.items()}

    def ratio(peer: str) -> float | None:
        return round(cpu_us["moulin"] / cpu_us[peer], 3) if peer in cpu_us else None

    return {
        "cpu_us": {name: cpu_us.get(name) for name in ("moulin", "nginx", "envoy")},
        "cpu_ratio_nginx": ratio("nginx"),
        "cpu_ratio_envoy": ratio("envoy"),
        "requests": spent["moulin"].requests,
        "controls": {"nginx_bare": cpu_us.get("nginx_bare")},
        "slices_us": {name: each.each_us for name, each in spent.items()},
        "requests_per_s": {name: each.rate for name, each in spent.items()},
        "requests_by_load_generator": int(sum(s["answers"] for s in spent["moulin"].slices)),
        "errors": int(sum(s["errors"] for each in spent.values() for s in each.slices)),
    }


def _measure(
    folder: Path, name: str, gateway: tuple[subprocess.Popen[bytes], int], seconds: float
) -> dict[str, float]:
    process, port = gateway
    own_before = _own_count(port) if name == "moulin" else 0
    before_ns, started_s = _cpu_ns(process.pid), time.monotonic()
    answers, errors = _load(folder, port, seconds)
    cpu_ns, elapsed_s = _cpu_ns(process.pid) - before_ns, time.monotonic() - started_s
    requests = answers
    if name == "moulin":
        requests = _own_count(port) - own_before
    return {
        "requests": requests,
        "answers": answers,
        "errors": errors,
        "cpu_ns": cpu_ns,
        "seconds": elapsed_s,
    }


def _load(folder: Path, port: int, seconds: float) -> tuple[int, int]:
    """Run wrk; return answers and errors."""
    script = folder / "wrk.lua"
    script.write_text(
        f"wrk.method = 'POST'\nwrk.body = {json.dumps(BODY)}\n"
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


# -- gateways -------------------------------------------------------------------------------------


def _nginx(folder: Path, name: str, upstream: int, port: int) -> list[str] | None:
    if shutil.which("nginx") is None:
        return None
    return [
        "nginx",
        "-c",
        str(_configuration(folder, f"{name}.conf", upstream, port)),
        "-p",
        str(folder),
    ]


def _envoy(folder: Path, name: str, upstream: int, port: int) -> list[str] | None:
    binary = _envoy_binary()
    if binary is None:
        return None
    configuration = _configuration(folder, "envoy.yaml", upstream, port)
    return [
        binary,
        "-c",
        str(configuration),
        "--concurrency",
        "1",
        "-l",
        "error",
        "--use-dynamic-base-id",
    ]


def _envoy_binary() -> str | None:
    found = shutil.which(
        "envoy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    )
    for site in map(Path, sys.path):
        packaged = site / "envoy" / "_bin" / "envoy"
        if packaged.is_file():
            return str(packaged)
    return found


def _configuration(folder: Path, name: str, upstream: int, port: int) -> Path:
    text = (PEERS / name).read_text()
    for mark, value in (("UPSTREAM", upstream), ("PORT", port), ("DIR", folder), ("KEY", KEY)):
        text = text.replace(mark, str(value))
    path = folder / name
    path.write_text(text)
    return path


def _moulin(folder: Path, control: "ControlStub", port: int) -> list[str]:
    data = folder / "moulin"
    data.mkdir()
    (data / "pepper").write_bytes(PEPPER)
    (data / "service.key").write_text("service")
    return [
        sys.executable, "-m", "moulin.gateway", "--control-url", f"http://127.0.0.1:{control.port}",
        "--key-file", str(data / "service.key"), "--data", str(data), "--port", str(port),
    ]  # fmt: skip


def _commands(
    folder: Path, upstream: int, control: "ControlStub"
) -> Iterator[tuple[str, int, list[str] | None]]:
    """Yield name, port and command of each gateway; no command where it is not installed."""
    port = _free_port()
    yield "moulin", port, _moulin(folder, control, port)
    for name in ("nginx", "envoy", "nginx_bare"):
        port = _free_port()
        start = _envoy if name == "envoy" else _nginx
        yield name, port, start(folder, name, upstream, port)


@contextmanager
def _started(command: list[str] | None, core: int, port: int) -> Iterator[subprocess.Popen[bytes]]:
    if command is None:
        raise SystemExit("error: nginx and wrk are needed (apt-get install nginx wrk)")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        ["taskset", "-c", str(core), *command], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(port)
        yield process
    finally:
        process.terminate()
        process.wait(30)


# -- control plane --------------------------------------------------------------------------------


class ControlStub:
    """Hands out a snapshot and escrow and counts what the journal says; prices are not zero."""

    def __init__(self, upstream: int) -> None:
        self.ended = 0
        self._through: dict[int, int] = {}
        self._snapshot = encode(_snapshot(upstream))
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
            "grants": request.get("wants", []),
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one write per answer: two would wait for each other's acknowledgement
    control: ControlStub

    def do_POST(self) -> None:
        """Answer a sync."""
        import orjson

        body = self.rfile.read(int(self.headers["content-length"]))
        reply = orjson.dumps(self.control.sync(orjson.loads(body)))
        self.send_response(200)
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)
        self.wfile.flush()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def _snapshot(upstream: int) -> GatewaySnapshot:
    replica = ReplicaView(
        attempt="end_1.u0.g1",
        address=f"127.0.0.1:{upstream}",
        key="replica",
        zone="z1",
        country="FR",
        country_basis="asserted by the operator",
        parallel_requests=256,
        energy_uj_per_token_input=1000,
        energy_uj_per_token_output=20_000,
        carbon_ng_per_j=10_000,
    )
    model = ModelView(
        name=MODEL,
        endpoint="end_1",
        project="lab",
        is_public=False,
        context_tokens=4096,
        tokens_output_default=256,
        price_input_neur=150_000_000,
        price_output_neur=600_000_000,
        price_per=1_000_000,
        replicas=(replica,),
    )
    key = KeyView(
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
        keys=(key,),
        models=(model,),
        projects=(ProjectView(name="lab", organisation="uni"),),
    )


# -- measuring ------------------------------------------------------------------------------------


def _own_count(port: int) -> int:
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


def _cpu_ns(pid: int) -> int:
    """Return time on CPU of a process tree, every thread, in ns."""
    return sum(
        int((task / "schedstat").read_text().split()[0])
        for each in _tree(pid)
        for task in Path(f"/proc/{each}/task").iterdir()
    )


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    import socket

    deadline_s = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)

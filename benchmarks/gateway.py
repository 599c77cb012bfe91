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
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks._gateway import (
    BODY,
    CONNECTIONS,
    KEY,
    PEERS,
    ControlStub,
    cpu_ns,
    free_port,
    moulin_command,
    own_count,
    rss_mb,
    snapshot,
    started,
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
        upstream = free_port()
        stack.enter_context(started(_nginx(folder, "upstream", upstream, 0), load_core, upstream))
        control = ControlStub(snapshot(f"127.0.0.1:{upstream}"))
        gateways: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        missing = []
        for name, port, command in _commands(folder, upstream, control):
            if command is None:
                missing.append(name)
                continue
            process = stack.enter_context(started(command, gateway_core, port))
            gateways[name] = (process, port)
        spent = {name: Spent() for name in gateways}
        slice_s = options.seconds / options.rounds
        for _, port in gateways.values():
            _load(folder, port, 1.0)  # connections, caches and escrow warm up
        for _ in range(options.rounds):
            for name, gateway in gateways.items():
                spent[name].add(_measure(folder, name, gateway, slice_s))
        resident_mb = {name: rss_mb(process.pid) for name, (process, _) in gateways.items()}
        time.sleep(1)  # the last journal lines reach the control plane
        return {
            **_result(spent),
            "requests_settled_at_control_plane": control.ended,
            "seconds_each": options.seconds,
            "connections": CONNECTIONS,
            "rss_mb": resident_mb,
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
    own_before = own_count(port) if name == "moulin" else 0
    before_ns, started_s = cpu_ns(process.pid), time.monotonic()
    answers, errors = _load(folder, port, seconds)
    spent_ns, elapsed_s = cpu_ns(process.pid) - before_ns, time.monotonic() - started_s
    requests = answers
    if name == "moulin":
        requests = own_count(port) - own_before
    return {
        "requests": requests,
        "answers": answers,
        "errors": errors,
        "cpu_ns": spent_ns,
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


def _commands(
    folder: Path, upstream: int, control: ControlStub
) -> Iterator[tuple[str, int, list[str] | None]]:
    """Yield name, port and command of each gateway; no command where it is not installed."""
    port = free_port()
    yield "moulin", port, moulin_command(folder, control, port)
    for name in ("nginx", "envoy", "nginx_bare"):
        port = free_port()
        start = _envoy if name == "envoy" else _nginx
        yield name, port, start(folder, name, upstream, port)

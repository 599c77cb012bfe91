"""How much CPU does one request cost at the gateway, beside nginx and Envoy on the same machine?

Each gateway runs on one core, the load (wrk) and a canned nginx as replica on another. Moulin does
all it does in service: key, budget, reservation, journal, routing, failover, metering, receipt
headers. `vllm_router` (Rust) and `litellm` (Python) are gateways for models, each from the package
index in an environment of its own; the router passes requests on, round robin, without keys or
prices. `nginx` has a key map, limit_req and an access log; `envoy` is Envoy with its defaults;
`nginx_bare` passes requests on and nothing else (the speed of light here). Runs are interleaved, and
CPU is user + system time of the gateway's process tree, from the kernel's scheduler.

`rps` is requests per second of one core: what a second of the gateway's own CPU serves. Threads do
not count more than once, because all of a gateway's share its core. `rps_by_clock` is what wrk saw;
the two agree where `core_busy` is near 1. Where it is not, the gateway waited for wrk and the
replica, which share the other core.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final
from urllib.request import Request, urlopen

from benchmarks._gateway import (
    BODY,
    CONNECTIONS,
    KEY,
    PEERS,
    ControlStub,
    cpu_ns,
    free_port,
    load,
    moulin_command,
    own_count,
    rss_mb,
    snapshot,
    started,
)
from benchmarks._peers import Absent, program

SHOWN: Final = ("moulin", "nginx", "envoy", "vllm_router", "litellm")
NAMES: Final = (*SHOWN, "nginx_bare")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say how long and in how many slices."""
    parser.add_argument("--seconds", type=float, default=30.0, help="of load per gateway, in total")
    parser.add_argument("--rounds", type=int, default=3, help="slices, interleaved")
    parser.add_argument("--without", nargs="*", default=[], help="peers to leave out")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; a peer that is not there is named in `absent` with the reason."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moulin-bench-")))
        cores = sorted(os.sched_getaffinity(0))
        load_core, gateway_core = cores[0], cores[-1]
        os.sched_setaffinity(0, {load_core})
        upstream = free_port()
        stack.enter_context(started(_nginx(folder, "upstream", upstream, 0), load_core, upstream))
        control = ControlStub(snapshot(f"127.0.0.1:{upstream}"))
        gateways: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        absent: dict[str, str] = {}
        for name in NAMES:
            port = free_port()
            try:
                if name in options.without:
                    raise Absent("left out by request")
                command = _command(name, folder, upstream, control, port)
                process = stack.enter_context(started(command, gateway_core, port))
                if not _answers(port):
                    raise Absent("it started and does not answer the request")
                gateways[name] = (process, port)
            except (Absent, OSError) as reason:
                absent[name] = str(reason)
        spent = {name: Spent() for name in gateways}
        slice_s = options.seconds / options.rounds
        for _, port in gateways.values():
            load(folder, port, 1.0)  # connections, caches and escrow warm up
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
            "absent": absent,
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
    def seconds(self) -> float:
        """How long the load lasted."""
        return sum(each["seconds"] for each in self.slices)

    @property
    def busy(self) -> float:
        """The part of its core's time that the gateway used."""
        return round(sum(each["cpu_ns"] for each in self.slices) / 1e9 / self.seconds, 3)


def _result(spent: dict[str, Spent]) -> dict[str, Any]:
    cpu_us = {name: each.cpu_us for name, each in spent.items()}
    rps = {name: round(1e6 / each) if each else 0 for name, each in cpu_us.items()}

    def ratio(peer: str) -> float | None:
        return round(cpu_us["moulin"] / cpu_us[peer], 3) if peer in cpu_us else None

    def times(peer: str) -> float | None:
        return round(rps["moulin"] / rps[peer], 2) if rps.get(peer) else None

    return {
        "cpu_us": {name: cpu_us.get(name) for name in SHOWN},
        "rps": {name: rps.get(name) for name in SHOWN},
        "cpu_ratio_nginx": ratio("nginx"),
        "cpu_ratio_envoy": ratio("envoy"),
        "rps_ratio_vllm_router": times("vllm_router"),
        "rps_ratio_litellm": times("litellm"),
        "requests": spent["moulin"].requests,
        "rps_by_clock": {name: round(s.requests / s.seconds) for name, s in spent.items()},
        "core_busy": {name: s.busy for name, s in spent.items()},
        "controls": {"nginx_bare": cpu_us.get("nginx_bare")},
        "slices_us": {name: each.each_us for name, each in spent.items()},
        "requests_by_load_generator": int(sum(s["answers"] for s in spent["moulin"].slices)),
        "errors": int(sum(s["errors"] for each in spent.values() for s in each.slices)),
    }


def _measure(
    folder: Path, name: str, gateway: tuple[subprocess.Popen[bytes], int], seconds: float
) -> dict[str, float]:
    process, port = gateway
    own_before = own_count(port) if name == "moulin" else 0
    before_ns, started_s = cpu_ns(process.pid), time.monotonic()
    answers, errors = load(folder, port, seconds)
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


def _answers(port: int) -> bool:
    """Say whether a gateway passes the benchmark's request on; one that just started gets a moment."""
    call = Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        BODY.encode(),
        {"authorization": f"Bearer {KEY}", "content-type": "application/json"},
    )
    for _ in range(40):
        with suppress(OSError), urlopen(call, timeout=10) as answer:
            return bool(answer.status == 200)
        time.sleep(0.25)
    return False


# -- gateways -------------------------------------------------------------------------------------


def _command(name: str, folder: Path, upstream: int, control: ControlStub, port: int) -> list[str]:
    """Return the command of a gateway; raises `Absent` where it is not installed."""
    if name == "moulin":
        return moulin_command(folder, control, port)
    if name == "vllm_router":
        router = program("vllm_router", "vllm-router")
        return [
            str(router), "--worker-urls", f"http://127.0.0.1:{upstream}", "--host", "127.0.0.1",
            "--port", str(port), "--policy", "round_robin", "--prometheus-port", str(free_port()),
            "--log-level", "error",
        ]  # fmt: skip
    if name == "litellm":
        proxy = program("litellm", "litellm")
        settings = _configuration(folder, "litellm.yaml", upstream, port)
        return [
            str(proxy), "--config", str(settings), "--host", "127.0.0.1", "--port", str(port),
            "--num_workers", "1",
        ]  # fmt: skip
    command = (_envoy if name == "envoy" else _nginx)(folder, name, upstream, port)
    if command is None:
        raise Absent("not installed")
    return command


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

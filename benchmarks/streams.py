"""What does a stream cost at the gateway: CPU beside nginx, tokens per second, and memory?

`cpu_ratio_nginx_sse` is CPU per stream of 100 events over nginx's (key map, limit_req, access log),
in interleaved slices. `tokens_ratio_engine` is tokens per second of a real model through the gateway
over the same model asked directly, from interleaved pairs of runs, with a 95 % interval of the mean of
the logarithms. `idle_1000_streams_rss_mb` is what 1,000 streams that say nothing add to the gateway.
"""

import argparse
import http.client
import json
import math
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from benchmarks._gateway import (
    BODY,
    KEY,
    MODEL,
    PEERS,
    ControlStub,
    cpu_ns,
    free_port,
    load,
    moulin_command,
    rss_mb,
    snapshot,
    started,
)
from moulin.catalog.entries import SMOLLM2_135M
from moulin.domain.errors import MoulinError
from moulin.domain.model import SourcePreference
from moulin.sources.fetch import choose_source, fetch_variant

# Student's t for a 95 % interval, by degrees of freedom.
_T95: Final = (
    12.71,
    4.30,
    3.18,
    2.78,
    2.57,
    2.45,
    2.36,
    2.31,
    2.26,
    2.23,
    2.20,
    2.18,
    2.16,
    2.14,
    2.13,
)
_REPLICA_KEY: Final = "benchmark-replica"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say how long, how often and with how many streams."""
    parser.add_argument("--seconds", type=float, default=30.0, help="of SSE load per gateway")
    parser.add_argument("--rounds", type=int, default=3, help="slices, interleaved")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of runs at each concurrency")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each real stream")
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--idle", type=int, default=1000, help="streams that say nothing")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the three, one after the other."""
    cores = sorted(os.sched_getaffinity(0))
    with _moulin_and_mock(cores) as (folder, moulin, nginx):
        cpu = _cpu_per_stream(options, folder, {"moulin": moulin, "nginx": nginx})
        idle_mb = _idle_mb(moulin, options.idle)
    ratios, why = _tokens_ratios(options)
    return {
        "cpu_ratio_nginx_sse": round(cpu["moulin"] / cpu["nginx"], 3) if cpu["nginx"] else None,
        "tokens_ratio_engine": ratios,
        "idle_1000_streams_rss_mb": round(idle_mb * 1000 / options.idle, 1),
        "cpu_us_per_stream": cpu,
        "idle_streams": options.idle,
        "pairs": options.pairs,
        **({"no_tokens_because": why} if why else {}),
    }


_Gateway = tuple["subprocess.Popen[bytes]", int]


@contextmanager
def _moulin_and_mock(cores: list[int]) -> Iterator[tuple[Path, _Gateway, _Gateway]]:
    """Start the mock on the first core and both gateways on the last."""
    if shutil.which("nginx") is None or shutil.which("wrk") is None:
        raise SystemExit("error: nginx and wrk are needed (apt-get install nginx wrk)")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moulin-bench-")))
        mock, moulin, nginx = free_port(), free_port(), free_port()
        mock_command = [sys.executable, "-m", "benchmarks._sse_mock", str(mock)]
        stack.enter_context(started(mock_command, cores[0], mock))
        text = (PEERS / "nginx_sse.conf").read_text()
        for mark, value in (("UPSTREAM", mock), ("PORT", nginx), ("DIR", folder), ("KEY", KEY)):
            text = text.replace(mark, str(value))
        configuration = folder / "nginx.conf"
        configuration.write_text(text)
        control = ControlStub(snapshot(f"127.0.0.1:{mock}"))
        own = stack.enter_context(
            started(moulin_command(folder, control, moulin), cores[-1], moulin)
        )
        peer = stack.enter_context(
            started(["nginx", "-c", str(configuration), "-p", str(folder)], cores[-1], nginx)
        )
        yield folder, (own, moulin), (peer, nginx)


def _cpu_per_stream(
    options: argparse.Namespace, folder: Path, gateways: dict[str, _Gateway]
) -> dict[str, float]:
    """Return µs of CPU per stream of 100 events, by gateway."""
    body = json.dumps({**json.loads(BODY), "stream": True})
    spent_ns, streams = dict.fromkeys(gateways, 0), dict.fromkeys(gateways, 0)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # wrk stays off the gateways' core
    for _, port in gateways.values():
        load(folder, port, 1.0, body)
    for _ in range(options.rounds):
        for name, (process, port) in gateways.items():
            before_ns = cpu_ns(process.pid)
            answers, errors = load(folder, port, options.seconds / options.rounds, body)
            if errors:
                raise RuntimeError(f"{errors} streams through {name} failed")
            spent_ns[name] += cpu_ns(process.pid) - before_ns
            streams[name] += answers
    return {name: round(spent_ns[name] / 1000 / max(1, streams[name]), 1) for name in gateways}


def _idle_mb(gateway: _Gateway, count: int) -> float:
    """Return the growth of the gateway in MB with so many open streams that say nothing."""
    process, port = gateway
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    before_mb = rss_mb(process.pid)
    message = {"model": MODEL, "stream": True, "max_tokens": 8}
    body = json.dumps({**message, "messages": [{"role": "user", "content": "hold"}]})
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}"
    ).encode()
    with ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            client.sendall(request)
            answer = b""
            while b"data: " not in answer:
                received = client.recv(4096)
                if not received:
                    raise RuntimeError("the gateway closed an idle stream")
                answer += received
        return rss_mb(process.pid) - before_mb


# -- a real model ---------------------------------------------------------------------------------


def _tokens_ratios(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Return ratios by concurrency, or none and the reason."""
    models = Path(os.environ.get("MOULIN_TEST_CACHE") or Path.home() / ".cache" / "moulin-tests")
    store = models / "store"
    store.mkdir(parents=True, exist_ok=True)
    try:
        source = choose_source(SMOLLM2_135M, SourcePreference.ANY, store)
        model = fetch_variant(source, store).path
    except MoulinError as problem:
        return {}, problem.message
    found = {}
    with _engine_and_moulin(str(model), max(options.concurrency)) as (engine, gateway):
        numbers = iter(range(1_000_000))
        _tokens_per_s(engine, _REPLICA_KEY, 1, options.tokens, numbers)
        _tokens_per_s(gateway, KEY, 1, options.tokens, numbers)
        for streams in options.concurrency:
            logs = []
            for pair in range(options.pairs):
                sides = [(engine, _REPLICA_KEY), (gateway, KEY)]
                rates = {}
                for port, key in sides if pair % 2 else reversed(sides):
                    rates[port] = _tokens_per_s(port, key, streams, options.tokens, numbers)
                logs.append(math.log(rates[gateway] / rates[engine]))
            found[str(streams)] = interval(logs)
    return found, ""


def interval(logs: list[float]) -> dict[str, float]:
    """Return the ratio and its 95 % interval from the logarithms of its pairs.

    >>> interval([0.0, 0.0, 0.0])
    {'ratio': 1.0, 'low': 1.0, 'high': 1.0}
    """
    mean = statistics.fmean(logs)
    freedom = len(logs) - 1
    t = _T95[min(freedom, len(_T95)) - 1] if freedom else 0.0
    half = t * statistics.stdev(logs) / math.sqrt(len(logs)) if freedom else 0.0
    bounds = {"ratio": mean, "low": mean - half, "high": mean + half}
    return {name: round(math.exp(value), 4) for name, value in bounds.items()}


@contextmanager
def _engine_and_moulin(model: str, parallel: int) -> Iterator[tuple[int, int]]:
    """Start the model's server and a gateway before it; yield both ports."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moulin-bench-")))
        key_file, ready = folder / "key", folder / "ready"
        key_file.write_text(_REPLICA_KEY)
        key_file.chmod(0o600)
        command = [
            sys.executable, "-m", "moulin.runtimes.llm", "--model", model, "--alias", MODEL,
            "--context", str(512 * parallel), "--parallel", str(parallel), "--threads", "1",
            "--key-file", str(key_file),
        ]  # fmt: skip
        environment = {**os.environ, "MOULIN_READY_FILE": str(ready)}
        cores = sorted(range(os.cpu_count() or 1))
        os.sched_setaffinity(0, set(cores))
        with (folder / "log").open("wb") as log:
            engine = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        stack.callback(engine.wait)
        stack.callback(engine.terminate)
        until_s = time.monotonic() + 120
        while not ready.exists():
            if engine.poll() is not None or time.monotonic() > until_s:
                raise RuntimeError((folder / "log").read_text()[-500:])
            time.sleep(0.05)
        address = ready.read_text().strip()
        control = ControlStub(snapshot(address, key=_REPLICA_KEY))
        port = free_port()
        stack.enter_context(started(moulin_command(folder, control, port), cores[-1], port))
        yield int(address.rpartition(":")[2]), port


def _tokens_per_s(port: int, key: str, streams: int, tokens: int, numbers: Iterator[int]) -> float:
    """Run so many streams at once, each with a prompt nobody asked before; return tokens per second."""
    counted: list[int] = []
    prompts = [f"Number {next(numbers)}. Tell a long story about the sea." for _ in range(streams)]
    threads = [
        threading.Thread(target=lambda p=prompt: counted.append(_stream(port, key, p, tokens)))
        for prompt in prompts
    ]
    begin_s = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(counted) != streams:
        raise RuntimeError("a stream of the real model failed")
    return sum(counted) / (time.monotonic() - begin_s)


def _stream(port: int, key: str, prompt: str, tokens: int) -> int:
    """Read one stream to its end; return the tokens its usage says."""
    body = {
        "model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": True,
        "max_tokens": tokens, "temperature": 0, "stream_options": {"include_usage": True},
    }  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        used = 0
        for line in connection.getresponse():
            if b'"usage"' in line:
                with suppress(TypeError, KeyError, ValueError):
                    used = int(json.loads(line[6:])["usage"]["completion_tokens"])
        if not used:
            raise RuntimeError("a stream without usage")
        return used
    finally:
        connection.close()

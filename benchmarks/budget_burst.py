"""Does a key's budget hold when 500 streams come at once to two gateways and one of them is killed?

The control plane is the real one (cycle, books, grants, journals), the gateways are real processes,
and the replica is a mock that uses all a stream reserved, so that nothing is left to chance: the
budget fits exactly `fits` streams. One gateway is killed with SIGKILL while its streams run and is
started again, so that it tells what its predecessor had begun. `admitted` are streams that a
gateway had on record before they went to the replica; `cut_by_kill` those of them that the kill cut,
each charged at most its reservation; `overshoot_eur` is what was spent beyond the budget.
"""

import argparse
import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from moulin.domain.gateway_events import JournalRecorded
from moulin.domain.limits import Allowance
from moulin.domain.snapshot import JournalKind, JournalRecord
from moulin.domain.units import NEUR_PER_EUR
from tests.integration.gateway.control_real import ControlReal
from tests.integration.gateway.plant import (
    CHAT,
    KEY,
    PEPPER,
    chat_body,
    free_port,
    model_view,
    replica_view,
)
from tests.integration.gateway.replica_fake import Behaviour, ReplicaFake

ROOT = Path(__file__).parent.parent
TOKENS = 64
PRICE_NEUR = 15_625
RESERVATION_NEUR = TOKENS * PRICE_NEUR
EVENTS = 8
WAIT_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say how many streams come and how many the budget fits."""
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--fits", type=int, default=50)
    parser.add_argument("--stream-s", type=float, default=8.0, help="how long one stream runs")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run one burst and return what became of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    replica = ReplicaFake()
    replica.behaviour = Behaviour(
        tokens_output=TOKENS, events=EVENTS, event_delay_s=options.stream_s / EVENTS
    )
    replica.start()
    budget_neur = options.fits * RESERVATION_NEUR
    control = ControlReal(
        model_view(
            replica_view(replica, parallel_requests=4096),
            project="atelier",
            price_input_neur=0,
            price_output_neur=PRICE_NEUR,
        ),
        key={"allowance": Allowance(amount_neur=budget_neur)},
    )
    with tempfile.TemporaryDirectory(prefix="moulin-bench-") as folder:
        gateways = [GatewayProcess(Path(folder) / name, control.port) for name in ("one", "two")]
        try:
            for gateway in gateways:
                gateway.start()
            outcomes = asyncio.run(_burst(gateways, control, options.streams))
            gateways[1].start()  # it tells what the killed one had begun
            _eventually(lambda: _is_settled(control))
        finally:
            for gateway in gateways:
                gateway.stop()
            control.stop()
            replica.close()
    return _result(control, outcomes, options, budget_neur)


def _result(
    control: ControlReal, outcomes: list[str], options: argparse.Namespace, budget_neur: int
) -> dict[str, Any]:
    records = _records(control)
    begun = {r.request: r for r in records if r.kind is JournalKind.BEGIN}
    ends = [r for r in records if r.kind is JournalKind.END]
    cut = [r for r in ends if r.outcome == "cut"]
    spent_neur = sum(r.amount_neur for r in ends)
    (allowance,) = control.allowances()
    assert allowance.used == spent_neur, "the books count what the journals say"
    assert all(r.amount_neur <= begun[r.request].amount_neur for r in ends)
    return {
        "streams": options.streams,
        "fits": options.fits,
        "admitted": len(begun),
        "succeeded": outcomes.count("done"),
        "cut_by_kill": len(cut),
        "budget_eur": _euros(budget_neur),
        "spent_eur": _euros(spent_neur),
        "overshoot_eur": _euros(max(0, spent_neur - budget_neur)),
        "gateway_killed": True,
        "refused_402": outcomes.count("402"),
        "unreachable": outcomes.count("lost"),
        "cut_charged_eur": _euros(sum(r.amount_neur for r in cut)),
        "reservation_eur": _euros(RESERVATION_NEUR),
        "held_after_eur": _euros(allowance.held),
    }


async def _burst(gateways: list["GatewayProcess"], control: ControlReal, streams: int) -> list[str]:
    """Send all streams at once, half to each gateway, and kill the second when both stream."""
    tasks = [asyncio.ensure_future(_stream(gateways[number % 2].port)) for number in range(streams)]
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        await asyncio.sleep(0.05)
        names = await asyncio.to_thread(_streaming, control)
        refused = sum(task.done() for task in tasks)
        if len(names) == len(gateways) and refused >= streams // 2:
            break
    gateways[1].kill()
    return list(await asyncio.gather(*tasks))


async def _stream(port: int) -> str:
    """Return done, 402 and other refusals by status, cut, or lost where nothing was answered."""
    body = json.dumps(chat_body(stream=True, max_tokens=TOKENS)).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        "connection: close\r\n\r\n"
    )
    answer = b""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        while piece := await reader.read(65536):
            answer += piece
        writer.close()
    except (OSError, asyncio.IncompleteReadError):
        pass
    if not answer:
        return "lost"
    status = answer.split(None, 2)[1].decode()
    if status != "200":
        return status
    return "done" if b"data: [DONE]" in answer else "cut"


class GatewayProcess:
    """One gateway of its own name and data directory."""

    def __init__(self, data: Path, control_port: int) -> None:
        self.name = data.name
        self.port = free_port()
        data.mkdir()
        (data / "pepper").write_bytes(PEPPER)
        (data / "service.key").write_text("service-key\n")
        self._command = [
            sys.executable, "-m", "moulin.gateway",
            "--control-url", f"http://127.0.0.1:{control_port}",
            "--key-file", str(data / "service.key"), "--data", str(data),
            "--port", str(self.port), "--name", self.name, "--grace-s", "1",
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it serves."""
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}"}
        self._process = subprocess.Popen(self._command, env=environment, stderr=subprocess.DEVNULL)
        _eventually(self._is_healthy)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        """Ask it to end, if it runs."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    def _is_healthy(self) -> bool:
        from urllib.error import URLError
        from urllib.request import urlopen

        try:
            with urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


def _records(control: ControlReal) -> list[JournalRecord]:
    with control.lock:
        recorded = control.bench.events(JournalRecorded)
    return [record for event in recorded for record in event.records]


def _streaming(control: ControlReal) -> set[str]:
    """Return the gateways that have streams under way, as far as the control plane knows."""
    with control.lock:
        epochs = control.bench.plane.books.gateways.epochs
        return {gateway for (gateway, _), book in epochs.items() if book.begun}


def _is_settled(control: ControlReal) -> bool:
    records = _records(control)
    begun = sum(record.kind is JournalKind.BEGIN for record in records)
    return len(records) == 2 * begun and not _streaming(control)


def _eventually(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise SystemExit(f"error: {condition.__qualname__} never came true")
        time.sleep(0.05)


def _euros(amount_neur: int) -> int | float:
    """Return euros as a number of JSON: whole where they are, exact to nine decimals."""
    value = Decimal(amount_neur) / NEUR_PER_EUR
    return int(value) if value == int(value) else float(value)

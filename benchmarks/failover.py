"""Does a request reach a replica of its country, and an answer, while replicas die and hang?

Replicas are processes in three countries; each names its country in the words of its answers. Half
the requests come with a key that may only be served in France, or with a header that says so, the
rest with a key that may go anywhere; half are streams. Under load, French and other replicas are
killed, and one in France stops answering without dying; at the end no French one is left, and French
requests must be refused. A request failed before its first byte when it got no answer or an error; a
stream cut in the middle is counted apart, because what a client has read cannot be taken back.
"""

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

from benchmarks._gateway import (
    MODEL,
    PEPPER,
    ControlStub,
    free_port,
    moulin_command,
    priced_model,
    started,
    wait_for,
)
from moulin.domain.snapshot import GatewaySnapshot, KeyView, ProjectView, ReplicaView
from moulin.identity.keys import digest, make_key

HOME: Final = "FR"
OTHERS: Final = ("SE", "US")
HOME_KEY: Final = make_key(b"failover-at-home-key")
OPEN_KEY: Final = make_key(b"failover-anywhere-ke")
SLOTS: Final = 16
HOMELESS: Final = 20
"""Requests sent when no replica of their country is left."""
FIRST_BYTE_S: Final = 60.0
NEXT_BYTES_S: Final = 10.0
_SAID: Final = re.compile(rb'"content": ?"(FR|SE|US)"')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say how large and how long."""
    parser.add_argument("--home", type=int, default=6, help="replicas in France")
    parser.add_argument("--elsewhere", type=int, default=4, help="replicas in other countries")
    parser.add_argument("--kill", type=int, default=5, help="replicas killed under load")
    parser.add_argument("--hang", type=int, default=1, help="replicas stopped under load")
    parser.add_argument("--seconds", type=float, default=30.0, help="of load")
    parser.add_argument("--clients", type=int, default=32, help="requests at once")


@dataclass(slots=True)
class Tally:
    """What came of the requests."""

    requests: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    wrong: int = 0
    by_country: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0


@dataclass(slots=True)
class Replica:
    """One server and where it stands."""

    country: str
    port: int
    process: "subprocess.Popen[bytes]"


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Load, kill, and count."""
    if options.kill + options.hang >= options.home + options.elsewhere:
        raise SystemExit("error: somebody must survive; kill and hang fewer")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moulin-bench-")))
        replicas = [
            _replica(stack, HOME if number < options.home else OTHERS[number % len(OTHERS)])
            for number in range(options.home + options.elsewhere)
        ]
        for replica in replicas:
            wait_for(replica.port, replica.process)
        control = ControlStub(_snapshot(replicas))
        port = free_port()
        core = max(os.sched_getaffinity(0))
        stack.enter_context(started(moulin_command(folder, control, port), core, port))
        _wait_until_ready(port)
        return asyncio.run(_Failover(options, port, replicas).run(control))


class _Failover:
    def __init__(self, options: argparse.Namespace, port: int, replicas: list[Replica]) -> None:
        self._options = options
        self._port = port
        self._replicas = replicas
        self._tally = Tally()
        self._next = 0
        self._until_s = 0.0

    async def run(self, control: ControlStub) -> dict[str, Any]:
        """Keep the load up while replicas go; then ask for a country that has none."""
        self._until_s = time.monotonic() + self._options.seconds
        clients = [asyncio.ensure_future(self._client()) for _ in range(self._options.clients)]
        await self._harm()
        await asyncio.gather(*clients)
        tally, self._tally = self._tally, Tally()
        for replica in self._replicas:
            if replica.country == HOME:
                replica.process.kill()
        await asyncio.gather(*(self._ask(4 * number) for number in range(HOMELESS)))
        homeless = self._tally
        done = tally.requests - tally.failed.total() - tally.cut
        settled = await asyncio.to_thread(_settled, control, done)
        return {
            "killed_replicas": self._options.kill,
            "requests": tally.requests,
            "failed_before_first_byte": tally.failed.total(),
            "wrong_zone": tally.wrong + homeless.wrong,
            "hung_replicas": self._options.hang,
            "streams_cut": tally.cut,
            "answered": done,
            "settled_at_control_plane": settled,
            "by_country": dict(sorted(tally.by_country.items())),
            "failures": dict(tally.failed),
            "slowest_s": round(tally.slowest_s, 2),
            "refused_without_a_replica_at_home": homeless.failed.total(),
            "asked_without_a_replica_at_home": homeless.requests,
        }

    async def _harm(self) -> None:
        """Kill at home and elsewhere in turn, evenly over the first two thirds; hang halfway."""
        options = self._options
        home = [replica for replica in self._replicas if replica.country == HOME]
        others = [replica for replica in self._replicas if replica.country != HOME]
        victims: list[Replica] = []
        while len(victims) < options.kill + options.hang:
            if len(home) > 1:
                victims.append(home.pop())
            if len(others) > 1:
                victims.append(others.pop())
            if len(home) <= 1 and len(others) <= 1:
                break
        pause_s = options.seconds * 2 / 3 / (options.kill + options.hang + 1)
        for number, victim in enumerate(victims[: options.kill + options.hang]):
            await asyncio.sleep(pause_s)
            hangs = options.kill // 2 <= number < options.kill // 2 + options.hang
            victim.process.send_signal(signal.SIGSTOP if hangs else signal.SIGKILL)

    async def _client(self) -> None:
        while time.monotonic() < self._until_s:
            number, self._next = self._next, self._next + 1
            await self._ask(number)

    async def _ask(self, number: int) -> None:
        """Send one request; its number says by which key, with which header, and how it answers."""
        is_home, is_stream = number % 4 in (0, 1), number % 8 >= 4
        body = _body(is_stream=is_stream, number=number)
        by_header = number % 4 == 1
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n"
            f"authorization: Bearer {HOME_KEY if is_home and not by_header else OPEN_KEY}\r\n"
            f"{f'x-moulin-where: {HOME}' if by_header else 'x-none: x'}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        started_s = time.monotonic()
        try:
            answer = await self._send(head.encode() + body)
        except (OSError, TimeoutError) as error:
            answer = type(error).__name__.encode()
        tally = self._tally
        tally.requests += 1
        tally.slowest_s = max(tally.slowest_s, time.monotonic() - started_s)
        status = answer[:12].removeprefix(b"HTTP/1.1 ").decode("latin-1")
        if status != "200":
            tally.failed[status or "nothing"] += 1
            return
        said = _SAID.search(answer)
        country = said[1].decode() if said else ""
        tally.by_country[country] += 1
        tally.wrong += is_home and country not in {HOME, ""}
        tally.cut += is_stream and b"[DONE]" not in answer

    async def _send(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(request)
            async with asyncio.timeout(FIRST_BYTE_S):
                answer = await reader.read(65536)
            with suppress(OSError, TimeoutError):
                while True:
                    async with asyncio.timeout(NEXT_BYTES_S):
                        more = await reader.read(65536)
                    if not more:
                        break
                    answer += more
            return answer
        finally:
            writer.close()


def _body(*, is_stream: bool, number: int) -> bytes:
    stream = b',"stream":true' if is_stream else b""
    return b'{"model":"%b","max_tokens":16,"messages":[{"role":"user","content":"Hello %d"}]%b}' % (
        MODEL.encode(),
        number % 50,
        stream,
    )


def _replica(stack: ExitStack, country: str) -> Replica:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks._failover_replica", str(port), country]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    stack.callback(process.wait, 30)
    stack.callback(process.kill)
    return Replica(country, port, process)


def _wait_until_ready(port: int) -> None:
    """Wait for the gateway's first snapshot."""
    until_s = time.monotonic() + 30
    while time.monotonic() < until_s:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)


def _settled(control: ControlStub, count: int) -> int:
    """Return what the control plane heard of, once the last journal lines had a moment."""
    until_s = time.monotonic() + 5
    while control.ended < count and time.monotonic() < until_s:
        time.sleep(0.1)
    return control.ended


def _snapshot(replicas: list[Replica]) -> GatewaySnapshot:
    views = tuple(
        ReplicaView(
            attempt=f"end_1.u{number}.g1",
            address=f"127.0.0.1:{replica.port}",
            key="replica",
            zone=f"zone-{replica.country.lower()}",
            country=replica.country,
            country_basis="asserted by the operator",
            parallel_requests=SLOTS,
        )
        for number, replica in enumerate(replicas)
    )
    model = priced_model(views)
    keys = tuple(
        KeyView(
            id=f"key_{name}",
            digest=digest(PEPPER, key),
            organisation="uni",
            project="lab",
            countries=countries,
        )
        for name, key, countries in (("home", HOME_KEY, (HOME,)), ("open", OPEN_KEY, ()))
    )
    return GatewaySnapshot(
        version=1,
        issued_at_ns=time.time_ns(),
        staleness_max_s=3600,
        keys=keys,
        models=(model,),
        projects=(ProjectView(name="lab", organisation="uni"),),
    )

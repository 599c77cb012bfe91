"""Does Moulin's gateway read requests as nginx does, however they are written?

The same bytes go to the gateway and to nginx in front of an upstream, each with the same bounds. Both
tell how they framed what they accepted: method, path, and the body's length and digest of each
request of the connection. A case diverges when Moulin framed a request otherwise than nginx, or
accepted one that nginx refused, dropped or still waits for; a stricter refusal is none. What looks
like a divergence is sent again on its own before it counts. Cases are drawn from a grammar by seed.
"""

import argparse
import asyncio
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from benchmarks._gateway import KEY, PEERS, free_port, started
from benchmarks._smuggling_cases import case
from benchmarks._smuggling_gateway import frame

PARALLEL: Final = 48
ANSWER_S: Final = 8.0
"""Longer than both servers wait for the rest of a request."""
FOUND_MAX: Final = 50
_FRAME: Final = re.compile(rb"x-frame: ([^\r\n]+)", re.IGNORECASE)
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3})")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say how many cases, or for how long, and which."""
    parser.add_argument("--cases", type=int, default=20_000, help="cases to send")
    parser.add_argument("--minutes", type=float, default=0.0, help="send for so long instead")
    parser.add_argument("--seed", type=int, default=1, help="which cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a server read one connection: the frames it accepted, and the statuses it answered."""

    frames: tuple[bytes, ...]
    statuses: tuple[int, ...]
    is_closed: bool


def diverges(moulin: Reading, nginx: Reading) -> bool:
    """Say whether Moulin accepted something that nginx did not, or not like this.

    >>> once = Reading(frames=(b"a",), statuses=(200,), is_closed=True)
    >>> none = Reading(frames=(), statuses=(400,), is_closed=True)
    >>> diverges(none, once), diverges(once, none), diverges(once, once)
    (False, True, False)
    """
    return moulin.frames != nginx.frames[: len(moulin.frames)]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Send the cases and compare."""
    if shutil.which("nginx") is None:
        raise SystemExit("error: nginx is needed (apt-get install nginx)")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moulin-bench-")))
        core = max(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {core})
        echo, nginx, moulin = free_port(), free_port(), free_port()
        configuration = folder / "nginx.conf"
        text = (PEERS / "nginx_smuggling.conf").read_text()
        for mark, value in (("UPSTREAM", echo), ("PORT", nginx), ("DIR", folder)):
            text = text.replace(mark, str(value))
        configuration.write_text(text)
        commands = (
            (["nginx", "-c", str(configuration), "-p", str(folder)], nginx),
            (
                [sys.executable, "-m", "benchmarks._smuggling_gateway", str(moulin), str(folder)],
                moulin,
            ),
        )
        for command, port in commands:
            stack.enter_context(started(command, core, port))
        return asyncio.run(_Fuzzer(options, moulin=moulin, nginx=nginx).run(echo))


class _Fuzzer:
    def __init__(self, options: argparse.Namespace, *, moulin: int, nginx: int) -> None:
        self._options = options
        self._ports = (moulin, nginx)
        self._next = options.first
        self._until_s = time.monotonic() + 60 * options.minutes
        self._suspects: list[int] = []
        self._seen: Counter[str] = Counter()

    async def run(self, echo: int) -> dict[str, Any]:
        """Send until there are enough; then send once more, alone, whatever looked wrong."""
        started_s = time.monotonic()
        upstream = await asyncio.get_running_loop().create_server(_Echo, "127.0.0.1", echo)
        async with upstream:
            await asyncio.gather(*(self._work() for _ in range(PARALLEL)))
            found = [
                told for number in sorted(self._suspects) if (told := await self._confirm(number))
            ]
        return {
            "cases": self._next - self._options.first,
            "divergences": len(found),
            "seed": self._options.seed,
            "minutes": round((time.monotonic() - started_s) / 60, 1),
            "outcomes": dict(sorted(self._seen.items())),
            "looked_wrong_once": len(self._suspects),
            "found": found[:FOUND_MAX],
        }

    def _is_enough(self) -> bool:
        if self._options.minutes:
            return time.monotonic() >= self._until_s
        return bool(self._next >= self._options.first + self._options.cases)

    async def _work(self) -> None:
        while not self._is_enough():
            number, self._next = self._next, self._next + 1
            moulin, nginx = await self._read(number)
            if diverges(moulin, nginx):
                self._suspects.append(number)
            self._seen[_outcome(moulin, nginx)] += 1

    async def _read(self, number: int) -> Sequence[Reading]:
        pieces = case(self._options.seed, number, KEY)
        return await asyncio.gather(*(_send(port, pieces) for port in self._ports))

    async def _confirm(self, number: int) -> dict[str, Any] | None:
        await self._read(number)  # a pause between two tries
        moulin, nginx = await self._read(number)
        if not diverges(moulin, nginx):
            return None
        return {
            "case": number,
            "moulin": [list(moulin.statuses), [told.decode() for told in moulin.frames]],
            "nginx": [list(nginx.statuses), [told.decode() for told in nginx.frames]],
            "sent": repr(b"|".join(case(self._options.seed, number, KEY)))[:2000],
        }


def _outcome(moulin: Reading, nginx: Reading) -> str:
    """Name what happened, so that a run shows what its cases reached."""
    if not moulin.is_closed:
        return "moulin left the connection open"
    if diverges(moulin, nginx):
        return "moulin accepted more"
    if len(moulin.frames) < len(nginx.frames):
        return "moulin accepted less"
    return "both accepted all of it" if moulin.statuses[-1:] == (200,) else "both refused the same"


async def _send(port: int, pieces: tuple[bytes, ...]) -> Reading:
    """Send one connection's bytes and read until the server closes."""
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_connection(_Client, "127.0.0.1", port)
    for piece in pieces:
        transport.write(piece)
        if len(pieces) > 1:
            await asyncio.sleep(0.001)
    with suppress(TimeoutError):
        async with asyncio.timeout(ANSWER_S):
            await client.closed.wait()
    is_closed = client.closed.is_set()
    transport.abort()
    frames = tuple(_FRAME.findall(client.answer))
    statuses = tuple(int(each) for each in _STATUS.findall(client.answer) if each != b"100")
    return Reading(frames=frames, statuses=statuses, is_closed=is_closed)


class _Client(asyncio.Protocol):
    def __init__(self) -> None:
        self.answer = bytearray()
        self.closed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        """Keep what came."""
        self.answer += data

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake whoever waits."""
        self.closed.set()


class _Echo(asyncio.Protocol):
    """Answers what nginx passes on with its frame; nginx writes heads and lengths anew."""

    def __init__(self) -> None:
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        self._data += data
        while True:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            line, _, fields = head.partition(b"\r\n")
            length = re.search(rb"content-length: (\d+)", fields.lower())
            size = int(length[1]) if length else 0
            if not end or len(rest) < size:
                return
            body, self._data = rest[:size], rest[size:]
            method, _, target = line.removesuffix(b" HTTP/1.1").partition(b" ")
            told = frame(method, target, body)
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nx-frame: %b\r\ncontent-length: 0\r\n\r\n" % told
            )

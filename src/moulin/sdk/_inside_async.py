"""Inside running tasks, for asyncio: commands, terminals and ports, over one connection each."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from moulin.domain.errors import PortInUse
from moulin.domain.session import INPUT, OUTPUT, EntryWanted, FrameKind, Frames, frame
from moulin.sdk import _dial as dial
from moulin.sdk._closing import AsyncClosing
from moulin.sdk._core import unreachable
from moulin.sdk._inside import Outcome
from moulin.sdk.credentials import Credentials

CHUNK: Final = 65_536


class AsyncInside:
    """Ways into running tasks of workloads."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def open(
        self,
        id: str,
        command: Sequence[str] = (),
        *,
        terminal: str = "",
        size: tuple[int, int] | None = None,
        unit: int = 0,
        rank: int = 0,
    ) -> "AsyncSession":
        """Start a command inside a task, the user's shell where none is given; close it, or use `with`."""
        wanted = EntryWanted(command=dial.command_of(command), terminal=terminal)
        return await self._session((id, unit, rank), wanted, size)

    async def run(
        self, id: str, command: Sequence[str], *, given: bytes = b"", unit: int = 0, rank: int = 0
    ) -> Outcome:
        """Run a command inside a task to its end, with `given` as its input."""
        parts: dict[int, list[bytes]] = {1: [], 2: []}
        async with await self.open(id, command, unit=unit, rank=rank) as session:
            feeding = asyncio.create_task(session.feed(given))
            async for pipe, data in session:
                parts[pipe].append(data)
            await feeding
        return Outcome(
            exit_code=session.exit_code or 0, output=b"".join(parts[1]), errors=b"".join(parts[2])
        )

    async def forward(
        self, id: str, port: int, *, local_port: int = 0, unit: int = 0, rank: int = 0
    ) -> "AsyncForward":
        """Let connections to a port of this machine's loopback end at one of a task's; use `with`."""
        session = await self._session((id, unit, rank), EntryWanted(port=port), None)
        made = AsyncForward(session)
        try:
            await made.listen(local_port)
        except BaseException:
            await made.close()
            raise
        return made

    async def _session(
        self, at: tuple[str, int, int], wanted: EntryWanted, size: tuple[int, int] | None
    ) -> "AsyncSession":
        connection = await _connect(self._credentials, *at)
        await connection.send(dial.first_message(wanted, size))
        return AsyncSession(connection)


class AsyncSession(AsyncClosing):
    """One command inside a task; iterate over its output, as pairs of pipe (1, 2) and bytes."""

    def __init__(self, connection: Any) -> None:
        self.exit_code: int | None = None
        self._connection = connection

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        from websockets.exceptions import ConnectionClosed

        try:
            while True:
                message = await self._connection.recv()
                if isinstance(message, bytes):
                    yield message[0], message[1:]
                else:
                    status = dial.read_message(message)
                    self.exit_code = self.exit_code if status is None else status
        except ConnectionClosed as closed:
            if self.exit_code is None:
                raise dial.cut(closed.rcvd.reason if closed.rcvd else "") from closed

    async def write(self, data: bytes) -> None:
        """Give the command input."""
        for start in range(0, len(data), CHUNK):
            await self._send(INPUT + data[start : start + CHUNK])

    async def feed(self, data: bytes) -> None:
        """Give the command all its input."""
        await self.write(data)
        await self._send(dial.end_message())

    async def resize(self, rows: int, columns: int) -> None:
        """Tell the command's terminal its new size."""
        await self._send(dial.resize_message(rows, columns))

    async def close(self) -> None:
        """Leave; a command that still runs is ended."""
        await self._connection.close()

    async def _send(self, message: str | bytes) -> None:
        from websockets.exceptions import ConnectionClosed

        with contextlib.suppress(ConnectionClosed):  # whoever reads is told
            await self._connection.send(message)


class AsyncForward(AsyncClosing):
    """A port of this machine's loopback that leads into a task, until it is closed."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._numbers = itertools.count(1)
        self._streams: dict[int, asyncio.StreamWriter] = {}
        self._server: asyncio.Server | None = None
        self._reading: asyncio.Task[None] | None = None
        self._copying: set[asyncio.Task[None]] = set()
        self._opened = asyncio.Event()
        self.port = 0

    async def listen(self, local_port: int) -> None:
        """Begin; raises `PortInUse`, and `Conflict` for a port that is not the task's."""
        self._reading = asyncio.create_task(self._read())
        opening = asyncio.create_task(self._opened.wait())
        await asyncio.wait([self._reading, opening], return_when=asyncio.FIRST_COMPLETED)
        opening.cancel()
        if self._reading.done():
            self._reading.result()
        try:
            self._server = await asyncio.start_server(self._copy, "127.0.0.1", local_port)
        except OSError as cause:
            raise PortInUse(
                f"listen on 127.0.0.1:{local_port}: {cause.strerror}", hint="name another port"
            ) from cause
        self.port = self._server.sockets[0].getsockname()[1]

    async def wait(self) -> None:
        """Return when the way in has ended; raises what ended it."""
        if self._reading is not None:
            await self._reading

    async def close(self) -> None:
        """End every connection and listen no more."""
        tasks = [each for each in (self._reading, *self._copying) if each is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        for writer in self._streams.values():
            writer.close()
        self._streams.clear()
        await self._session.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what a connection here says."""
        task = asyncio.current_task()
        if task is not None:
            self._copying.add(task)
            task.add_done_callback(self._copying.discard)
        stream = next(self._numbers)
        self._streams[stream] = writer
        await self._session.write(frame(stream, FrameKind.OPEN))
        try:
            while data := await reader.read(CHUNK // 2):
                await self._session.write(frame(stream, FrameKind.DATA, data))
        except OSError:
            return
        await self._session.write(frame(stream, FrameKind.END))

    async def _read(self) -> None:
        frames, words = Frames(), b""
        async for pipe, data in self._session:
            if bytes((pipe,)) != OUTPUT:
                words += data
                continue
            for stream, kind, body in frames.add(data):
                await self._answer(stream, kind, body)
        raise dial.no_way(words)

    async def _answer(self, stream: int, kind: FrameKind, body: bytes) -> None:
        if stream == 0:
            self._opened.set()
        writer = self._streams.get(stream)
        if writer is None:
            return
        if kind is FrameKind.END:
            del self._streams[stream]
            writer.close()
            return
        writer.write(body)
        with contextlib.suppress(OSError):
            await writer.drain()


async def _connect(credentials: Credentials, id: str, unit: int, rank: int) -> Any:
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidHandshake, InvalidStatus

    try:
        return await connect(dial.address(credentials, id, unit, rank), **dial.options(credentials))
    except InvalidStatus as refused:
        raise dial.refused(
            refused.response.status_code, bytes(refused.response.body or b"")
        ) from refused
    except (OSError, TimeoutError, InvalidHandshake) as cause:
        raise unreachable(credentials.control_url, type(cause).__name__) from cause

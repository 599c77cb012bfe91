"""Inside running tasks, for plain code: commands, terminals and ports, over one connection each."""

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from moulin.domain.errors import MoulinError, PortInUse
from moulin.domain.session import INPUT, OUTPUT, EntryWanted, FrameKind, Frames, frame
from moulin.sdk import _dial as dial
from moulin.sdk._closing import Closing
from moulin.sdk._core import unreachable
from moulin.sdk.credentials import Credentials

CHUNK: Final = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a command inside a task ended, and what it wrote."""

    exit_code: int
    output: bytes
    errors: bytes


class Inside:
    """Ways into running tasks of workloads."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def open(
        self,
        id: str,
        command: Sequence[str] = (),
        *,
        terminal: str = "",
        size: tuple[int, int] | None = None,
        unit: int = 0,
        rank: int = 0,
    ) -> "Session":
        """Start a command inside a task, the user's shell where none is given; close it, or use `with`.

        With a `terminal`, its name as in TERM, the command has one of `size` rows and columns.
        """
        wanted = EntryWanted(command=dial.command_of(command), terminal=terminal)
        return Session(self._credentials, (id, unit, rank), wanted, size)

    def run(
        self, id: str, command: Sequence[str], *, given: bytes = b"", unit: int = 0, rank: int = 0
    ) -> Outcome:
        """Run a command inside a task to its end, with `given` as its input."""
        parts: dict[int, list[bytes]] = {1: [], 2: []}
        with self.open(id, command, unit=unit, rank=rank) as session:
            feeding = threading.Thread(target=session.feed, args=(given,), daemon=True)
            feeding.start()
            for pipe, data in session:
                parts[pipe].append(data)
            feeding.join()
        return Outcome(
            exit_code=session.exit_code or 0, output=b"".join(parts[1]), errors=b"".join(parts[2])
        )

    def forward(
        self, id: str, port: int, *, local_port: int = 0, unit: int = 0, rank: int = 0
    ) -> "Forward":
        """Let connections to a port of this machine's loopback end at one of a task's; use `with`.

        `local_port` 0 takes a free one. Raises `PortInUse`, and `Conflict` for a port that no process
        of the task listens on.
        """
        session = Session(self._credentials, (id, unit, rank), EntryWanted(port=port), None)
        try:
            return Forward(session, local_port)
        except BaseException:
            session.close()
            raise


class Session(Closing):
    """One command inside a task; iterate over its output, as pairs of pipe (1, 2) and bytes.

    `exit_code` is known when the output has ended. Writing is safe from another thread.
    """

    def __init__(
        self,
        credentials: Credentials,
        at: tuple[str, int, int],
        wanted: EntryWanted,
        size: tuple[int, int] | None,
    ) -> None:
        self.exit_code: int | None = None
        self._leaving, self._connection = _connect(credentials, *at)
        self._connection.send(dial.first_message(wanted, size))

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        from websockets.exceptions import ConnectionClosed

        try:
            while True:
                message = self._connection.recv()
                if isinstance(message, bytes):
                    yield message[0], message[1:]
                else:
                    status = dial.read_message(message)
                    self.exit_code = self.exit_code if status is None else status
        except ConnectionClosed as closed:
            if self.exit_code is None:
                raise dial.cut(closed.rcvd.reason if closed.rcvd else "") from closed

    def write(self, data: bytes) -> None:
        """Give the command input."""
        for start in range(0, len(data), CHUNK):
            self._send(INPUT + data[start : start + CHUNK])

    def feed(self, data: bytes) -> None:
        """Give the command all its input."""
        self.write(data)
        self._send(dial.end_message())

    def resize(self, rows: int, columns: int) -> None:
        """Tell the command's terminal its new size."""
        self._send(dial.resize_message(rows, columns))

    def close(self) -> None:
        """Leave; a command that still runs is ended."""
        self._leaving.close()

    def _send(self, message: str | bytes) -> None:
        from websockets.exceptions import ConnectionClosed

        with contextlib.suppress(ConnectionClosed):  # whoever reads is told
            self._connection.send(message)


class Forward(Closing):
    """A port of this machine's loopback that leads into a task, until it is closed."""

    def __init__(self, session: Session, local_port: int) -> None:
        self._session = session
        self._numbers = itertools.count(1)
        self._streams: dict[int, socket.socket] = {}
        self._closed = threading.Event()
        self._opened = threading.Event()
        self.error: MoulinError | None = None
        try:
            self._server = socket.create_server(("127.0.0.1", local_port))
        except OSError as cause:
            raise PortInUse(
                f"listen on 127.0.0.1:{local_port}: {cause.strerror}", hint="name another port"
            ) from cause
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._read, name="forward", daemon=True).start()
        self._opened.wait()
        if self.error is not None:
            raise self.error
        threading.Thread(target=self._accept, name="forward", daemon=True).start()

    def wait(self) -> None:
        """Return when the way in has ended; raises what ended it, if it was not `close`."""
        self._closed.wait()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """End every connection and listen no more."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._session.close()
        for stream in tuple(self._streams):
            self._drop(stream)

    def _accept(self) -> None:
        while True:
            try:
                made, _ = self._server.accept()
            except OSError:
                return
            stream = next(self._numbers)
            self._streams[stream] = made
            self._session.write(frame(stream, FrameKind.OPEN))
            threading.Thread(
                target=self._copy, args=(stream, made), name="forward", daemon=True
            ).start()

    def _copy(self, stream: int, made: socket.socket) -> None:
        """Pass on what a connection here says."""
        try:
            while data := made.recv(CHUNK // 2):
                self._session.write(frame(stream, FrameKind.DATA, data))
        except OSError:
            return
        self._session.write(frame(stream, FrameKind.END))

    def _read(self) -> None:
        """Pass on what the task's side says, until the session ends."""
        frames, words = Frames(), b""
        try:
            for pipe, data in self._session:
                if bytes((pipe,)) != OUTPUT:
                    words += data
                    continue
                for stream, kind, body in frames.add(data):
                    self._answer(stream, kind, body)
        except MoulinError as error:
            self.error = error
        else:
            self.error = dial.no_way(words)
        if self._closed.is_set():
            self.error = None
        else:
            self.close()
        self._opened.set()

    def _answer(self, stream: int, kind: FrameKind, body: bytes) -> None:
        made = self._streams.get(stream)
        if stream == 0:
            self._opened.set()
        if made is None:
            return
        if kind is FrameKind.END:
            self._drop(stream)
            return
        try:
            made.sendall(body)
        except OSError:
            self._drop(stream)

    def _drop(self, stream: int) -> None:
        made = self._streams.pop(stream, None)
        if made is not None:
            with contextlib.suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)
            made.close()


def _connect(
    credentials: Credentials, id: str, unit: int, rank: int
) -> tuple[contextlib.ExitStack, Any]:
    """Return a connection with what ends it."""
    from websockets.exceptions import InvalidHandshake, InvalidStatus
    from websockets.sync.client import connect

    leaving = contextlib.ExitStack()
    door = dial.address(credentials, id, unit, rank)
    try:
        return leaving, leaving.enter_context(connect(door, **dial.options(credentials)))
    except InvalidStatus as refused:
        raise dial.refused(
            refused.response.status_code, bytes(refused.response.body or b"")
        ) from refused
    except (OSError, TimeoutError, InvalidHandshake) as cause:
        raise unreachable(credentials.control_url, type(cause).__name__) from cause

"""Runs one program whose pipes, or terminal, are somebody's on the other end of a connection.

It decides nothing about what runs. Bytes are passed on as they come and kept nowhere; a reader that
falls behind stops the program, not this process.
"""

import asyncio
import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
from collections.abc import AsyncIterator, Callable
from typing import Final

from moulin.domain.session import Entry

CHUNK: Final = 65_536
END_S: Final = 6.0


class Hosted:
    """One running program; made in a worker thread by `start`, used on the event loop."""

    def __init__(self, entry: Entry, *, is_terminal: bool) -> None:
        """Start it; raises `OSError` when it cannot be."""
        self.input, self.outputs, theirs = _terminal() if is_terminal else _pipes()
        self._is_terminal = is_terminal
        try:
            self._process = subprocess.Popen(  # noqa: S603 - what an engine gave, never a shell
                entry.argv,
                env=dict(entry.env),
                stdin=theirs[0],
                stdout=theirs[1],
                stderr=theirs[2],
                start_new_session=True,
            )
        except OSError:
            self.close()
            raise
        finally:
            for fd in set(theirs):
                os.close(fd)

    def exited(self) -> "asyncio.Future[int]":
        """Return what becomes the program's status, as a shell would say it, when it has ended."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[int] = loop.create_future()

        def wait() -> None:
            status = self._process.wait()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, found, status if status >= 0 else 128 - status)

        threading.Thread(target=wait, name="session", daemon=True).start()
        return found

    async def output(self, index: int) -> AsyncIterator[bytes]:
        """Yield what the program writes to its standard output (0) or error (1), until its end."""
        fd = self.outputs[index]
        while True:
            try:
                data = os.read(fd, CHUNK)
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await _ready(fd, loop.add_reader, loop.remove_reader)
                continue
            except OSError:
                return  # of a terminal: everybody has left it
            if not data:
                return
            yield data

    async def write(self, data: bytes) -> None:
        """Give the program input; what it reads no more of is dropped."""
        while data and self.input >= 0:
            try:
                data = data[os.write(self.input, data) :]
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await _ready(self.input, loop.add_writer, loop.remove_writer)
            except OSError:
                return

    def end_input(self) -> None:
        """Say that no more input comes; a terminal has its own way to say so."""
        if not self._is_terminal and self.input >= 0:
            os.close(self.input)
            self.input = -1

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size, which its programs are told of."""
        if self._is_terminal and self.input >= 0:
            size = struct.pack("HHHH", rows, columns, 0, 0)
            fcntl.ioctl(self.input, termios.TIOCSWINSZ, size)

    async def end(self, exited: "asyncio.Future[int]") -> None:
        """End the program if it still runs, by force after a moment, and close what was ours."""
        if not exited.done():
            with contextlib.suppress(OSError):
                self._process.terminate()
            await asyncio.wait([exited], timeout=END_S)
        if not exited.done():
            with contextlib.suppress(OSError):
                self._process.kill()
        self.close()

    def close(self) -> None:
        """Close our ends."""
        for fd in {self.input, *self.outputs}:
            if fd >= 0:
                os.close(fd)
        self.input, self.outputs = -1, ()


def _pipes() -> tuple[int, tuple[int, ...], tuple[int, int, int]]:
    """Return our input, our outputs and the three ends of the program."""
    (their_in, our_in), (our_out, their_out), (our_err, their_err) = (os.pipe() for _ in range(3))
    for fd in (our_in, our_out, our_err):
        os.set_blocking(fd, False)
    return our_in, (our_out, our_err), (their_in, their_out, their_err)


def _terminal() -> tuple[int, tuple[int, ...], tuple[int, int, int]]:
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    return ours, (ours,), (theirs, theirs, theirs)


def _settle(found: "asyncio.Future[int]", status: int) -> None:
    if not found.done():
        found.set_result(status)


def _settle_ready(found: "asyncio.Future[None]") -> None:
    if not found.done():
        found.set_result(None)


async def _ready(fd: int, add: Callable[..., object], remove: Callable[[int], object]) -> None:
    """Wait until a descriptor can be read or written."""
    found: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    add(fd, _settle_ready, found)
    try:
        await found
    finally:
        remove(fd)

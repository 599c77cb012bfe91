"""The gateway's own memory of what it began and ended: an append-only file per epoch.

It decides when a request may go upstream and when its answer may reach the client: after its BEGIN
and its END are with the kernel, which keeps them through a SIGKILL of this process. Lines of one
event-loop tick share one write. It never calls
fsync (a lost machine is charged from what the leader knows) and never holds lines in memory: what
is shipped to the control plane is read back from the file.
"""

import asyncio
import itertools
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import orjson

from moulin.domain.errors import DataDirectoryBusy

SUFFIX: Final = ".journal"
_END: Final = b'"kind":"end"'
DROPPED_BYTES_MIN: Final = 64 * 1024 * 1024
"""A journal longer than this loses what the leader has acknowledged."""
KEPT_S: Final = 62.0
MARK_EVERY_S: Final = 5.0
MARKS_MAX: Final = 64
"""How long the file was at which time, far enough back to know what is older than a minute."""
SHIPMENT_BYTES: Final = 512 * 1024
COPIED_BYTES: Final = 1024 * 1024


class Writer(Protocol):
    """A request that goes on only when its line is safe."""

    def written(self) -> None:
        """Go on: the line is with the kernel."""
        ...

    def not_written(self, cause: OSError) -> None:
        """The line could not be written; an END will be tried again, a BEGIN will not."""
        ...


class Journal:
    """The journal of this epoch. Sequences start at 1 and have no gap.

    A line that cannot be written (disk full) fails its request if it is a BEGIN; an END stays in
    memory and is tried again with the next line.
    """

    def __init__(self, folder: Path, epoch: int, loop: asyncio.AbstractEventLoop) -> None:
        self.path = folder / f"{epoch}{SUFFIX}"
        self.epoch = epoch
        self.sequence = 0
        self._loop = loop
        self._lines: list[bytes] = []
        self._writers: list[Writer] = []
        self._is_due = False
        self._size_bytes = 0
        self._is_closed = False
        self._marks: deque[tuple[float, int]] = deque(maxlen=MARKS_MAX)
        try:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as cause:
            raise DataDirectoryBusy(
                f"start the journal of epoch {epoch}: {self.path} exists",
                hint="start the gateway again",
            ) from cause

    @property
    def is_behind(self) -> bool:
        """Whether a line waits for a disk that refused it."""
        return bool(self._lines)

    def append(self, line: bytes, writer: Writer | None) -> None:
        """Write a line (its JSON after `"sequence":n,`) at the end of this event-loop tick."""
        self._lines.append(line)
        if writer is not None:
            self._writers.append(writer)
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write every waiting line now, then let the requests that wait for theirs go on."""
        self._is_due = False
        lines, self._lines = self._lines, []
        writers, self._writers = self._writers, []
        first = self.sequence + 1
        data = b"".join([b'{"sequence":%d,%b\n' % entry for entry in enumerate(lines, first)])
        try:
            self._write(data)
        except OSError as cause:
            self._lines = [line for line in lines if line.startswith(_END)]
            for writer in writers:
                writer.not_written(cause)
            return
        self.sequence += len(lines)
        now_s = self._loop.time()
        if not self._marks or now_s - self._marks[-1][0] >= MARK_EVERY_S:
            self._marks.append((now_s, self._size_bytes))
        for writer in writers:
            writer.written()

    async def drop_before(self, offset: int) -> int:
        """Cut off what the leader has, once it is most of the file; return by how much offsets shrank.

        What is younger than a minute stays: rates are counted from it after a restart. As never less
        is dropped than is copied, a line is copied once in the mean. A thread copies beside, while
        requests go on, and the copy is renamed: a crash leaves the old file or the new one. One call
        at a time.
        """
        cut, size = self._droppable_bytes(offset), self._size_bytes
        if not cut:
            return 0
        beside = self.path.with_suffix(".new")
        renewed = await asyncio.to_thread(_begin_copy, self.path, beside, cut, size)
        if renewed < 0:
            return 0
        if self._is_closed or not _is_copied(self.path, renewed, size, self._size_bytes):
            os.close(renewed)
            return 0
        beside.replace(self.path)
        os.close(self._file)
        self._file, self._size_bytes = renewed, self._size_bytes - cut
        self._marks = deque(
            ((at_s, until - cut) for at_s, until in self._marks if until > cut), maxlen=MARKS_MAX
        )
        return cut

    def _droppable_bytes(self, offset: int) -> int:
        if offset < DROPPED_BYTES_MIN or self._is_closed:
            return 0
        until_s = self._loop.time() - KEPT_S
        old = max((size for at_s, size in self._marks if at_s <= until_s), default=0)
        cut = min(offset, old)
        return cut if cut >= max(DROPPED_BYTES_MIN, self._size_bytes - cut) else 0

    def close(self) -> None:
        """Write what waits and close the file; again is nothing."""
        if self._is_closed:
            return
        if self._lines:
            self.flush()
        self._is_closed = True
        os.close(self._file)

    def _write(self, data: bytes) -> None:
        written = os.write(self._file, data)
        if written != len(data):
            try:
                while written < len(data):
                    written += os.write(self._file, data[written:])
            except OSError:
                os.ftruncate(self._file, self._size_bytes)
                os.lseek(self._file, 0, os.SEEK_END)
                raise
        self._size_bytes += len(data)


class Shipment(NamedTuple):
    """Whole lines of a journal up to sequence `last`; `offset` is the place in the file behind them.

    `is_end` when nothing whole follows them now.
    """

    data: bytes
    last: int
    offset: int
    is_end: bool

    @property
    def lines(self) -> tuple[bytes, ...]:
        """The lines one by one, which only what goes wrong needs."""
        return tuple(self.data.split(b"\n")[:-1])

    @property
    def records(self) -> bytes:
        """The lines as the elements of one JSON array."""
        return self.data[:-1].replace(b"\n", b",")


class JournalReader:
    """Walks a journal file, this epoch's or a predecessor's, as the leader acknowledges it."""

    def __init__(self, path: Path, *, is_finished: bool) -> None:
        self.path = path
        self.epoch = int(path.name.removesuffix(SUFFIX))
        self.is_finished = is_finished
        self.offset = 0
        self._acknowledged = 0

    def next_shipment(self) -> Shipment:
        """Return the lines after the last acknowledged one, up to about half a mebibyte.

        A last line without its end is left out: in a live journal it is being written, in a
        finished one its request never went upstream. A finished journal that a crashed machine
        left unreadable ends before the damage; what was begun is charged from its reservation.
        """
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(SHIPMENT_BYTES)
        is_end = len(data) < SHIPMENT_BYTES
        data = data[: data.rfind(b"\n") + 1]
        if self.is_finished:
            lines = data.split(b"\n")[:-1]
            whole = list(itertools.takewhile(_is_whole, lines))
            if len(whole) < len(lines):
                data, is_end = b"".join(line + b"\n" for line in whole), True
        last = self._acknowledged
        if data:
            last = _sequence(data[data.rfind(b"\n", 0, -1) + 1 :])
        return Shipment(data, last, self.offset + len(data), is_end)

    def acknowledge(self, shipment: Shipment, sequence: int) -> None:
        """Move behind what the leader has; what it has not is sent again.

        A leader that knows less than it once acknowledged was restored from a backup: it is told
        everything the file still has.
        """
        if sequence < self._acknowledged:
            self.offset = self._acknowledged = 0
            return
        if sequence >= shipment.last:
            self.offset, self._acknowledged = shipment.offset, shipment.last
            return
        for line in shipment.lines:
            if _sequence(line) > sequence:
                return
            self.offset += len(line) + 1
            self._acknowledged = _sequence(line)

    @property
    def acknowledged(self) -> int:
        """The last sequence the leader has."""
        return self._acknowledged


def _begin_copy(path: Path, beside: Path, first: int, end: int) -> int:
    """Copy a part of a file to another; return the other's descriptor, -1 when that failed."""
    try:
        renewed = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError:
        return -1
    if _is_copied(path, renewed, first, end):
        return renewed
    os.close(renewed)
    return -1


def _is_copied(path: Path, descriptor: int, first: int, end: int) -> bool:
    """Copy a part of a file in blocks: a busy minute is larger than memory should be."""
    try:
        with path.open("rb") as file:
            file.seek(first)
            while first < end:
                block = file.read(min(COPIED_BYTES, end - first))
                if not block or os.write(descriptor, block) != len(block):
                    return False
                first += len(block)
    except OSError:
        return False
    return True


def predecessors(folder: Path) -> Iterator[JournalReader]:
    """Yield the journals that earlier processes left, oldest epoch first."""
    names = sorted(
        (path for path in folder.glob(f"*{SUFFIX}") if path.name.removesuffix(SUFFIX).isdigit()),
        key=lambda path: int(path.name.removesuffix(SUFFIX)),
    )
    for path in names:
        yield JournalReader(path, is_finished=True)


def _is_whole(line: bytes) -> bool:
    try:
        return _sequence(line) > 0
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return False


def _sequence(line: bytes) -> int:
    return int(orjson.loads(line)["sequence"])

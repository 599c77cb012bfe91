"""What a running batch has done so far: a file of finished lines that survives its process.

A line is in it whole or not at all; a batch that goes on after a crash carries out what is not.
"""

import os
from collections.abc import Iterator
from pathlib import Path


class Results:
    """Finished lines by their place: `completed` were answered well, `failed` were not."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[int, tuple[int, int, bool]] = {}
        self.completed = 0
        self.failed = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size_bytes = self._load()
        os.ftruncate(self._file, self._size_bytes)

    def __contains__(self, index: object) -> bool:
        return index in self._places

    def add(self, index: int, text: bytes, *, is_good: bool) -> None:
        """Keep the finished line `text`, which ends with its only line end, unless it is kept."""
        if index in self._places:
            return
        head = b"%d %d " % (index, is_good)
        os.write(self._file, head + text)
        self._note(index, self._size_bytes + len(head), len(text), is_good=is_good)
        self._size_bytes += len(head) + len(text)

    def lines(self, *, is_good: bool) -> Iterator[bytes]:
        """Yield finished lines in the order of the batch, the good ones or the others."""
        for _, (offset, length, kind) in sorted(self._places.items()):
            if kind is is_good:
                yield os.pread(self._file, length, offset)

    def close(self) -> None:
        """Close the file, once; it stays."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def drop(self) -> None:
        """Delete the file: everything in it is in a better place."""
        self.close()
        self._path.unlink(missing_ok=True)

    def _load(self) -> int:
        """Read what a former process left; return where its last whole line ends."""
        offset = 0
        with self._path.open("rb") as file:
            for text in file:
                index, _, rest = text.partition(b" ")
                if not text.endswith(b"\n") or not index.isdigit():
                    break
                start = offset + len(index) + 3
                self._note(int(index), start, len(text) - len(index) - 3, is_good=rest[:1] == b"1")
                offset += len(text)
        return offset

    def _note(self, index: int, offset: int, length: int, *, is_good: bool) -> None:
        self._places[index] = (offset, length, is_good)
        if is_good:
            self.completed += 1
        else:
            self.failed += 1

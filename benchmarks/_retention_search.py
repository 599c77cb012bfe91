"""Find a word wherever a program may have left it: files as bytes, databases column by column.

The word is searched as it is and in the forms in which software writes text: UTF-16, hexadecimal,
base64 at each alignment, compressed in a stream of its own. Nothing here writes but `plant`.
"""

import base64
import bz2
import gzip
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

CHUNK_BYTES = 4 * 2**20
COMPRESSED_BYTES_MAX = 64 * 2**20
_OPENERS: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", gzip.decompress),
    (b"BZh", bz2.decompress),
    (b"\x78", zlib.decompress),
)


@dataclass
class Search:
    """What was looked through, and every place where the word was."""

    word: str
    files: int = 0
    searched_bytes: int = 0
    columns: int = 0
    unreadable: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    @property
    def forms(self) -> tuple[bytes, ...]:
        """The byte strings that mean the word."""
        plain = self.word.encode()
        return (
            plain,
            self.word.encode("utf-16-le"),
            plain.hex().encode(),
            *(_inner_base64(plain, shift) for shift in range(3)),
        )

    def look(self, roots: Iterable[Path]) -> None:
        """Search every file below the roots, each once, and every column of every database."""
        seen: set[tuple[int, int]] = set()
        for path in _files(roots):
            try:
                found = path.stat()
                if (found.st_dev, found.st_ino) in seen:
                    continue
                seen.add((found.st_dev, found.st_ino))
                if any(form in str(path).encode() for form in self.forms):
                    self.places.append(f"the name of {path}")
                self._file(path)
            except OSError as cause:
                self.unreadable.append(f"{path}: {cause.strerror}")

    def _file(self, path: Path) -> None:
        self.files += 1
        overlap = max(map(len, self.forms)) - 1
        with path.open("rb") as file:
            head = file.read(16)
            file.seek(0)
            tail = b""
            while chunk := file.read(CHUNK_BYTES):
                self.searched_bytes += len(chunk)
                if self._is_in(tail + chunk):
                    self.places.append(str(path))
                    break
                tail = chunk[-overlap:]
        if head.startswith(b"SQLite format 3"):
            self._database(path)
        elif path.stat().st_size <= COMPRESSED_BYTES_MAX:
            self._compressed(path, head)

    def _is_in(self, data: bytes) -> bool:
        return any(form in data for form in self.forms)

    def _compressed(self, path: Path, head: bytes) -> None:
        for magic, opener in _OPENERS:
            if head.startswith(magic):
                try:
                    inside = opener(path.read_bytes())
                except (OSError, EOFError, zlib.error):
                    return  # it only looked like one; its bytes were searched
                if self._is_in(inside):
                    self.places.append(f"{path}, unpacked")

    def _database(self, path: Path) -> None:
        """Read every column: a long value lies in pieces on several pages of the file."""
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        connection.text_factory = bytes
        try:
            tables = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
            for (table,) in connection.execute(tables).fetchall():
                cursor = connection.execute(f'SELECT * FROM "{table.decode()}"')
                names = [column[0] for column in cursor.description]
                self.columns += len(names)
                hit = {
                    name
                    for row in cursor
                    for name, value in zip(names, row, strict=True)
                    if isinstance(value, bytes) and self._is_in(value)
                }
                self.places += [f"{path}, {table.decode()}.{name}" for name in sorted(hit)]
        finally:
            connection.close()


def plant(word: str, folder: Path) -> dict[str, bytes]:
    """Write the word as careless programs would, one file for each way; return name and bytes."""
    folder.mkdir()
    plain = word.encode()
    ways = {
        "plain.log": b"prompt: " + plain + b"\n",
        "wide.bin": word.encode("utf-16-le"),
        "hex.txt": plain.hex().encode(),
        "base64-0.txt": base64.b64encode(b"" + plain + b" said somebody"),
        "base64-1.txt": base64.b64encode(b"x" + plain + b" said somebody"),
        "base64-2.txt": base64.b64encode(b"xy" + plain + b" said somebody"),
        "old.log.gz": gzip.compress(b"prompt: " + plain),
        "across-chunks.bin": b"\0" * (CHUNK_BYTES - len(plain) // 2) + plain,
    }
    for name, data in ways.items():
        (folder / name).write_bytes(data)
    connection = sqlite3.connect(folder / "rows.sqlite")
    with connection:
        connection.execute("CREATE TABLE kept (id INTEGER, note TEXT)")
        long = "y" * 10_000
        connection.execute("INSERT INTO kept VALUES (1, ?)", (f"{long}{word}{long}",))
    connection.close()
    return {**ways, "rows.sqlite": b""}


def _inner_base64(plain: bytes, shift: int) -> bytes:
    """Return the base64 of the word's bytes that other bytes beside it leave alone."""
    skipped = (3 - shift) % 3
    inner = plain[skipped:]
    return base64.b64encode(inner[: len(inner) // 3 * 3])


def _files(roots: Iterable[Path]) -> Iterator[Path]:
    for root in roots:
        if root.is_file():
            yield root
        for folder, _, names in os.walk(root, followlinks=True):
            for name in sorted(names):
                path = Path(folder) / name
                if path.is_file():
                    yield path

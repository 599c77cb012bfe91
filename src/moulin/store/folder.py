"""The bytes of tenants' objects: one file per object in a folder that only this user may read.

A file has its object's id for a name, so that deleting an object deletes its bytes, whoever else
stored the same; it appears whole or not at all. It never knows whose an object is.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from moulin.domain.errors import DiskFull, NotFound, StoreUnavailable

_NAME: Final = re.compile(r"[a-z]{2,8}_[0-9A-Z]{26}")
PART: Final = ".part"
PIECE_BYTES: Final = 1 << 20


class Upload:
    """Bytes on their way in; `close` makes them an object's, `drop` forgets them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}{PART}")
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        try:
            descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as cause:
            raise _failed("store an object", cause) from cause
        self._file = os.fdopen(descriptor, "wb", buffering=0)

    def write(self, data: bytes) -> None:
        """Add bytes. Raises `DiskFull` and `StoreUnavailable`."""
        try:
            written = self._file.write(data)
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError as cause:
            raise _failed("store an object", cause) from cause
        self._digest.update(data)
        self.size_bytes += len(data)

    def sha256(self) -> str:
        """Return the SHA-256 of what came so far, in hexadecimal."""
        return self._digest.hexdigest()

    def close(self) -> str:
        """Put the file in place, durable, and return its SHA-256 in hexadecimal."""
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.replace(self._path)
        except OSError as cause:
            raise _failed("store an object", cause) from cause
        return self._digest.hexdigest()

    def drop(self) -> None:
        """Forget what came so far."""
        self._file.close()
        self._part.unlink(missing_ok=True)


class ObjectFolder:
    """Every object's file under one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def begin(self, name: str) -> Upload:
        """Start to take an object's bytes. Raises `DiskFull` and `StoreUnavailable`."""
        return Upload(self.path(name))

    def put(self, name: str, pieces: Iterable[bytes]) -> tuple[int, str]:
        """Store an object whole; return its size in bytes and SHA-256. Raises as `Upload` does."""
        upload = self.begin(name)
        try:
            for piece in pieces:
                upload.write(piece)
            return upload.size_bytes, upload.close()
        except BaseException:
            upload.drop()
            raise

    def path(self, name: str) -> Path:
        """Return where an object's file is, or would be; raises `NotFound` for what is no id."""
        if not _NAME.fullmatch(name):
            raise NotFound(f"find object {name[:60]!r}: that is no id")
        return self._folder / name

    def read(self, name: str) -> Iterator[bytes]:
        """Yield an object's bytes, a mebibyte at a time; raises `NotFound` before the first."""
        try:
            with self.path(name).open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    yield piece
        except FileNotFoundError:
            raise NotFound(f"read object {name}: its bytes are gone") from None

    def delete(self, name: str) -> None:
        """Delete an object's bytes; what is not there is deleted already."""
        self.path(name).unlink(missing_ok=True)

    def names(self, before_s: float) -> tuple[str, ...]:
        """Return the files that were last written before a time in seconds since 1970, by name.

        Parts of uploads that never ended are among them.
        """
        found = [(entry.name, entry.stat()) for entry in os.scandir(self._folder)]
        return tuple(sorted(name for name, stat in found if stat.st_mtime < before_s))

    def sweep(self, keep: frozenset[str], before_s: float) -> int:
        """Delete old files that are none of `keep`; return how many."""
        gone = [name for name in self.names(before_s) if name not in keep]
        for name in gone:
            (self._folder / name).unlink(missing_ok=True)
        return len(gone)


def _failed(doing: str, cause: OSError) -> DiskFull | StoreUnavailable:
    error = DiskFull if cause.errno == 28 else StoreUnavailable
    return error(f"{doing}: {cause.strerror}", hint="the operator must make room")

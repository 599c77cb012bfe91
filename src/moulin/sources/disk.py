"""Small disk duties every model source shares: digests with progress, durable writes, full disks."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from moulin.domain.errors import DiskFull
from moulin.domain.model import Progress

CHUNK_BYTES: Final = 1 << 20
# EFBIG: a file size limit (ulimit -f) stops a write just as a full disk does.
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

Report = Callable[[Progress], None]


def report_nothing(_: Progress) -> None:
    """Take progress and say nothing of it."""


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turn the operating system's word for a full disk into Moulin's.

    Raises `DiskFull`; what was written so far stays, so that the next try continues there.
    """
    try:
        yield
    except OSError as cause:
        if cause.errno not in _FULL:
            raise
        raise DiskFull(
            f"write {path}: the disk is full",
            hint=f"free some space on {path.parent} and try again; the download continues",
            details={"path": str(path)},
        ) from cause


def check_room(directory: Path, needed_bytes: int) -> None:
    """Refuse before the first byte what cannot fit.

    Raises `DiskFull` with both numbers.
    """
    found = os.statvfs(directory)
    free_bytes = found.f_bavail * found.f_frsize
    if needed_bytes > free_bytes:
        raise DiskFull(
            f"fetch a model into {directory}: {needed_bytes} bytes are needed, {free_bytes} free",
            hint="free some space or choose another data directory with --data",
            details={"needed_bytes": needed_bytes, "free_bytes": free_bytes},
        )


def digest_of(path: Path, report: Report = report_nothing) -> str:
    """Return the SHA-256 of a file in hexadecimal. Cost: one read of the file."""
    digest = hashlib.sha256()
    total = path.stat().st_size
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            report(Progress(stage="verifying", bytes_done=done, bytes_total=total))
    return digest.hexdigest()


def size_or_zero(path: Path) -> int:
    """Return the size of a file, 0 when there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def make_durable(path: Path) -> None:
    """Wait until the file's bytes and its name are on the disk."""
    for target, flags in ((path, os.O_RDONLY), (path.parent, os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(target, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

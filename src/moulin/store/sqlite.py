"""SQLite: one file, one writing process, readers beside it (write-ahead log, FULL).

The lead is an advisory lock on a file beside the database; it ends with the process that holds
it, however that ends. Reference: https://www.sqlite.org/wal.html and /rescode.html.
"""

import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL

from moulin.domain.errors import (
    AlreadyExists,
    DiskFull,
    InvalidRequest,
    MoulinError,
    StoreCorrupt,
    StoreUnavailable,
)
from moulin.store.backend import DriverConnection
from moulin.store.rows import RESTORE_HINT
from moulin.store.statements import compiled

BUSY_TIMEOUT_MS: Final = 5_000
BUSY_PAUSE_S: Final = 0.01
MIGRATION_WAIT_S: Final = 30
READERS: Final = 4  # kept open; each may cache 2 MB of pages
READERS_MORE: Final = 28  # opened for a moment when more threads read at once
_FREE_BYTES_MIN: Final = 1 << 16  # below this an I/O error is told as what it is: no room


class SqliteBackend:
    """A database file at `path`, whose folder exists."""

    driver_error: type[Exception] = sqlite3.Error
    begin = "BEGIN IMMEDIATE"
    name = "sqlite"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lead: int | None = None
        _create_private(path)
        self.engine = create_engine(
            URL.create("sqlite", database=str(path)),
            isolation_level="AUTOCOMMIT",
            pool_size=READERS,
            max_overflow=READERS_MORE,
            connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_MS / 1000},
        )
        event.listen(self.engine, "connect", _set_up)
        self.statements = compiled(self.engine.dialect)

    def open_writer(self) -> DriverConnection:
        """Return a connection that is not of the readers' pool."""
        pooled = self.engine.raw_connection()
        writer = pooled.driver_connection
        pooled.detach()
        return writer

    def take_lead(self, writer: DriverConnection) -> bool:
        """Lock `PATH.lead`."""
        if self._lead is None:
            self._lead = _try_lock(self._path.with_name(self._path.name + ".lead"))
        return self._lead is not None

    def release_lead(self) -> None:
        """Unlock it."""
        if self._lead is not None:
            os.close(self._lead)
            self._lead = None

    def roll_back(self, writer: DriverConnection) -> None:
        """End the transaction; SQLite ends some by itself, a full disk's among them."""
        if writer.in_transaction:
            writer.execute("ROLLBACK")

    def is_lost(self, writer: DriverConnection) -> bool:
        """Return False: a file does not hang up."""
        return False

    @contextmanager
    def migrating(self) -> Iterator[None]:
        """Lock `PATH.migrate`, waiting for another process that has it.

        Raises `StoreUnavailable` when that one does not end.
        """
        path = self._path.with_name(self._path.name + ".migrate")
        deadline_s = time.monotonic() + MIGRATION_WAIT_S
        while (held := _try_lock(path)) is None:
            if time.monotonic() > deadline_s:
                raise StoreUnavailable(
                    f"open {self._path}: another process is changing its schema",
                    hint="wait until it is done, then start again",
                )
            time.sleep(0.05)
        try:
            yield
        finally:
            os.close(held)

    def translate(self, error: BaseException, doing: str) -> MoulinError:
        """Tell a full disk, a damaged file and a passing trouble apart by SQLite's result code."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        what = f"{doing} in {self._path}: {error}"
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and self._is_full()):
            return DiskFull(what, hint=f"make room on the disk of {self._path.parent}")
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return StoreCorrupt(what, hint=RESTORE_HINT)
        if isinstance(error, (OverflowError, UnicodeError)):
            return InvalidRequest(what, hint="text must be valid Unicode, times fit 64 bits")
        if code == sqlite3.SQLITE_CONSTRAINT:
            return AlreadyExists(what, hint="entries and leaves are written once")
        return StoreUnavailable(what, hint="nothing was written; check the disk and permissions")

    def _is_full(self) -> bool:
        try:
            room = os.statvfs(self._path.parent)
        except OSError:
            return False
        return room.f_bavail * room.f_frsize < _FREE_BYTES_MIN


def _set_up(connection: Any, _record: object) -> None:
    """Make a new connection durable and strict."""
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    mode = _write_ahead(cursor)
    if mode != "wal":
        raise StoreUnavailable(
            f"open the store: its file system gives journal mode {mode!r}, not 'wal'",
            hint="put the data directory on a local disk, or use PostgreSQL",
        )
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _write_ahead(cursor: Any) -> str:
    """Return the journal mode after asking for the write-ahead log.

    SQLite waits for nobody in this, though another process may be opening the same new file.
    """
    until_s = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            return str(cursor.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() >= until_s:
                raise
            time.sleep(BUSY_PAUSE_S)


def _create_private(path: Path) -> None:
    """Create the file for its owner alone; SQLite gives its companions the same mode."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise _unopened(path, error) from error


def _try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the file's lock, or None when another one does."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unopened(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise _unopened(path, error) from error
    return descriptor


def _unopened(path: Path, error: OSError) -> MoulinError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"open {path}: {error.strerror}", hint="make room on its disk")
    return StoreUnavailable(
        f"open {path}: {error.strerror}", hint="the folder must exist and be writable"
    )

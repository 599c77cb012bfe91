"""PostgreSQL: the same tables on a server, several control planes, one of them leading.

The lead is a session's advisory lock; it ends with the session. A server that gives no answer is
`StoreUnavailable`, never evidence of anything else. Reference: PostgreSQL manual, "Advisory
Locks" and appendix A, "PostgreSQL Error Codes".
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import create_engine
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

CONNECT_TIMEOUT_S: Final = 5
MIGRATION_WAIT_S: Final = 30
READERS: Final = 4
READERS_MORE: Final = 12  # servers allow 100 sessions by default

# A former leader that hangs inside a transaction loses its session, and with it the row's lock.
_WRITER_SETTINGS: Final = (
    "SET idle_in_transaction_session_timeout = '10s'",
    "SET lock_timeout = '15s'",
    (
        "SELECT set_config('synchronous_commit', 'on', false)"
        " WHERE current_setting('synchronous_commit') = 'off'"
    ),
)
_NO_TRANSACTION: Final = (TransactionStatus.IDLE, TransactionStatus.UNKNOWN)

# One lead per schema of a database.
_LEAD_KEY: Final = "hashtextextended('moulin lead ' || current_schema(), 0)"
_MIGRATION_KEY: Final = "hashtextextended('moulin migration ' || current_schema(), 0)"


class PostgresBackend:
    """A database by URL; `connect_timeout` and other libpq parameters may stand in its query."""

    driver_error: type[Exception] = psycopg.Error
    begin = "BEGIN"
    name = "postgresql"

    def __init__(self, url: URL) -> None:
        self._shown = url.render_as_string(hide_password=True)
        defaults = {"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "moulin"}
        self.engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            isolation_level="AUTOCOMMIT",
            paramstyle="format",
            pool_size=READERS,
            max_overflow=READERS_MORE,
            pool_pre_ping=True,
            connect_args={key: each for key, each in defaults.items() if key not in url.query},
        )
        self.statements = compiled(self.engine.dialect)

    def open_writer(self) -> DriverConnection:
        """Return a session that is not of the readers' pool."""
        pooled = self.engine.raw_connection()
        writer: Any = pooled.driver_connection
        pooled.detach()
        for setting in _WRITER_SETTINGS:
            writer.execute(setting)
        return writer

    def take_lead(self, writer: DriverConnection) -> bool:
        """Take the schema's advisory lock; a session that has it may take it again."""
        return bool(writer.execute(f"SELECT pg_try_advisory_lock({_LEAD_KEY})").fetchone()[0])

    def release_lead(self) -> None:
        """Do nothing: the lock went with the writer's session."""

    def roll_back(self, writer: DriverConnection) -> None:
        """End the transaction."""
        if writer.info.transaction_status not in _NO_TRANSACTION:
            writer.execute("ROLLBACK")

    def is_lost(self, writer: DriverConnection) -> bool:
        """Return whether the session is over."""
        return bool(writer.closed)

    @contextmanager
    def migrating(self) -> Iterator[None]:
        """Hold the schema's migration lock, waiting for another process that has it.

        A process that does not end in time is told as the server's error 55P03.
        """
        connection = self.engine.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute(f"SET lock_timeout = '{MIGRATION_WAIT_S}s'")
            cursor.execute(f"SELECT pg_advisory_lock({_MIGRATION_KEY})")
            try:
                yield
            finally:
                cursor.execute(f"SELECT pg_advisory_unlock({_MIGRATION_KEY})")
                cursor.execute("RESET lock_timeout")
        finally:
            connection.close()

    def translate(self, error: BaseException, doing: str) -> MoulinError:
        """Tell full disk, damage, misuse and outages apart by SQLSTATE."""
        state = getattr(error, "sqlstate", None) or ""
        what = f"{doing} in {self._shown}: {str(error).strip()}"
        if state == "53100":
            return DiskFull(what, hint="make room on the database server's disk")
        if state in ("XX001", "XX002"):
            return StoreCorrupt(what, hint=RESTORE_HINT)
        if state.startswith("23"):
            return AlreadyExists(what, hint="entries and leaves are written once")
        if isinstance(error, (psycopg.DataError, OverflowError, UnicodeError)):
            return InvalidRequest(what, hint="text must not hold NUL, times must fit 64 bits")
        return StoreUnavailable(what, hint="check that the server runs and accepts this user")

"""The store on a database: one writing connection that leads, and reads beside it.

A commit is one transaction whose first statement compares and moves the only row of `meta`: where
its epoch or the log's end is not what this process knows, nothing is written. So a former leader
is fenced even when it never learnt that it lost the lead. It never decides what is written.
"""

import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Final, NoReturn, Self

from sqlalchemy.exc import SQLAlchemyError

from moulin.domain.errors import MoulinError, StaleGeneration, StoreCorrupt, StoreUnavailable
from moulin.ports.store import Batch
from moulin.store.backend import Backend, DriverConnection, DriverCursor
from moulin.store.reads import SqlReads
from moulin.store.rows import RESTORE_HINT, RowGroup, batch_rows, integer_of
from moulin.store.statements import JOINABLE, joined, portions
from moulin.store.tallies import AccountTotal, Advance, Tallies, advance, log_gap, settle

# How long the lead is asked for again that a connection of our own may still have, and how often.
FORMER_S: Final = 2.0
FORMER_PERIOD_S: Final = 0.05
# What a driver says of values that no column can hold.
_UNFIT: Final = (OverflowError, UnicodeEncodeError)
# From one shard's name to the next, and its last leaf: GROUP BY would read every leaf.
_LEAF_COUNTS: Final = """
    WITH RECURSIVE names(origin) AS (
        SELECT min(origin) FROM leaves UNION ALL
        SELECT (SELECT min(origin) FROM leaves WHERE origin > names.origin) FROM names
        WHERE names.origin IS NOT NULL)
    SELECT origin, (SELECT max(leaf_index) + 1 FROM leaves WHERE leaves.origin = names.origin)
    FROM names WHERE origin IS NOT NULL
"""


class SqlStore(SqlReads):
    """A `Store` on SQLite or PostgreSQL. Writes come from one thread, reads from any."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._lock = threading.Lock()
        self._writer: DriverConnection = None
        self._epoch = 0
        self._tallies = Tallies()
        self._commits = 0

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close it."""
        self.close()

    def open_epoch(self) -> int:
        """Take the lead; see `Store.open_epoch`. Cost: one pass over an index of the log."""
        with self._lock:
            try:
                writer = self._leading_writer()
                writer.execute(self._backend.begin)
                self._epoch, self._commits = self._take_epoch(writer)
                self._tallies = self._read_tallies(writer)
                writer.execute("COMMIT")
            except BaseException as error:  # noqa: BLE001 - `_tell` raises it again
                self._give_up_lead()
                self._tell(error, "take the lead")
            return self._epoch

    def commit(self, batch: Batch) -> None:
        """Write the batch; see `Store.commit`."""
        with self._lock:
            self._check_epoch(batch)
            change = advance(self._tallies, batch)
            groups = batch_rows(batch)
            self._write(batch.epoch, change, groups)
            self._tallies = settle(self._tallies, change)
            self._commits += 1

    def close(self) -> None:
        """Release the lead and every connection."""
        with self._lock:
            self._give_up_lead()
        self._backend.engine.dispose()

    def _write(self, epoch: int, change: Advance, groups: Sequence[RowGroup]) -> None:
        try:
            writer = self._leading_writer()
            writer.execute(self._backend.begin)
            self._advance(writer, epoch, change)
            cursor = writer.cursor()
            for group in groups:
                self._write_rows(cursor, group)
            if change.accounts:
                cursor.executemany(self._backend.statements.accounts, _account_rows(change))
        except BaseException as error:  # noqa: BLE001 - `_tell` raises it again
            self._roll_back()
            self._tell(error, "commit")
        try:
            writer.execute("COMMIT")
        except self._backend.driver_error as error:
            self._after_failed_commit(writer, error)
        except BaseException:
            self._give_up_lead()  # an interrupt: it may be written, so the log must tell
            raise

    def _write_rows(self, cursor: DriverCursor, group: RowGroup) -> None:
        """Write a table's rows, many to a statement where their keys differ.

        The driver gives up the interpreter at every statement, and a busy API thread is slow to
        give it back: a statement a row would make a commit wait as often as it has rows.
        """
        statement = self._backend.statements.rows[group.statement]
        if group.statement not in JOINABLE:
            cursor.executemany(statement, group.rows)
            return
        for start, size in portions(len(group.rows)):
            rows = group.rows[start : start + size]
            cursor.execute(joined(statement, size), [value for row in rows for value in row])

    def _advance(self, writer: DriverConnection, epoch: int, change: Advance) -> None:
        """Move the end of the log, or say why it cannot be moved."""
        statements = self._backend.statements
        moved = writer.execute(statements.advance, (change.after, epoch, change.before)).rowcount
        if moved == 1:
            return
        found_epoch, holder, last_sequence, _ = self._meta(
            writer, self._backend.statements.read_meta
        )
        if found_epoch != epoch:
            raise _stale(epoch, found_epoch, holder)
        raise log_gap(last_sequence + 1, change.before + 1)

    def _after_failed_commit(self, writer: DriverConnection, error: Exception) -> None:
        """Return if the transaction was written all the same, else raise.

        A database that answers has rolled back. One that hung up may have written: a new session
        waits for the old one's row lock and then reads the number of commits.
        """
        told = self._backend.translate(error, "commit")
        if not self._backend.is_lost(writer):
            self._roll_back()
            raise told from error
        self._drop_writer()
        try:
            commits = self._commits_after_reconnect()
        except (MoulinError, self._backend.driver_error) as again:
            self._give_up_lead()
            raise StoreUnavailable(
                f"{told.message}; whether it was written is not known yet",
                hint="take the lead again: the log will tell",
                details={"outcome": "unknown"},
            ) from again
        if commits == self._commits:
            raise told from error

    def _commits_after_reconnect(self) -> int:
        writer = self._open_writer()
        try:
            writer.execute(self._backend.begin)
            epoch, holder, _, commits = self._meta(writer, self._backend.statements.lock_meta)
            writer.execute("ROLLBACK")
        finally:
            writer.close()
        if epoch != self._epoch:
            raise _stale(self._epoch, epoch, holder)
        return commits

    def _leading_writer(self) -> DriverConnection:
        """Return the writing connection, made again if it was lost, with the lead."""
        if self._writer is not None:
            return self._writer
        writer = self._open_writer()
        if self._leads(writer):
            self._writer = writer
            return writer
        epoch, holder, _, _ = self._meta(writer, self._backend.statements.read_meta)
        writer.close()
        if self._epoch and epoch != self._epoch:
            raise _stale(self._epoch, epoch, holder)
        raise StoreUnavailable(
            f"another process leads: {holder or 'unknown'} with epoch {epoch}",
            hint="stop that one first; it lets go of the lead when it ends",
            details={"holder": holder, "epoch": epoch},
        )

    def _leads(self, writer: DriverConnection) -> bool:
        """Say whether this connection has the lead now.

        A server may need a moment to notice that our last one is gone; nobody else came meanwhile.
        """
        deadline_s = time.monotonic() + FORMER_S
        while not self._backend.take_lead(writer):
            epoch = self._meta(writer, self._backend.statements.read_meta)[0]
            if not self._epoch or epoch != self._epoch or time.monotonic() >= deadline_s:
                return False
            time.sleep(FORMER_PERIOD_S)
        return True

    def _take_epoch(self, writer: DriverConnection) -> tuple[int, int]:
        """Count up the epoch; return it and the number of commits so far."""
        writer.execute(
            self._backend.statements.take_epoch, (f"{socket.gethostname()} pid {os.getpid()}",)
        )
        epoch, _, _, commits = self._meta(writer, self._backend.statements.read_meta)
        return epoch, commits

    def _read_tallies(self, writer: DriverConnection) -> Tallies:
        _, _, last_sequence, _ = self._meta(writer, self._backend.statements.read_meta)
        count, last = writer.execute("SELECT count(*), max(sequence) FROM events").fetchone()
        if count != last_sequence or (last or 0) != last_sequence:
            raise StoreCorrupt(
                f"the log should end at event {last_sequence}; it has {count} events and the last "
                f"is {last or 0}",
                hint=RESTORE_HINT,
                details={"expected": last_sequence, "count": count, "last": last or 0},
            )
        totals = writer.execute("SELECT project, account, organisation, total_neur FROM accounts")
        counts = writer.execute(_LEAF_COUNTS)
        return Tallies(
            last_sequence=last_sequence,
            accounts={
                (project, account): AccountTotal(
                    organisation=organisation, total_neur=integer_of(total, f"account {account}")
                )
                for project, account, organisation, total in totals.fetchall()
            },
            leaf_counts=dict(counts.fetchall()),
        )

    def _meta(self, writer: DriverConnection, statement: str) -> tuple[int, str, int, int]:
        """Return epoch, holder, last sequence and number of commits."""
        row: tuple[int, str, int, int] | None = writer.execute(statement).fetchone()
        if row is None:
            raise StoreCorrupt("read the end of the log: its row is missing", hint=RESTORE_HINT)
        return row

    def _check_epoch(self, batch: Batch) -> None:
        if not self._epoch:
            raise StaleGeneration(
                f"commit under epoch {batch.epoch}: this store does not lead",
                hint="take the lead first, and read the log again before deciding anything",
            )
        if batch.epoch != self._epoch:
            raise _stale(batch.epoch, self._epoch, "this process")

    def _open_writer(self) -> DriverConnection:
        try:
            return self._backend.open_writer()
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            raise self._backend.translate(cause, "connect") from error
        except self._backend.driver_error as error:
            raise self._backend.translate(error, "connect") from error

    def _roll_back(self) -> None:
        """End the transaction; a connection that cannot even do that is dropped."""
        if self._writer is None:
            return
        try:
            self._backend.roll_back(self._writer)
        except self._backend.driver_error:
            self._drop_writer()
            return
        if self._backend.is_lost(self._writer):
            self._drop_writer()

    def _drop_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _give_up_lead(self) -> None:
        self._epoch = 0
        self._roll_back()
        self._drop_writer()
        self._backend.release_lead()

    def _tell(self, error: BaseException, doing: str) -> NoReturn:
        """Raise Moulin's own error for a driver's, any other as it is."""
        if isinstance(error, (self._backend.driver_error, *_UNFIT)):
            raise self._backend.translate(error, doing) from error
        raise error


def _account_rows(change: Advance) -> list[tuple[str, str, str, str]]:
    return [
        (project, account, each.organisation, str(each.total_neur))
        for (project, account), each in change.accounts.items()
    ]


def _stale(epoch: int, found: int, holder: str) -> StaleGeneration:
    return StaleGeneration(
        f"commit under epoch {epoch}: the lead is with epoch {found} ({holder})",
        hint="this process must stop or take the lead again",
        details={"epoch": epoch, "found": found},
    )

"""Reads of committed rows, from any thread, beside the writer.

Nothing here writes. Long reads go page by page, so that no reader holds the log's past in the way
of a checkpoint.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias, TypeVar

from sqlalchemy import Column, Connection, Select, func, select, tuple_
from sqlalchemy.exc import SQLAlchemyError

from moulin.domain.errors import StoreUnavailable
from moulin.domain.events import Event
from moulin.domain.principal import ApiKey
from moulin.domain.usage import Entry
from moulin.domain.views import (
    DeclaredView,
    IdempotencyRecord,
    NodeIntervalView,
    ReceiptView,
    WorkloadView,
)
from moulin.ports.store import Checkpoint, WorkloadFilter
from moulin.store import schema
from moulin.store.backend import Backend
from moulin.store.rows import entry_of, event_of, integer_of, label_mark, value_of
from moulin.store.tallies import leaf_gap, log_gap

Query: TypeAlias = Select[*tuple[Any, ...]]
T = TypeVar("T")

PAGE_EVENTS: Final = 2_000


class SqlReads:
    """The reading half of the store."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def last_sequence(self) -> int:
        """Return the sequence of the last event, 0 for an empty log."""
        return int(self._all(select(schema.meta.c.last_sequence))[0][0])

    def events(self, after: int, limit: int = 0, project: str = "") -> Iterator[Event]:
        """Yield events after a sequence, in pages; see `Store.events`."""
        left = limit or -1
        while left:
            page = self._all(_events_page(after, left, project))
            for row in page:
                if not project and row[0] != after + 1:
                    raise log_gap(after + 1, row[0])
                yield event_of(row)
                after = row[0]
            if len(page) < PAGE_EVENTS:
                return
            left = left - len(page) if limit else -1

    def workload(self, workload: str) -> WorkloadView | None:
        """Return one workload's row."""
        table = schema.workloads.c
        return self._value(WorkloadView, select(table.id, table.body).where(table.id == workload))

    def workloads(self, wanted: WorkloadFilter) -> Sequence[WorkloadView]:
        """Return rows newest first: by time of submission, then id."""
        rows = self._all(_workloads_page(wanted))
        return [value_of(WorkloadView, body, name) for name, body in rows]

    def declared(self) -> Sequence[DeclaredView]:
        """Return every declared object, by kind and name."""
        table = schema.declared.c
        rows = self._all(select(table.name, table.body).order_by(table.kind, table.name))
        return [value_of(DeclaredView, body, name) for name, body in rows]

    def keys(self, project: str = "") -> Sequence[ApiKey]:
        """Return keys by id."""
        table = schema.keys.c
        query = _of(select(table.id, table.body).order_by(table.id), table.project, project)
        return [value_of(ApiKey, body, name) for name, body in self._all(query)]

    def receipt(self, receipt: str) -> ReceiptView | None:
        """Return one receipt by its id."""
        table = schema.receipts.c
        return self._value(ReceiptView, select(table.id, table.body).where(table.id == receipt))

    def receipts(
        self, project: str = "", workload: str = "", after: str = "", limit: int = 100
    ) -> Sequence[ReceiptView]:
        """Return receipts in order of issue; an unknown `after` is followed by nothing."""
        table = schema.receipts.c
        query: Query = select(table.id, table.body).order_by(table.position).limit(limit)
        query = _of(_of(query, table.project, project), table.workload, workload)
        if after:
            known = select(table.position).where(table.id == after).scalar_subquery()
            query = query.where(table.position > known)
        return [value_of(ReceiptView, body, name) for name, body in self._all(query)]

    def entries(self, project: str = "", after: str = "", limit: int = 1000) -> Sequence[Entry]:
        """Return ledger entries in order of posting; an unknown `after` is followed by nothing."""
        table = schema.entries.c
        query: Query = select(table.id, table.at_ns, table.organisation, table.project, table.cause)
        query = query.add_columns(table.labels).order_by(table.position).limit(limit)
        query = _of(query, table.project, project)
        if after:
            known = select(table.position).where(table.id == after).scalar_subquery()
            query = query.where(table.position > known)
        rows = self._all(query)
        postings = self._postings(query)
        return [entry_of(row, postings.get(row[0], [])) for row in rows]

    def _postings(self, entries: Query) -> dict[str, list[Sequence[Any]]]:
        table = schema.postings.c
        wanted = entries.subquery()
        query: Query = select(table.entry, table.account, table.debit_neur, table.credit_neur)
        query = query.join(wanted, wanted.c.id == table.entry).order_by(table.entry, table.line)
        found: dict[str, list[Sequence[Any]]] = {}
        for entry, *posting in self._all(query):
            found.setdefault(entry, []).append(posting)
        return found

    def account_totals(self, project: str = "") -> dict[str, int]:
        """Return debit minus credit per account in n€, as exact Python integers."""
        table = schema.accounts.c
        query: Query = select(table.account, table.total_neur).order_by(
            table.account, table.project
        )
        totals: dict[str, int] = {}
        for account, total in self._all(_of(query, table.project, project)):
            totals[account] = totals.get(account, 0) + integer_of(total, f"account {account}")
        return totals

    def leaves(self, origin: str, start: int, end: int) -> Sequence[bytes]:
        """Return the leaf hashes [start, end) of a shard, fewer when it is shorter.

        Raises `StoreCorrupt` at a hole.
        """
        table = schema.leaves.c
        query: Query = select(table.leaf_index, table.leaf_hash).order_by(table.leaf_index)
        query = query.where(table.origin == origin, table.leaf_index.between(start, end - 1))
        return self._hashes(query, (origin, 0), start)

    def tree_hashes(self, origin: str, level: int, start: int, end: int) -> Sequence[bytes]:
        """Return the kept hashes [start, end) of a level; see `Store.tree_hashes`.

        Raises `StoreCorrupt` at a hole.
        """
        if level == 0:
            return self.leaves(origin, start, end)
        table = schema.tree_nodes.c
        query: Query = select(table.node_index, table.node_hash).order_by(table.node_index)
        query = query.where(table.origin == origin, table.level == level)
        query = query.where(table.node_index.between(start, end - 1))
        return self._hashes(query, (origin, level), start)

    def _hashes(self, query: Query, place: tuple[str, int], start: int) -> list[bytes]:
        origin, level = place
        hashes = []
        for expected, (index, digest) in enumerate(self._all(query), start):
            if index != expected:
                raise leaf_gap(origin, expected, index, level)
            hashes.append(bytes(digest))
        return hashes

    def origins(self) -> Sequence[str]:
        """Return the shards that have a checkpoint, by name. Cost: one look-up for each."""
        table = schema.checkpoints.c
        # Each step jumps to the next name; DISTINCT would read every checkpoint.
        names = select(func.min(table.origin).label("origin")).cte("names", recursive=True)
        following = select(func.min(table.origin)).where(table.origin > names.c.origin)
        names = names.union_all(
            select(following.scalar_subquery()).where(names.c.origin.is_not(None))
        )
        rows = self._all(select(names.c.origin).where(names.c.origin.is_not(None)))
        return sorted(origin for (origin,) in rows)

    def checkpoint(self, origin: str) -> Checkpoint | None:
        """Return the newest checkpoint of a shard."""
        table = schema.checkpoints.c
        query: Query = select(table.origin, table.tree_size, table.note, table.at_ns)
        query = query.where(table.origin == origin).order_by(table.tree_size.desc()).limit(1)
        for of, tree_size, note, at_ns in self._all(query):
            return Checkpoint(origin=of, tree_size=tree_size, note=note, at_ns=at_ns)
        return None

    def intervals(
        self, node: str = "", start_ns: int = 0, limit: int = 1000
    ) -> Sequence[NodeIntervalView]:
        """Return metered intervals that start at `start_ns` or later, in order of start."""
        table = schema.intervals.c
        query: Query = select(table.node, table.body).where(table.start_ns >= start_ns)
        query = query.order_by(table.start_ns, table.node).limit(limit)
        rows = self._all(_of(query, table.node, node))
        return [value_of(NodeIntervalView, body, name) for name, body in rows]

    def idempotency(self, project: str, key: str) -> IdempotencyRecord | None:
        """Return the record of an idempotency key."""
        table = schema.idempotency.c
        query: Query = select(schema.idempotency).where(table.project == project, table.key == key)
        for of, of_key, organisation, body_hash, status, body, created_at_ns in self._all(query):
            return IdempotencyRecord(
                project=of,
                key=of_key,
                organisation=organisation,
                body_hash=body_hash,
                status=status,
                body=body,
                created_at_ns=created_at_ns,
            )
        return None

    def _value(self, kind: type[T], query: Query) -> T | None:
        for name, body in self._all(query):
            return value_of(kind, body, name)
        return None

    def _all(self, query: Query) -> Sequence[Sequence[Any]]:
        with self._reading() as connection:
            return connection.execute(query).fetchall()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self._backend.engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None)
            if cause is None:
                raise StoreUnavailable(
                    f"read the store: {error}", hint="too many reads at once; try again"
                ) from error
            raise self._backend.translate(cause, "read the store") from error


def _of(query: Query, column: Column[Any], value: str) -> Query:
    return query.where(column == value) if value else query


def _events_page(after: int, left: int, project: str) -> Query:
    table = schema.events.c
    query: Query = select(schema.events).where(table.sequence > after).order_by(table.sequence)
    return _of(query, table.project, project).limit(
        min(left, PAGE_EVENTS) if left > 0 else PAGE_EVENTS
    )


def _workloads_page(wanted: WorkloadFilter) -> Query:
    table = schema.workloads.c
    query: Query = select(table.id, table.body).limit(wanted.limit)
    query = query.order_by(table.submitted_at_ns.desc(), table.id.desc())
    query = _of(_of(query, table.project, wanted.project), table.kind, wanted.kind)
    query = _of(query, table.name, wanted.name)
    if wanted.states:
        query = query.where(table.state.in_(wanted.states))
    if wanted.label is not None:
        # `replace` is the one case-sensitive search for plain text that both databases have.
        mark = label_mark(*wanted.label)
        query = query.where(func.replace(table.labels, mark, "") != table.labels)
    if wanted.before:
        known = select(table.submitted_at_ns, table.id).where(table.id == wanted.before)
        query = query.where(tuple_(table.submitted_at_ns, table.id) < known.scalar_subquery())
    return query

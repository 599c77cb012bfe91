"""The statements of a commit, compiled once per dialect from Core expressions to plain SQL.

Compiling is where SQLAlchemy knows the dialects; running goes straight to the driver, because a
commit of few rows would spend most of its time between Core and the driver otherwise.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Dialect,
    Table,
    bindparam,
    delete,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql import ClauseElement

from moulin.store import schema

# Tables whose rows in one batch never share a key, so that many can go in one statement.
JOINABLE: Final = frozenset(
    {"events", "workloads", "receipts", "entries", "postings", "leaves", "nodes", "idempotency"}
)
# Rows in one statement, largest first; the texts are few, so each is prepared once.
PORTIONS: Final = (64, 16, 4)
ONE: Final[ColumnElement[int]] = literal_column("1")  # as text, not as a parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class Statements:
    """SQL text by statement name; parameters are positional.

    `rows` are run with many rows, in the column order of `moulin.store.rows`. `advance` takes
    (last_sequence after, epoch, last_sequence before) and touches one row or none.
    """

    rows: Mapping[str, str]
    accounts: str
    advance: str
    read_meta: str
    lock_meta: str
    take_epoch: str


def portions(count: int) -> Iterator[tuple[int, int]]:
    """Yield (first row, number of rows) of each statement that writes `count` rows, in order.

    >>> list(portions(86))
    [(0, 64), (64, 16), (80, 4), (84, 1), (85, 1)]
    """
    start = 0
    for size in (*PORTIONS, 1):
        while count - start >= size:
            yield start, size
            start += size


@lru_cache(maxsize=256)
def joined(statement: str, count: int) -> str:
    """Return an insert of one row as an insert of `count` rows.

    >>> joined("INSERT INTO t (a) VALUES (?) ON CONFLICT DO NOTHING", 2)
    'INSERT INTO t (a) VALUES (?), (?) ON CONFLICT DO NOTHING'
    """
    head, values, rest = statement.partition(" VALUES (")
    row, closing, tail = rest.partition(")")
    one = f"({row}{closing}"
    return f"{head}{values.removesuffix('(')}{', '.join([one] * count)}{tail}"


def compiled(dialect: Dialect) -> Statements:
    """Return the statements in one dialect's SQL."""
    meta = schema.meta.c
    advance = (
        update(schema.meta)
        .values(last_sequence=bindparam("after"), commits=meta.commits + ONE)
        .where(meta.epoch == bindparam("of_epoch"), meta.last_sequence == bindparam("before"))
    )
    take_epoch = update(schema.meta).values(epoch=meta.epoch + ONE, holder=bindparam("by"))
    read_meta = select(meta.epoch, meta.holder, meta.last_sequence, meta.commits)
    return Statements(
        rows=_row_statements(dialect),
        accounts=_upsert(dialect, schema.accounts, ("organisation", "total_neur")),
        advance=_text(dialect, advance, ["after", "of_epoch", "before"]),
        read_meta=_text(dialect, read_meta, []),
        lock_meta=_text(dialect, read_meta.with_for_update(), []),
        take_epoch=_text(dialect, take_epoch, ["by"]),
    )


def _row_statements(dialect: Dialect) -> dict[str, str]:
    drop = delete(schema.declared).where(
        schema.declared.c.kind == bindparam("of_kind"),
        schema.declared.c.name == bindparam("of_name"),
    )
    return {
        "events": _insert(dialect, schema.events),
        # Who owns a workload, its name and when it came never change, so their indexes rest.
        "workloads": _upsert(dialect, schema.workloads, ("state", "labels", "sequence", "body")),
        "declared.delete": _text(dialect, drop, ["of_kind", "of_name"]),
        "declared": _upsert(
            dialect, schema.declared, ("organisation", "managed_by", "sequence", "body")
        ),
        "keys": _upsert(dialect, schema.keys, ("organisation", "project", "body")),
        "receipts": _upsert(dialect, schema.receipts, ("body",), unique=("id",)),
        "entries": _insert(dialect, schema.entries),
        "postings": _insert(dialect, schema.postings),
        "leaves": _insert(dialect, schema.leaves),
        "nodes": _insert(dialect, schema.tree_nodes),
        "checkpoints": _upsert(dialect, schema.checkpoints, ("note", "at_ns")),
        "intervals": _upsert(dialect, schema.intervals, ("end_ns", "zone", "site", "body")),
        "idempotency": _upsert(
            dialect,
            schema.idempotency,
            ("organisation", "body_hash", "status", "body", "created_at_ns"),
        ),
    }


def _insert(dialect: Dialect, table: Table) -> str:
    names = _given(table)
    return _text(
        dialect, insert(table).values({name: bindparam(name) for name in names}).inline(), names
    )


def _upsert(
    dialect: Dialect, table: Table, changing: Sequence[str], unique: Sequence[str] = ()
) -> str:
    names = _given(table)
    new: Any = (postgresql if dialect.name == "postgresql" else sqlite).insert(table)
    new = new.values({name: bindparam(name) for name in names}).inline()
    key = unique or [column.name for column in table.primary_key]
    statement = new.on_conflict_do_update(
        index_elements=key, set_={name: new.excluded[name] for name in changing}
    )
    return _text(dialect, statement, names)


def _given(table: Table) -> list[str]:
    return [column.name for column in table.columns if column.identity is None]


def _text(dialect: Dialect, statement: ClauseElement, order: Sequence[str]) -> str:
    """Return SQL whose parameters come in `order`; a dialect that wants another is a bug here."""
    made: Any = statement.compile(dialect=dialect)
    found = list(made.positiontup or ())
    if found != list(order):
        raise AssertionError(f"parameters come as {found}, rows as {list(order)}")
    return str(made)

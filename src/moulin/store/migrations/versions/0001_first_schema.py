"""The first schema: the log, the current rows, the ledger and the evidence log.

A migration is a record: it is never edited after a release, and imports nothing of ours.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create every table, and the one row that says where the log ends."""
    _log()
    _current_rows()
    _ledger()
    _evidence()
    op.bulk_insert(
        sa.table(
            "meta",
            *(sa.column(name) for name in ("id", "epoch", "holder", "last_sequence", "commits")),
        ),
        [{"id": 1, "epoch": 0, "holder": "", "last_sequence": 0, "commits": 0}],
    )


def _log() -> None:
    op.create_table(
        "meta",
        sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        _text("holder"),
        sa.Column("last_sequence", sa.BigInteger, nullable=False),
        sa.Column("commits", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("sequence", BIG_KEY, primary_key=True, autoincrement=False),
        sa.Column("schema", sa.Integer, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("at_ns", sa.BigInteger, nullable=False),
        *map(_text, ("kind", "actor", "organisation", "project", "site")),
        sa.Column("causation", sa.BigInteger, nullable=False),
        *map(_text, ("labels", "payload")),
    )
    op.create_index("events_project", "events", ["project", "sequence"])


def _current_rows() -> None:
    op.create_table(
        "workloads",
        _key("id"),
        *map(_text, ("organisation", "project", "kind", "name", "state")),
        sa.Column("submitted_at_ns", sa.BigInteger, nullable=False),
        _text("labels"),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        _text("body"),
    )
    op.create_index("workloads_submitted", "workloads", ["submitted_at_ns", "id"])
    op.create_index("workloads_project", "workloads", ["project", "submitted_at_ns", "id"])
    op.create_index("workloads_name", "workloads", ["project", "name"])
    op.create_index("workloads_organisation", "workloads", ["organisation"])
    op.create_table(
        "declared",
        *map(_key, ("kind", "name")),
        *map(_text, ("organisation", "managed_by")),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        _text("body"),
    )
    op.create_index("declared_organisation", "declared", ["organisation"])
    op.create_table("keys", _key("id"), *map(_text, ("organisation", "project", "body")))
    op.create_index("keys_organisation", "keys", ["organisation"])
    op.create_index("keys_project", "keys", ["project"])
    op.create_table(
        "intervals",
        _key("node"),
        sa.Column("start_ns", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("end_ns", sa.BigInteger, nullable=False),
        *map(_text, ("zone", "site", "body")),
    )
    op.create_index("intervals_start", "intervals", ["start_ns", "node"])
    op.create_table(
        "idempotency",
        *map(_key, ("project", "key")),
        *map(_text, ("organisation", "body_hash")),
        sa.Column("status", sa.Integer, nullable=False),
        _text("body"),
        sa.Column("created_at_ns", sa.BigInteger, nullable=False),
    )
    op.create_index("idempotency_organisation", "idempotency", ["organisation"])


def _ledger() -> None:
    op.create_table(
        "receipts",
        sa.Column("position", BIG_KEY, sa.Identity(), primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        *map(_text, ("organisation", "project", "workload")),
        sa.Column("issued_at_ns", sa.BigInteger, nullable=False),
        _text("body"),
    )
    op.create_index("receipts_organisation", "receipts", ["organisation"])
    op.create_index("receipts_project", "receipts", ["project", "position"])
    op.create_index("receipts_workload", "receipts", ["workload", "position"])
    op.create_table(
        "entries",
        sa.Column("position", BIG_KEY, sa.Identity(), primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("at_ns", sa.BigInteger, nullable=False),
        *map(_text, ("organisation", "project", "cause", "labels")),
    )
    op.create_index("entries_organisation", "entries", ["organisation"])
    op.create_index("entries_project", "entries", ["project", "position"])
    op.create_table(
        "postings",
        sa.Column("entry", sa.Text, sa.ForeignKey("entries.id"), primary_key=True),
        sa.Column("line", sa.Integer, primary_key=True, autoincrement=False),
        *map(_text, ("organisation", "project", "account", "debit_neur", "credit_neur")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "accounts",
        *map(_key, ("project", "account")),
        *map(_text, ("organisation", "total_neur")),
        sqlite_with_rowid=False,
    )
    op.create_index("accounts_organisation", "accounts", ["organisation"])


def _evidence() -> None:
    op.create_table(
        "leaves",
        _key("origin"),
        sa.Column("leaf_index", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("leaf_hash", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "checkpoints",
        _key("origin"),
        sa.Column("tree_size", sa.BigInteger, primary_key=True, autoincrement=False),
        _text("note"),
        sa.Column("at_ns", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def _key(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, primary_key=True)

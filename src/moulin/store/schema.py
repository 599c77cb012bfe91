"""The tables, as SQLAlchemy Core knows them; `migrations` builds them step by step.

Both must agree, and a test compares them. Identity and what is searched or sorted by are columns;
the rest of a row is its value's wire form in `body`, so that a new field with a default needs no
migration. Sums of money are decimal text: SQLite would turn large ones into floats in silence.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
)

HEAD_REVISION: Final = "0002"

metadata = MetaData()

# In SQLite only `INTEGER PRIMARY KEY` is the row's own address; there it holds 64 bits too.
BIG_KEY: Final = BigInteger().with_variant(Integer(), "sqlite")

# One row: who leads and where the log ends. Each commit compares and moves it (see `sql.py`).
meta = Table(
    "meta",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("holder", Text, nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
    Column("commits", BigInteger, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("sequence", BIG_KEY, primary_key=True, autoincrement=False),
    Column("schema", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("organisation", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("site", Text, nullable=False),
    Column("causation", BigInteger, nullable=False),
    Column("labels", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Index("events_project", "project", "sequence"),
)

workloads = Table(
    "workloads",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organisation", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("submitted_at_ns", BigInteger, nullable=False),
    Column("labels", Text, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    Index("workloads_submitted", "submitted_at_ns", "id"),
    Index("workloads_project", "project", "submitted_at_ns", "id"),
    Index("workloads_name", "project", "name"),
    Index("workloads_organisation", "organisation"),
)

declared = Table(
    "declared",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("organisation", Text, nullable=False),
    Column("managed_by", Text, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    Index("declared_organisation", "organisation"),
)

keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organisation", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("body", Text, nullable=False),
    Index("keys_organisation", "organisation"),
    Index("keys_project", "project"),
)

# `position` is the order of issue and of posting; PostgreSQL may leave holes in it, nothing counts.
receipts = Table(
    "receipts",
    metadata,
    Column("position", BIG_KEY, Identity(), primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("organisation", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("workload", Text, nullable=False),
    Column("issued_at_ns", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    Index("receipts_organisation", "organisation"),
    Index("receipts_project", "project", "position"),
    Index("receipts_workload", "workload", "position"),
)

entries = Table(
    "entries",
    metadata,
    Column("position", BIG_KEY, Identity(), primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("at_ns", BigInteger, nullable=False),
    Column("organisation", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("cause", Text, nullable=False),
    Column("labels", Text, nullable=False),
    Index("entries_organisation", "organisation"),
    Index("entries_project", "project", "position"),
)

postings = Table(
    "postings",
    metadata,
    Column("entry", Text, ForeignKey("entries.id"), primary_key=True),
    Column("line", Integer, primary_key=True, autoincrement=False),
    Column("organisation", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("debit_neur", Text, nullable=False),
    Column("credit_neur", Text, nullable=False),
    sqlite_with_rowid=False,
)

accounts = Table(
    "accounts",
    metadata,
    Column("project", Text, primary_key=True),
    Column("account", Text, primary_key=True),
    Column("organisation", Text, nullable=False),
    Column("total_neur", Text, nullable=False),
    Index("accounts_organisation", "organisation"),
    sqlite_with_rowid=False,
)

leaves = Table(
    "leaves",
    metadata,
    Column("origin", Text, primary_key=True),
    Column("leaf_index", BigInteger, primary_key=True, autoincrement=False),
    Column("leaf_hash", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

tree_nodes = Table(
    "tree_nodes",
    metadata,
    Column("origin", Text, primary_key=True),
    Column("level", SmallInteger, primary_key=True, autoincrement=False),
    Column("node_index", BigInteger, primary_key=True, autoincrement=False),
    Column("node_hash", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("origin", Text, primary_key=True),
    Column("tree_size", BigInteger, primary_key=True, autoincrement=False),
    Column("note", Text, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

intervals = Table(
    "intervals",
    metadata,
    Column("node", Text, primary_key=True),
    Column("start_ns", BigInteger, primary_key=True, autoincrement=False),
    Column("end_ns", BigInteger, nullable=False),
    Column("zone", Text, nullable=False),
    Column("site", Text, nullable=False),
    Column("body", Text, nullable=False),
    Index("intervals_start", "start_ns", "node"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("project", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("organisation", Text, nullable=False),
    Column("body_hash", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Index("idempotency_organisation", "organisation"),
)

"""The port of durable truth: an append-only log and the current rows, written together.

One process leads and writes; its epoch is on every write, so that a former leader cannot. Reads
may run beside the writer, from other threads, and see only committed batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One leaf of an evidence shard: the RFC 6962 leaf hash of the committed bytes."""

    origin: str
    index: int
    leaf_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeNode:
    """One inner node of an evidence shard's Merkle tree, kept so that proofs need not make it.

    It covers the leaves [index << level, (index + 1) << level). Which levels are kept is for the
    writer to say.
    """

    origin: str
    level: int
    index: int
    node_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A signed tree head of a shard, as its note text."""

    origin: str
    tree_size: int
    note: str
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredRef:
    """Names a declared object to delete."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Everything one cycle writes, in one transaction: all of it or nothing.

    `events` continue the log without a gap under the current epoch; rows replace older rows of
    the same id.
    """

    epoch: int
    events: tuple[Event, ...] = ()
    workloads: tuple[WorkloadView, ...] = ()
    declared: tuple[DeclaredView, ...] = ()
    undeclared: tuple[DeclaredRef, ...] = ()
    keys: tuple[ApiKey, ...] = ()
    receipts: tuple[ReceiptView, ...] = ()
    entries: tuple[Entry, ...] = ()
    leaves: tuple[Leaf, ...] = ()
    nodes: tuple[TreeNode, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    intervals: tuple[NodeIntervalView, ...] = ()
    idempotency: tuple[IdempotencyRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadFilter:
    """Which workloads to read; empty fields match all. `before` is an id to continue after."""

    project: str = ""
    kind: str = ""
    states: tuple[str, ...] = ()
    name: str = ""
    label: tuple[str, str] | None = None
    before: str = ""
    limit: int = 100


class Store(Protocol):
    """Durable truth."""

    def open_epoch(self) -> int:
        """Take the lead and return the new epoch, higher than any before.

        Raises `StoreUnavailable` when another process leads and `StoreCorrupt` when the log has
        a gap.
        """
        ...

    def commit(self, batch: Batch) -> None:
        """Write the batch; durable when this returns.

        Raises `StaleGeneration` when the epoch is no longer the store's, `StoreCorrupt` when the
        events do not continue the log, `StoreUnavailable` or `DiskFull` when nothing was written.
        """
        ...

    def last_sequence(self) -> int:
        """Return the sequence of the last event, 0 for an empty log."""
        ...

    def events(self, after: int, limit: int = 0, project: str = "") -> Iterator[Event]:
        """Yield events after a sequence in order, at most `limit` (0: all), of one project or all.

        Raises `StoreCorrupt` at a gap (when reading all projects) or an unreadable event.
        """
        ...

    def workload(self, workload: str) -> WorkloadView | None:
        """Return one workload's row."""
        ...

    def workloads(self, wanted: WorkloadFilter) -> Sequence[WorkloadView]:
        """Return rows newest first."""
        ...

    def declared(self) -> Sequence[DeclaredView]:
        """Return every declared object, by kind and name."""
        ...

    def keys(self, project: str = "") -> Sequence[ApiKey]:
        """Return keys by id."""
        ...

    def receipt(self, receipt: str) -> ReceiptView | None:
        """Return one receipt by its id."""
        ...

    def receipts(
        self, project: str = "", workload: str = "", after: str = "", limit: int = 100
    ) -> Sequence[ReceiptView]:
        """Return receipts in order of issue."""
        ...

    def entries(self, project: str = "", after: str = "", limit: int = 1000) -> Sequence[Entry]:
        """Return ledger entries in order of posting."""
        ...

    def account_totals(self, project: str = "") -> dict[str, int]:
        """Return debit minus credit per account in n€, as exact Python integers."""
        ...

    def leaves(self, origin: str, start: int, end: int) -> Sequence[bytes]:
        """Return the leaf hashes [start, end) of a shard."""
        ...

    def tree_hashes(self, origin: str, level: int, start: int, end: int) -> Sequence[bytes]:
        """Return the kept hashes [start, end) of a level of a shard's tree; level 0 is the leaves.

        Fewer come back where the level ends, in order and without a hole: `StoreCorrupt` at one.
        """
        ...

    def origins(self) -> Sequence[str]:
        """Return the shards that have a checkpoint, by name."""
        ...

    def checkpoint(self, origin: str) -> Checkpoint | None:
        """Return the newest checkpoint of a shard."""
        ...

    def intervals(
        self, node: str = "", start_ns: int = 0, limit: int = 1000
    ) -> Sequence[NodeIntervalView]:
        """Return metered intervals in order of start."""
        ...

    def idempotency(self, project: str, key: str) -> IdempotencyRecord | None:
        """Return the record of an idempotency key."""
        ...

    def close(self) -> None:
        """Release the lead and every connection."""
        ...

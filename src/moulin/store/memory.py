"""The store in memory, for simulations and tests: the same promises, faults at every write.

`MemoryDisk` is what survives a crash; a `MemoryStore` is one process's use of it. Values are kept
as they are, nothing is encoded. It never writes a file.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import TypeVar

from moulin.domain.errors import AlreadyExists, StaleGeneration, StoreUnavailable
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
from moulin.ports.store import Batch, Checkpoint, WorkloadFilter
from moulin.store.tallies import Tallies, advance, leaf_gap, log_gap, settle

K = TypeVar("K")
V = TypeVar("V")


class WritePoint(StrEnum):
    """Where a fault can strike: an error raised AFTER means written, but not acknowledged."""

    BEFORE_EPOCH = "before_epoch"
    AFTER_EPOCH = "after_epoch"
    BEFORE_COMMIT = "before_commit"
    AFTER_COMMIT = "after_commit"


Fault = Callable[[WritePoint], None]


@dataclass(slots=True, kw_only=True)
class MemoryDisk:
    """Everything that is durable. `leader` is the store that leads now."""

    epoch: int = 0
    leader: object | None = None
    tallies: Tallies = field(default_factory=Tallies)
    events: list[Event] = field(default_factory=list)
    workloads: dict[str, WorkloadView] = field(default_factory=dict)
    declared: dict[tuple[str, str], DeclaredView] = field(default_factory=dict)
    keys: dict[str, ApiKey] = field(default_factory=dict)
    receipts: dict[str, ReceiptView] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    leaves: dict[str, list[bytes]] = field(default_factory=dict)
    nodes: dict[tuple[str, int, int], bytes] = field(default_factory=dict)
    checkpoints: dict[tuple[str, int], Checkpoint] = field(default_factory=dict)
    intervals: dict[tuple[str, int], NodeIntervalView] = field(default_factory=dict)
    idempotency: dict[tuple[str, str], IdempotencyRecord] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


def no_fault(_point: WritePoint) -> None:
    """Let every write pass."""


class MemoryStore:
    """A `Store` on a `MemoryDisk`. `fault` is called at each write point and may raise.

    An error raised after a write costs the lead: what is stored is then for the log to tell.
    """

    def __init__(self, disk: MemoryDisk | None = None, *, fault: Fault = no_fault) -> None:
        self.disk = disk if disk is not None else MemoryDisk()
        self.fault = fault
        self._epoch = 0

    def open_epoch(self) -> int:
        """Take the lead; see `Store.open_epoch`.

        Raises `StoreUnavailable` when another store leads on this disk.
        """
        with self.disk.lock:
            if self.disk.leader not in (None, self):
                raise StoreUnavailable(
                    f"another process leads, with epoch {self.disk.epoch}",
                    hint="stop that one first; it lets go of the lead when it ends",
                )
            self._check_log()
            self.fault(WritePoint.BEFORE_EPOCH)
            self.disk.leader = self
            self.disk.epoch += 1
            self._epoch = self.disk.epoch
            self._after(WritePoint.AFTER_EPOCH)
            return self._epoch

    def commit(self, batch: Batch) -> None:
        """Write the batch; see `Store.commit`.

        Raises `StaleGeneration` when this store does not lead under the batch's epoch.
        """
        with self.disk.lock:
            if not self._epoch or batch.epoch != self._epoch or self._epoch != self.disk.epoch:
                raise StaleGeneration(
                    f"commit under epoch {batch.epoch}: the lead is with epoch {self.disk.epoch}",
                    hint="this process must stop or take the lead again",
                    details={"epoch": batch.epoch, "found": self.disk.epoch},
                )
            change = advance(self.disk.tallies, batch)
            self._check_entries(batch)
            self.fault(WritePoint.BEFORE_COMMIT)
            self._write(batch)
            self.disk.tallies = settle(self.disk.tallies, change)
            self._after(WritePoint.AFTER_COMMIT)

    def last_sequence(self) -> int:
        """Return the sequence of the last event, 0 for an empty log."""
        with self.disk.lock:
            return self.disk.tallies.last_sequence

    def events(self, after: int, limit: int = 0, project: str = "") -> Iterator[Event]:
        """Yield events after a sequence; see `Store.events`."""
        with self.disk.lock:
            end = len(self.disk.events)
        wanted = (
            self._event(place)
            for place in range(max(after, 0), end)
            if not project or self.disk.events[place].project == project
        )
        return islice(wanted, limit) if limit else wanted

    def workload(self, workload: str) -> WorkloadView | None:
        """Return one workload's row."""
        with self.disk.lock:
            return self.disk.workloads.get(workload)

    def workloads(self, wanted: WorkloadFilter) -> Sequence[WorkloadView]:
        """Return rows newest first: by time of submission, then id."""
        rows = sorted(self._copy(self.disk.workloads), key=_age, reverse=True)
        if wanted.before:
            known = self.disk.workloads.get(wanted.before)
            rows = [] if known is None else [row for row in rows if _age(row) < _age(known)]
        return [row for row in rows if _is_wanted(row, wanted)][: wanted.limit]

    def declared(self) -> Sequence[DeclaredView]:
        """Return every declared object, by kind and name."""
        return sorted(self._copy(self.disk.declared), key=lambda row: (row.kind, row.name))

    def keys(self, project: str = "") -> Sequence[ApiKey]:
        """Return keys by id."""
        rows = sorted(self._copy(self.disk.keys), key=lambda row: row.id)
        return [row for row in rows if project in ("", row.project)]

    def receipt(self, receipt: str) -> ReceiptView | None:
        """Return one receipt by its id."""
        with self.disk.lock:
            return self.disk.receipts.get(receipt)

    def receipts(
        self, project: str = "", workload: str = "", after: str = "", limit: int = 100
    ) -> Sequence[ReceiptView]:
        """Return receipts in order of issue; an unknown `after` is followed by nothing."""
        rows = _following(self._copy(self.disk.receipts), after, lambda row: row.id)
        return [
            row
            for row in rows
            if project in ("", row.project) and workload in ("", row.usage.workload)
        ][:limit]

    def entries(self, project: str = "", after: str = "", limit: int = 1000) -> Sequence[Entry]:
        """Return ledger entries in order of posting; an unknown `after` is followed by nothing."""
        rows = _following(self._copy(self.disk.entries), after, lambda row: row.id)
        return [row for row in rows if project in ("", row.project)][:limit]

    def account_totals(self, project: str = "") -> dict[str, int]:
        """Return debit minus credit per account in n€, as exact Python integers."""
        totals: dict[str, int] = {}
        with self.disk.lock:
            for (of, account), each in sorted(self.disk.tallies.accounts.items()):
                if project in ("", of):
                    totals[account] = totals.get(account, 0) + each.total_neur
        return dict(sorted(totals.items()))

    def leaves(self, origin: str, start: int, end: int) -> Sequence[bytes]:
        """Return the leaf hashes [start, end) of a shard, fewer when it is shorter."""
        with self.disk.lock:
            return self.disk.leaves.get(origin, [])[start:end]

    def tree_hashes(self, origin: str, level: int, start: int, end: int) -> Sequence[bytes]:
        """Return the kept hashes [start, end) of a level; see `Store.tree_hashes`.

        Raises `StoreCorrupt` at a hole.
        """
        if level == 0:
            return self.leaves(origin, start, end)
        hashes: list[bytes] = []
        with self.disk.lock:
            found = [self.disk.nodes.get((origin, level, index)) for index in range(start, end)]
        for index, digest in enumerate(found, start):
            if digest is not None and index != start + len(hashes):
                raise leaf_gap(origin, start + len(hashes), index, level)
            if digest is not None:
                hashes.append(digest)
        return hashes

    def origins(self) -> Sequence[str]:
        """Return the shards that have a checkpoint, by name."""
        return sorted({row.origin for row in self._copy(self.disk.checkpoints)})

    def checkpoint(self, origin: str) -> Checkpoint | None:
        """Return the newest checkpoint of a shard."""
        rows = [row for row in self._copy(self.disk.checkpoints) if row.origin == origin]
        return max(rows, key=lambda row: row.tree_size, default=None)

    def intervals(
        self, node: str = "", start_ns: int = 0, limit: int = 1000
    ) -> Sequence[NodeIntervalView]:
        """Return metered intervals that start at `start_ns` or later, in order of start."""
        rows = sorted(self._copy(self.disk.intervals), key=lambda row: (row.start_ns, row.node))
        return [row for row in rows if node in ("", row.node) and row.start_ns >= start_ns][:limit]

    def idempotency(self, project: str, key: str) -> IdempotencyRecord | None:
        """Return the record of an idempotency key."""
        with self.disk.lock:
            return self.disk.idempotency.get((project, key))

    def close(self) -> None:
        """Release the lead, as the end of a process does."""
        with self.disk.lock:
            self._epoch = 0
            if self.disk.leader is self:
                self.disk.leader = None

    def _write(self, batch: Batch) -> None:
        disk = self.disk
        disk.events.extend(batch.events)
        disk.workloads.update((row.id, row) for row in batch.workloads)
        for gone in batch.undeclared:
            disk.declared.pop((gone.kind, gone.name), None)
        disk.declared.update(((row.kind, row.name), row) for row in batch.declared)
        disk.keys.update((row.id, row) for row in batch.keys)
        disk.receipts.update((row.id, row) for row in batch.receipts)
        disk.entries.update((row.id, row) for row in batch.entries)
        for leaf in batch.leaves:
            disk.leaves.setdefault(leaf.origin, []).append(leaf.leaf_hash)
        disk.nodes.update(
            ((row.origin, row.level, row.index), row.node_hash) for row in batch.nodes
        )
        disk.checkpoints.update(((row.origin, row.tree_size), row) for row in batch.checkpoints)
        disk.intervals.update(((row.node, row.start_ns), row) for row in batch.intervals)
        disk.idempotency.update(((row.project, row.key), row) for row in batch.idempotency)

    def _after(self, point: WritePoint) -> None:
        try:
            self.fault(point)
        except BaseException:
            self.close()
            raise

    def _check_entries(self, batch: Batch) -> None:
        seen = {entry.id for entry in batch.entries}
        nodes = {(node.origin, node.level, node.index) for node in batch.nodes}
        is_twice = len(seen) < len(batch.entries) or len(nodes) < len(batch.nodes)
        if is_twice or seen & self.disk.entries.keys() or nodes & self.disk.nodes.keys():
            raise AlreadyExists(
                "commit: an entry or a tree node of this batch is written already",
                hint="entries and leaves are written once",
            )

    def _check_log(self) -> None:
        for place in range(len(self.disk.events)):
            self._event(place)
        if len(self.disk.events) != self.disk.tallies.last_sequence:
            raise log_gap(self.disk.tallies.last_sequence, len(self.disk.events))

    def _event(self, place: int) -> Event:
        event = self.disk.events[place]
        if event.sequence != place + 1:
            raise log_gap(place + 1, event.sequence)
        return event

    def _copy(self, rows: Mapping[K, V]) -> list[V]:
        with self.disk.lock:
            return list(rows.values())


def _age(row: WorkloadView) -> tuple[int, str]:
    return (row.submitted_at_ns, row.id)


def _is_wanted(row: WorkloadView, wanted: WorkloadFilter) -> bool:
    if wanted.label is not None:
        name, value = wanted.label
        if row.spec.labels.get(name) != value:
            return False
    return (
        wanted.project in ("", row.project)
        and wanted.kind in ("", row.kind)
        and wanted.name in ("", row.name)
        and (not wanted.states or row.state in wanted.states)
    )


def _following(rows: Iterable[V], after: str, id_of: Callable[[V], str]) -> Iterator[V]:
    found = not after
    for row in rows:
        if found:
            yield row
        found = found or id_of(row) == after

"""What is kept for tenants, folded from the log: stored objects, batches, and how much that is.

Edges read it from other threads: an entry is replaced whole, never changed.
"""

from dataclasses import dataclass, field, replace

from moulin.domain.events import (
    BatchCancelled,
    BatchEnded,
    BatchOpened,
    Event,
    ObjectDeleted,
    ObjectStored,
)
from moulin.domain.objects import BatchJob, BatchState, StoredKind, StoredObject


@dataclass(slots=True)
class Shelf:
    """Stored objects and batches by id, and the bytes each project keeps.

    `bundles` maps a project and a digest to the latest object with these bytes.
    """

    stored: dict[str, StoredObject] = field(default_factory=dict)
    batches: dict[str, BatchJob] = field(default_factory=dict)
    bytes_by_project: dict[str, int] = field(default_factory=dict)
    bundles: dict[tuple[str, str], str] = field(default_factory=dict)

    def bundle(self, project: str, digest: str) -> StoredObject | None:
        """Return a project's bundle of this digest."""
        return self.stored.get(self.bundles.get((project, digest), ""))

    def used_bytes(self, project: str) -> int:
        """Return what a project keeps now."""
        return self.bytes_by_project.get(project, 0)


def fold_shelf(shelf: Shelf, event: Event) -> None:
    """Apply one event in place."""
    match event.payload:
        case ObjectStored(object=stored):
            shelf.stored[stored.id] = stored
            _count(shelf, stored, stored.size_bytes)
            if stored.kind is StoredKind.BUNDLE:
                shelf.bundles[stored.project, stored.sha256] = stored.id
        case ObjectDeleted(object=name):
            gone = shelf.stored.pop(name, None)
            if gone is not None:
                _count(shelf, gone, -gone.size_bytes)
                if shelf.bundles.get((gone.project, gone.sha256)) == name:
                    del shelf.bundles[gone.project, gone.sha256]
            shelf.batches.pop(name, None)
        case BatchOpened(batch=batch) | BatchEnded(batch=batch):
            shelf.batches[batch.id] = batch
        case BatchCancelled(batch=name):
            known = shelf.batches.get(name)
            if known is not None:
                shelf.batches[name] = replace(
                    known, state=BatchState.CANCELLING, cancelled_at_ns=event.at_ns
                )
        case _:
            pass


def _count(shelf: Shelf, stored: StoredObject, change_bytes: int) -> None:
    before = shelf.bytes_by_project.get(stored.project, 0)
    shelf.bytes_by_project[stored.project] = before + change_bytes

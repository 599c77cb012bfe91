"""Current rows as the books imply them: what a commit writes beside the events."""

from moulin.controlplane.books import Books
from moulin.controlplane.draft import Draft
from moulin.controlplane.plane import Plane
from moulin.domain.events import FactoryApplied, KeyCreated, KeyRevoked, KeyUpdated
from moulin.domain.factory import ObjectKind, Project
from moulin.domain.ids import WorkloadId
from moulin.domain.principal import ApiKey
from moulin.domain.views import DeclaredView, WorkloadView
from moulin.domain.wire import encode
from moulin.ports.store import Batch, DeclaredRef
from moulin.scheduler import workload_view


def view_of(books: Books, workload: WorkloadId) -> WorkloadView:
    """Return a workload's current row with what is still held for it."""
    held_neur = books.balances.reserved_by_workload.get(workload, 0)
    return workload_view(books.schedule, workload, reserved_neur=held_neur)


def batch_of(plane: Plane, draft: Draft) -> Batch:
    """Collect a draft into the one transaction that makes it durable."""
    declared, undeclared = _declared(draft)
    touched = sorted(draft.books.schedule.touched)
    draft.views = {workload: view_of(draft.books, workload) for workload in touched}
    return Batch(
        epoch=draft.epoch,
        events=tuple(draft.events),
        workloads=tuple(draft.views.values()),
        declared=declared,
        undeclared=undeclared,
        keys=_keys(draft),
        receipts=tuple(draft.receipts),
        entries=tuple(draft.entries),
        leaves=tuple(draft.leaves),
        nodes=tuple(draft.nodes),
        checkpoints=tuple(draft.checkpoints),
        intervals=tuple(draft.intervals),
        idempotency=tuple(draft.idempotency.values()),
    )


def _declared(draft: Draft) -> tuple[tuple[DeclaredView, ...], tuple[DeclaredRef, ...]]:
    views: list[DeclaredView] = []
    removed: list[DeclaredRef] = []
    for event in draft.events:
        if not isinstance(event.payload, FactoryApplied):
            continue
        for change in event.payload.changes:
            if change.value is None:
                removed.append(DeclaredRef(kind=change.kind, name=change.name))
                continue
            views.append(
                DeclaredView(
                    kind=change.kind,
                    name=change.name,
                    organisation=_organisation(change.kind, change.name, change.value),
                    managed_by=event.payload.managed_by,
                    body=encode(change.value),
                    sequence=event.sequence,
                )
            )
    return tuple(views), tuple(removed)


def _organisation(kind: ObjectKind, name: str, value: object) -> str:
    if isinstance(value, Project):
        return value.organisation
    return name if kind is ObjectKind.ORGANISATION else ""


def _keys(draft: Draft) -> tuple[ApiKey, ...]:
    changed: dict[str, None] = {}
    for event in draft.events:
        match event.payload:
            case KeyCreated(key=key) | KeyUpdated(key=key):
                changed[key.id] = None
            case KeyRevoked(key=key_id):
                changed[key_id] = None
            case _:
                pass
    return tuple(draft.books.keyring.by_id[key_id] for key_id in changed)

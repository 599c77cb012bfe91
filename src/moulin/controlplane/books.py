"""Everything the control plane knows, folded from one log: one book per stage.

A book changes only by `fold_all`; a control plane that lost a commit throws its books away and
folds the log again.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from moulin.controlplane.cursors import fold_cursors
from moulin.controlplane.gateways import Gateways, fold_gateways
from moulin.controlplane.metered import Cursors
from moulin.controlplane.notices import Notices, fold_notices
from moulin.controlplane.retention import Retention, fold_retention
from moulin.controlplane.sealed import SealedSecrets, fold_sealed
from moulin.controlplane.shelf import Shelf, fold_shelf
from moulin.domain.errors import check
from moulin.domain.events import (
    Event,
    FactoryApplied,
    LicenceAccepted,
    WorkloadFinished,
    WorkloadSubmitted,
)
from moulin.domain.factory import (
    DeclaredObject,
    ObjectKind,
    Organisation,
    Pool,
    PriceBook,
    Project,
    Site,
    Zone,
    webhook_of,
)
from moulin.domain.gateway_events import AlertSettled
from moulin.domain.ids import WorkloadId
from moulin.domain.terms import LicenceAcceptance
from moulin.domain.workload import Submission
from moulin.identity import Keyring, fold_keyring
from moulin.ledger.allowances import Allowances, fold_allowances
from moulin.ledger.balances import Balances, fold_balances, release
from moulin.scheduler import State, empty_state, fold

IDEMPOTENCY_KEY: Final = "idempotency_key"
BODY_HASH: Final = "body_hash"
REPEATS_KEPT: Final = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """One declared object and the file that manages it."""

    value: DeclaredObject
    managed_by: str


@dataclass(slots=True)
class Repeats:
    """The workloads that recent idempotency keys made, by (project, key), oldest first.

    While nothing was dropped, a key that is not here is new; afterwards the store knows.
    """

    made: dict[tuple[str, str], tuple[WorkloadId, str]] = field(default_factory=dict)
    is_complete: bool = True

    def remember(self, project: str, key: str, workload: WorkloadId, body_hash: str) -> None:
        """Keep a key, dropping the oldest above the bound."""
        self.made[(project, key)] = (workload, body_hash)
        if len(self.made) > REPEATS_KEPT:
            del self.made[next(iter(self.made))]
            self.is_complete = False


@dataclass(slots=True)
class Books:
    """The folded log. `sequence` and `at_ns` are its last event's, `endpoints` those not finished."""

    schedule: State = field(default_factory=empty_state)
    balances: Balances = field(default_factory=Balances)
    allowances: Allowances = field(default_factory=Allowances)
    keyring: Keyring = field(default_factory=Keyring)
    cursors: Cursors = field(default_factory=Cursors)
    gateways: Gateways = field(default_factory=Gateways)
    retention: Retention = field(default_factory=Retention)
    objects: Shelf = field(default_factory=Shelf)
    notices: Notices = field(default_factory=Notices)
    sealed: SealedSecrets = field(default_factory=SealedSecrets)
    declared: dict[tuple[ObjectKind, str], Declared] = field(default_factory=dict)
    endpoints: set[WorkloadId] = field(default_factory=set)
    repeats: Repeats = field(default_factory=Repeats)
    licences: dict[tuple[str, str], LicenceAcceptance] = field(default_factory=dict)
    sequence: int = 0
    at_ns: int = 0

    def project(self, name: str) -> Project | None:
        """Return a declared project."""
        found = self.declared.get((ObjectKind.PROJECT, name))
        return found.value if found and isinstance(found.value, Project) else None

    def organisation(self, name: str) -> Organisation | None:
        """Return a declared organisation."""
        found = self.declared.get((ObjectKind.ORGANISATION, name))
        return found.value if found and isinstance(found.value, Organisation) else None

    def webhook(self, project: str) -> str:
        """Return where to tell of a project's affairs: its own address, else its organisation's."""
        declared = self.project(project)
        owner = self.organisation(declared.organisation) if declared else None
        return webhook_of(declared, owner)

    def zone(self, name: str) -> Zone | None:
        """Return a declared zone."""
        found = self.declared.get((ObjectKind.ZONE, name))
        return found.value if found and isinstance(found.value, Zone) else None

    def site_of(self, zone: str) -> Site | None:
        """Return the site a zone belongs to."""
        found = self.zone(zone)
        declared = self.declared.get((ObjectKind.SITE, found.site)) if found else None
        return declared.value if declared and isinstance(declared.value, Site) else None

    def pools(self) -> tuple[Pool, ...]:
        """Return the declared pools by name."""
        return tuple(
            item.value
            for (kind, _), item in sorted(self.declared.items())
            if kind is ObjectKind.POOL and isinstance(item.value, Pool)
        )

    def price_books(self) -> tuple[PriceBook, ...]:
        """Return the declared price books by name."""
        return tuple(
            item.value
            for (kind, _), item in sorted(self.declared.items())
            if kind is ObjectKind.PRICE_BOOK and isinstance(item.value, PriceBook)
        )


def fold_all(books: Books, event: Event) -> None:
    """Apply one event to every book in place; events come in gapless sequence."""
    check(event.sequence == books.sequence + 1, "the log is folded without gaps")
    fold(books.schedule, event)
    fold_balances(books.balances, event)
    fold_allowances(books.allowances, event)
    fold_keyring(books.keyring, event)
    fold_cursors(books.cursors, event, books.schedule, books.site_of)
    if books.cursors.settled:
        _end_holds(books)
    fold_gateways(books.gateways, event)
    fold_retention(books.retention, event, books.schedule)
    fold_shelf(books.objects, event)
    fold_sealed(books.sealed, event)
    if isinstance(event.payload, (WorkloadFinished, AlertSettled)):
        has_webhook = bool(books.webhook(event.project))
        fold_notices(books.notices, event, books.schedule, has_webhook=has_webhook)
    match event.payload:
        case FactoryApplied() as applied:
            _declare(books, applied)
        case WorkloadSubmitted(submission=submission):
            _submit(books, submission, event)
        case WorkloadFinished(workload=workload):
            books.endpoints.discard(workload)
        case LicenceAccepted() as accepted:
            _accept(books, accepted, event)
        case _:
            pass
    books.sequence = event.sequence
    books.at_ns = max(books.at_ns, event.at_ns)


def read_books(log: Iterable[Event]) -> Books:
    """Fold a whole log."""
    books = Books()
    for event in log:
        fold_all(books, event)
    books.schedule.touched.clear()  # their rows were written with the events
    books.allowances.touched.clear()  # and alerts raised
    return books


def _end_holds(books: Books) -> None:
    """Give back what is left of the holds of workloads of which everything is charged now."""
    for workload in books.cursors.settled:
        if release(books.balances, workload) and workload in books.schedule.workloads:
            books.schedule.touched[workload] = None  # its row says what is held for it
    books.cursors.settled.clear()


def _accept(books: Books, accepted: LicenceAccepted, event: Event) -> None:
    key = (event.organisation, accepted.licence)
    found = LicenceAcceptance(
        licence=accepted.licence, organisation=key[0], by=accepted.by, at_ns=event.at_ns
    )
    # A copy: edges read the present mapping from other threads.
    books.licences = {key: found, **books.licences}


def _submit(books: Books, submission: Submission, event: Event) -> None:
    if submission.spec.endpoint is not None:
        books.endpoints.add(submission.id)
    key = event.labels.get(IDEMPOTENCY_KEY)
    if key is not None:
        body_hash = event.labels.get(BODY_HASH, "")
        books.repeats.remember(submission.project, key, submission.id, body_hash)


def _declare(books: Books, applied: FactoryApplied) -> None:
    for change in applied.changes:
        key = (change.kind, change.name)
        if change.value is None:
            books.declared.pop(key, None)
        else:
            books.declared[key] = Declared(value=change.value, managed_by=applied.managed_by)

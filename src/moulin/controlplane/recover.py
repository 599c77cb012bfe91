"""Takes the lead: folds the log, opens an epoch and lets the engines adopt what is running.

Nothing is restarted here. What runs is observed again by the next cycle; what was placed without
proof of a start is started once, whatever happened to the former control plane.
"""

from moulin.controlplane.act import resume
from moulin.controlplane.books import read_books
from moulin.controlplane.draft import Draft
from moulin.controlplane.evidence import keep_nodes, read_evidence
from moulin.controlplane.inbox import Inbox
from moulin.controlplane.plane import Plane, PlaneSettings, Ports
from moulin.controlplane.retention import forgetting_of
from moulin.controlplane.rows import batch_of
from moulin.domain.events import EpochOpened
from moulin.scheduler import SchedulerPolicy


def take_lead(
    ports: Ports, settings: PlaneSettings, policy: SchedulerPolicy, inbox: Inbox
) -> Plane:
    """Return a control plane that leads, its epoch durable.

    Raises `StoreUnavailable` when another process leads, `StoreCorrupt` when the log cannot be
    folded.

    Cost:   O(events in the log).
    """
    epoch = ports.store.open_epoch()
    keep_nodes(ports.store, epoch)
    books = read_books(ports.store.events(0))
    plane = Plane(
        ports=ports,
        settings=settings,
        policy=policy,
        inbox=inbox,
        epoch=epoch,
        books=books,
        evidence=read_evidence(ports.store, settings.factory_name),
        forgetting=forgetting_of(books.retention),
        behind_ns=max(0, books.at_ns - ports.clock.now_ns()),
        led_since_ns=max(books.at_ns, ports.clock.now_ns()),
    )
    draft = Draft(plane.books, epoch, plane.now_ns())
    draft.append(EpochOpened(epoch=epoch, boot_id=settings.boot_id, version=settings.version))
    ports.store.commit(batch_of(plane, draft))
    resume(plane)
    return plane


def read_again(plane: Plane) -> None:
    """Throw away books that are ahead of the log, after a commit that failed, and fold anew.

    Raises `StoreUnavailable` or `StoreCorrupt` when the log cannot be read now.
    """
    plane.books = read_books(plane.ports.store.events(0))
    plane.evidence = read_evidence(plane.ports.store, plane.settings.factory_name)
    plane.snapshot = None
    plane.due_ns.clear()
    plane.unstarted.clear()
    plane.unmetered.clear()
    plane.forgetting = forgetting_of(plane.books.retention)
    plane.is_ahead = False
    resume(plane)

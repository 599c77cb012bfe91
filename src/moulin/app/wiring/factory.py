"""Joins the parts of a factory: ports filled in, nothing decided.

`open_factory` gives a leading control plane and the API's services over one data directory.
"""

import stat
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from moulin import __version__
from moulin.api.services import ApiServices
from moulin.app.batches import BatchDesk
from moulin.app.clock import SystemClock, SystemDice
from moulin.app.datadir import OBJECTS, SECRET_KEYS, SECRETS_MASTER
from moulin.app.doors import doorkeeper
from moulin.app.evidence import StoredEvidence
from moulin.app.lines import Lines, own_gateway
from moulin.app.logs import log_reader
from moulin.app.meters import MachineMeter
from moulin.app.models import ModelLibrary
from moulin.app.own_machine import OwnMachine
from moulin.app.registrations import RegistrationBook
from moulin.app.webhooks import Webhooks
from moulin.app.wiring.engines import EngineBook
from moulin.controlplane.allowances import tell_again
from moulin.controlplane.inbox import Inbox
from moulin.controlplane.lookup import is_live
from moulin.controlplane.plane import Plane, PlaneSettings, Ports
from moulin.controlplane.recover import take_lead
from moulin.controlplane.telling import tell_ends_again
from moulin.domain.errors import (
    LocalError,
)
from moulin.engines.slurm.wellbeing import LOOK
from moulin.ledger import key_name
from moulin.ports.signer import Signer
from moulin.ports.store import Store
from moulin.scheduler import SchedulerPolicy
from moulin.sources.signing import open_signer
from moulin.sources.vault import Vault
from moulin.store.folder import ObjectFolder
from moulin.store.opening import open_store


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorySettings:
    """What a control process is told: where its data is and how its factory is called.

    Model files are in `models_dir`, or without one in the data directory.
    """

    data_dir: Path
    models_dir: Path | None = None
    database: str = ""
    factory_name: str = "moulin"
    site_name: str = "this-site"
    plane: PlaneSettings = field(default_factory=PlaneSettings)


@dataclass(slots=True, kw_only=True)
class Factory:
    """A control plane with everything around it."""

    plane: Plane
    services: ApiServices
    store: Store
    desk: BatchDesk


def open_factory(settings: FactorySettings) -> Factory:
    """Open the store, take the lead, and join the parts.

    Raises `StoreUnavailable` when another process leads, `StoreCorrupt` when the log cannot be
    folded, `LocalError` when the key files are not ours.
    """
    data = settings.data_dir
    clock = SystemClock()
    pepper = read_pepper(data / "pepper")
    store = open_store(settings.database or data / "moulin.sqlite")
    signer = open_signer(data / "signing.key", key_name(settings.factory_name))
    library = ModelLibrary(settings.models_dir or data, data / "replica_keys", pepper)
    registrations = RegistrationBook(clock, pepper, library.replica_key)
    engines = EngineBook(data, clock, registrations)
    folder = ObjectFolder(data / OBJECTS)
    vault = Vault(data / SECRET_KEYS, data / SECRETS_MASTER)
    inbox = Inbox()
    webhooks = Webhooks(pepper=pepper, now_ns=clock.now_ns, settle=inbox.call)
    plane = take_lead(
        Ports(
            store=store,
            clock=clock,
            ids=SystemDice(),
            engine_for=engines.engine_for,
            launcher=library,
            meter=MachineMeter(clock),
            signer=signer,
            check_pools=engines.check_pools,
            notify=webhooks.offer,
            vault=vault,
            check_program=_check_program(),
            look_program=Path(LOOK).read_text(encoding="utf-8"),
            bytes_at=lambda name: str(folder.path(name)),
        ),
        settings.plane,
        SchedulerPolicy(staleness_s=settings.plane.snapshot_staleness_s),
        inbox,
    )
    registrations.heed(lambda attempt: is_live(plane.books.schedule, attempt))
    _catch_up(plane)
    desk = BatchDesk(
        shelf=lambda: plane.books.objects,
        files=folder,
        call=inbox.call,
        clock=clock,
        ids=SystemDice(),
        lines=Lines(lambda: own_gateway(data), pepper),
    )
    services = ApiServices(
        call=inbox.call,
        store=store,
        keyring=lambda: plane.books.keyring,
        objects=lambda: plane.books.objects,
        contents=folder,
        desk=desk,
        registrations=registrations,
        vault=vault,
        secrets=lambda: plane.books.sealed,
        licences=lambda: plane.books.licences,
        machine=OwnMachine(),
        logs=log_reader(plane),
        enter=doorkeeper(plane),
        shelf=library,
        evidence=_evidence(settings, store, signer),
        clock=clock,
        ids=SystemDice(),
        pepper=pepper,
        version=__version__,
    )
    return Factory(plane=plane, services=services, store=store, desk=desk)


def _catch_up(plane: Plane) -> None:
    """Tell again what a former process may not have told after its last commit."""
    tell_again(plane)
    tell_ends_again(plane)


def _evidence(settings: FactorySettings, store: Store, signer: Signer) -> StoredEvidence:
    return StoredEvidence(
        store=store, signer=signer, factory=settings.factory_name, site=settings.site_name
    )


def _check_program() -> str:
    """Return the text of the check of a gang's nodes, which runs where Moulin is not installed."""
    return files("moulin.runtimes").joinpath("allreduce.py").read_text(encoding="utf-8")


def read_pepper(path: Path) -> bytes:
    """Return the secret that keys are digested with.

    Raises `LocalError` when it is missing, empty, or readable by others.
    """
    try:
        mode, pepper = path.stat().st_mode, path.read_bytes()
    except OSError as cause:
        raise LocalError(
            f"read {path}: {cause.strerror}",
            hint="restore it from a backup; without it no key of this factory works",
        ) from cause
    if mode & (stat.S_IRWXG | stat.S_IRWXO) or not pepper:
        raise LocalError(
            f"read {path}: it is empty or others may read it",
            hint=f"chmod 600 {path}, and issue new keys if others have read it",
        )
    return pepper

"""What the API needs of the rest of Moulin, as narrow as it is used.

The wiring fills this in; no route reaches for anything else.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from moulin.catalog.fit import Machine
from moulin.catalog.machines import MACHINE_CLASSES, THIS_MACHINE
from moulin.controlplane.commands import Answer, Command
from moulin.controlplane.sealed import SealedSecrets
from moulin.controlplane.shelf import Shelf
from moulin.domain.control import FetchStatus, FetchWanted, ModelInfo
from moulin.domain.errors import EngineRefused
from moulin.domain.ids import AttemptId
from moulin.domain.model import Model
from moulin.domain.objects import BatchJob
from moulin.domain.observation import LogChunk
from moulin.domain.registration import Registration, RegistrationWanted
from moulin.domain.secrets import SealedSecret
from moulin.domain.session import Entry, EntryWanted, SessionTicket
from moulin.domain.terms import Acceptances
from moulin.identity import Keyring
from moulin.ports.clock import Clock, IdSource
from moulin.ports.store import Store


class LogReader(Protocol):
    """Reads the output of a task of a unit's latest attempt; called from a worker thread."""

    def __call__(self, workload: str, unit: int, rank: int, cursor: int, limit: int) -> LogChunk:
        """Return at most `limit` bytes from byte `cursor`.

        Raises `NotFound` before the task started, `EngineUnavailable` when its node is away.
        """
        ...


class ModelShelf(Protocol):
    """The catalogue with what this machine has of it; called from worker threads."""

    def models(self) -> Sequence[ModelInfo]:
        """Return every entry by name."""
        ...

    def model(self, name: str) -> ModelInfo:
        """Return one entry. Raises `UnknownName`, its hint naming the nearest."""
        ...

    def entry(self, name: str) -> Model:
        """Return the catalogue's own entry, with digests as far as they are pinned.

        Raises `UnknownName`.
        """
        ...

    def fetch(self, name: str, wanted: FetchWanted) -> FetchStatus:
        """Start fetching in the background unless it runs or is done, and say where it is.

        Raises `UnknownName` for a model, variant or source that does not exist.
        """
        ...


class ObjectUpload(Protocol):
    """Bytes of a tenant's object on their way in; called from worker threads."""

    size_bytes: int

    def write(self, data: bytes) -> None:
        """Add bytes. Raises `DiskFull` and `StoreUnavailable`."""
        ...

    def sha256(self) -> str:
        """Return the SHA-256 of what came so far, in hexadecimal."""
        ...

    def close(self) -> str:
        """Put them in place, durable, and return their SHA-256 in hexadecimal."""
        ...

    def drop(self) -> None:
        """Forget what came so far."""
        ...


class ObjectBytes(Protocol):
    """The bytes of tenants' objects by id, whole or not there; called from worker threads."""

    def begin(self, name: str) -> ObjectUpload:
        """Start to take an object's bytes."""
        ...

    def put(self, name: str, pieces: Iterable[bytes]) -> tuple[int, str]:
        """Store an object whole; return its size in bytes and SHA-256."""
        ...

    def read(self, name: str) -> Iterator[bytes]:
        """Yield an object's bytes. Raises `NotFound` before the first."""
        ...

    def delete(self, name: str) -> None:
        """Delete an object's bytes; what is not there is deleted already."""
        ...


class SecretKeys(Protocol):
    """Seals secrets; called from worker threads."""

    def seal(self, secret: SealedSecret, value: bytes) -> SealedSecret:
        """Return the secret with its value sealed. Raises `DiskFull`, `LocalError`."""
        ...

    def shred(self, ids: Collection[str]) -> None:
        """Destroy keys; what has none is left as it is. Raises `LocalError`."""
        ...

    def rotate(self) -> int:
        """Wrap all keys with a new master key; return how many. Raises as `seal` does."""
        ...


class RegistrationDesk(Protocol):
    """Who believes replicas' registrations; called from the event loop, so it answers at once."""

    def hold(self, attempt: AttemptId, wanted: RegistrationWanted) -> Registration:
        """Believe a replica's word for a while.

        Raises `Conflict` for an attempt that has ended, `InvalidRequest` for no address.
        """
        ...

    def every(self) -> Sequence[Registration]:
        """Return the last word of every replica that may still run, by its name."""
        ...

    def let_go(self, attempt: AttemptId) -> None:
        """Let a registration run out now; one that is not held is no error."""
        ...


class BatchDesk(Protocol):
    """Who carries batches out, as far as the API asks; called from any thread."""

    def progress(self, batch: BatchJob) -> BatchJob:
        """Return the batch with its counts as of now."""
        ...

    def wake(self) -> None:
        """A batch was opened or cancelled."""
        ...


class Evidence(Protocol):
    """Reads what proves receipts; called from worker threads."""

    def origin(self) -> str:
        """Return the name of the shard that receipts are committed to now."""
        ...

    def public_key(self) -> bytes:
        """Return the file that verifies checkpoints offline."""
        ...

    def receipt_file(self, receipt: str) -> bytes:
        """Return the file `moulin receipt verify` reads.

        Raises `NotFound` for no such receipt, `Conflict` before a checkpoint covers it.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiLimits:
    """What one request, or all of them, may take."""

    body_bytes_max: int = 1_000_000
    body_wait_s: float = 20.0
    upload_bytes_max: int = 512_000_000
    response_bytes_max: int = 16_000_000
    answer_wait_s: float = 30.0
    streams_max: int = 200
    heartbeat_s: float = 15.0
    news_period_s: float = 0.1
    sync_wait_s_max: int = 60
    sessions_max: int = 100
    project_sessions_max: int = 20
    session_s_max: float = 12 * 3600.0
    gateways_wait_s: float = 2.0


class Doorkeeper(Protocol):
    """Says how to go into a running task; called from a worker thread."""

    def __call__(self, ticket: SessionTicket, wanted: EntryWanted) -> Entry:
        """Return the program to run.

        Raises `EngineRefused` where the task's engine lets nobody in, `NotFound` when it does not run.
        """
        ...


def nobody_enters(ticket: SessionTicket, wanted: EntryWanted) -> Entry:
    """Raise `EngineRefused`: what stands for a doorkeeper where there is none."""
    del wanted
    raise EngineRefused(f"enter {ticket.step}: pool {ticket.pool} lets nobody in")


def _unmeasured() -> Machine:
    return Machine(machine_class=MACHINE_CLASSES[THIS_MACHINE])


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiServices:
    """Everything behind the routes.

    `call` is the inbox's; `keyring` returns the present keyring, `licences` the licences that were
    accepted, `machine` the machine Moulin runs on; `pepper` keys the digests.
    """

    call: Callable[[Command], "Future[Answer]"]
    store: Store
    keyring: Callable[[], Keyring]
    logs: LogReader
    shelf: ModelShelf
    evidence: Evidence
    contents: ObjectBytes
    desk: BatchDesk
    registrations: RegistrationDesk
    vault: SecretKeys
    clock: Clock
    ids: IdSource
    pepper: bytes = field(repr=False)
    version: str
    limits: ApiLimits = field(default_factory=ApiLimits)
    objects: Callable[[], Shelf] = Shelf
    secrets: Callable[[], SealedSecrets] = SealedSecrets
    licences: Callable[[], Acceptances] = dict
    machine: Callable[[], Machine] = _unmeasured
    enter: Doorkeeper = nobody_enters

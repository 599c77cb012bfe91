"""What edges may ask of the control plane, as values, and what it answers.

A command is taken by the next cycle and answered when its events are durable. Authorisation has
happened at the edge: a command carries the principal only to be recorded as actor.
"""

from dataclasses import dataclass

from moulin.domain.control import (
    AdjustWanted,
    AllowancePage,
    Applied,
    ElementPage,
    Explanation,
    FactoryStatus,
    KeyChange,
    ObjectDiff,
    RolloutWanted,
    Stopped,
    StopWanted,
    Trial,
    ZoneStatus,
)
from moulin.domain.factory import DeclaredObject
from moulin.domain.health import Verdict
from moulin.domain.ids import KeyId, NodeId, ProjectId, WorkloadId
from moulin.domain.lease import LeaseOffers, LeaseWanted
from moulin.domain.objects import BatchJob, StoredObject
from moulin.domain.principal import ApiKey, Principal
from moulin.domain.secrets import SealedSecret, SecretInfo
from moulin.domain.session import SessionTicket
from moulin.domain.session_events import SessionEnd, SessionPurpose
from moulin.domain.snapshot import SyncReply, SyncRequest
from moulin.domain.terms import LicenceAcceptance
from moulin.domain.views import NodeView, WorkloadView
from moulin.domain.workload import Scaling, WorkloadSpec

__all__ = [
    "AcceptLicence",
    "AdjustWorkload",
    "Answer",
    "Applied",
    "ApplyFactory",
    "CancelBatch",
    "CheckNode",
    "CloseSession",
    "Command",
    "CreateKey",
    "DeleteObject",
    "DeleteSecret",
    "EndBatch",
    "ExplainWorkload",
    "Explanation",
    "ExtendLease",
    "FactoryStatus",
    "Idempotency",
    "JudgeNode",
    "ObjectDiff",
    "OpenBatch",
    "OpenSession",
    "OrderLease",
    "ReadAllowances",
    "ReadElements",
    "ReadOffers",
    "ReadStatus",
    "RevokeKey",
    "RotateKey",
    "ScaleEndpoint",
    "SetSecret",
    "SettleAlert",
    "StopElements",
    "StopWorkload",
    "StopWorkloads",
    "StoreObject",
    "SubmitWorkload",
    "SyncGateway",
    "Trial",
    "TryWorkload",
    "UpdateKey",
    "ZoneStatus",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """An idempotency key with the SHA-256 of the request body it came with."""

    key: str
    body_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitWorkload:
    """Admit a workload to wait for its placement. Answer: its `WorkloadView`.

    Raises `BudgetExceeded`, `QuotaExceeded` or `Refused` (impossible here) with the reasons.
    """

    principal: Principal
    project: ProjectId
    spec: WorkloadSpec
    id: WorkloadId
    idempotency: Idempotency | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TryWorkload:
    """Say what submitting would do, without doing it. Answer: `Trial`."""

    principal: Principal
    project: ProjectId
    spec: WorkloadSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StopWorkload:
    """Ask for the end of a workload. Answer: its `WorkloadView`; raises `NotFound`."""

    principal: Principal
    workload: WorkloadId


@dataclass(frozen=True, slots=True, kw_only=True)
class StopWorkloads:
    """Ask for the end of what fits, or count it. Answer: `Stopped`; raises `InvalidRequest`."""

    principal: Principal
    project: ProjectId
    wanted: StopWanted


@dataclass(frozen=True, slots=True, kw_only=True)
class StopElements:
    """Ask for the end of some elements of an array. Answer: its `WorkloadView`.

    Raises `NotFound`, and `Conflict` for what is no array or has no such element.
    """

    principal: Principal
    workload: WorkloadId
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdjustWorkload:
    """Hold, release or reprioritise a workload. Answer: its `WorkloadView`.

    Raises `NotFound`, and `Conflict` when it has ended.
    """

    principal: Principal
    workload: WorkloadId
    wanted: AdjustWanted


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadElements:
    """Ask for elements of an array: those of some states, or indices, or all. Answer: `ElementPage`.

    Of one that ended so long ago that only the store has it, a few are left. Raises `NotFound`.
    """

    workload: WorkloadId
    indices: tuple[int, ...] = ()
    states: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOffers:
    """Ask what a project may lease. Answer: `LeaseOffers`; raises `NotFound`."""

    project: ProjectId


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderLease:
    """Order nodes of an offer. Answer: its `WorkloadView`.

    Raises `NotFound` for no such offer, and what `SubmitWorkload` raises.
    """

    principal: Principal
    project: ProjectId
    wanted: LeaseWanted
    id: WorkloadId
    idempotency: Idempotency | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendLease:
    """Let a lease end later. Answer: its `WorkloadView`.

    Raises `NotFound`, `Conflict`, or a refusal with the reasons.
    """

    principal: Principal
    workload: WorkloadId
    by_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeNode:
    """Say that a node is in quarantine, or well. Answer: its `NodeView`; raises `NotFound`."""

    principal: Principal
    node: NodeId
    verdict: Verdict
    words: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckNode:
    """Look at a node now. Answer: its `NodeView`; raises `NotFound`, `EngineUnavailable`."""

    principal: Principal
    node: NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleEndpoint:
    """Set an endpoint's number of replicas. Answer: its `WorkloadView`; raises `NotFound`."""

    principal: Principal
    workload: WorkloadId
    replicas: int
    scaling: Scaling | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutEndpoint:
    """Give an endpoint another spec, or the one before. Answer: its `WorkloadView`.

    Raises `NotFound`, `Conflict`, and what `SubmitWorkload` raises.
    """

    principal: Principal
    workload: WorkloadId
    wanted: RolloutWanted


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainWorkload:
    """Ask why a workload is where it is. Answer: `Explanation`; raises `NotFound`."""

    workload: WorkloadId


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyFactory:
    """Make the declared objects of one file equal `objects`. Answer: `Applied`.

    Objects that the file declared earlier and no longer names are removed, unless in use: then
    nothing at all is applied and `InUse` lists the users.
    """

    principal: Principal
    managed_by: str
    objects: tuple[DeclaredObject, ...]
    is_dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateKey:
    """Record an issued key (the secret stays at the edge). Answer: the `ApiKey`."""

    principal: Principal
    key: ApiKey


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeKey:
    """Stop a key from working. Answer: the `ApiKey`; raises `NotFound`."""

    principal: Principal
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptLicence:
    """Accept a model's licence for a project's organisation. Answer: the `LicenceAcceptance`.

    The first acceptance stays; raises `NotFound` for a project that does not exist.
    """

    principal: Principal
    project: ProjectId
    model: str
    licence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateKey:
    """Restrict, limit, label a key or let it expire. Answer: the `ApiKey`; raises `NotFound`."""

    principal: Principal
    key: str
    change: KeyChange


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateKey:
    """Issue a successor (the secret stays at the edge) and end the old key at `old_until_ns`.

    Answer: the new `ApiKey`; raises `NotFound`, or `Conflict` for a key that is not valid.
    """

    principal: Principal
    key: str
    id: KeyId
    digest: str
    old_until_ns: int
    expires_at_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAllowances:
    """Ask how the allowances of a project stand; empty: of all. Answer: `AllowancePage`.

    With `users`, the names one user may be recorded under, of that user alone.
    """

    project: str
    users: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleAlert:
    """Say that a webhook took the alert of an event, or that it was given up."""

    alert: int
    is_delivered: bool
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncGateway:
    """A gateway's exchange (see `moulin.domain.snapshot`). Answer: `SyncReply`."""

    principal: Principal
    request: SyncRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreObject:
    """Record an object whose bytes are whole. Answer: the `StoredObject`.

    Raises `QuotaExceeded` when the project keeps too much already.
    """

    principal: Principal
    object: StoredObject


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteObject:
    """Forget an object or an ended batch. Answer: what it was; raises `NotFound`, `Conflict`."""

    principal: Principal
    object: str
    cause: str = "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBatch:
    """Accept a batch. Answer: the `BatchJob`; raises `NotFound` for files that are gone."""

    principal: Principal
    batch: BatchJob


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelBatch:
    """Begin no further line of a batch. Answer: its `BatchJob`; raises `NotFound`, `Conflict`."""

    principal: Principal
    batch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndBatch:
    """Record the end of a batch with the files it wrote. Answer: its `BatchJob`."""

    principal: Principal
    batch: BatchJob
    files: tuple[StoredObject, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSecret:
    """Record a sealed secret in the place of one of its name. Answer: its `SecretInfo`.

    Raises `NotFound` for a project that does not exist, `QuotaExceeded` when it has too many.
    """

    principal: Principal
    secret: SealedSecret


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteSecret:
    """Forget a secret and destroy its key. Answer: its `SecretInfo`; raises `NotFound`."""

    principal: Principal
    project: ProjectId
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadStatus:
    """Ask for the factory at a glance. Answer: `FactoryStatus`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSession:
    """Put on record that somebody goes into a running task. Answer: `SessionTicket`.

    `word` is the first of a command, or a port. Raises `NotFound`, and `Conflict` when it does not run.
    """

    principal: Principal
    session: str
    workload: WorkloadId
    unit: int
    rank: int
    purpose: SessionPurpose
    word: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseSession:
    """Put on record that a session is over. Answer: its `SessionTicket`, as it was given."""

    principal: Principal
    ticket: SessionTicket
    workload: WorkloadId
    end: SessionEnd
    exit_code: int | None = None


Command = (
    SubmitWorkload
    | TryWorkload
    | StopWorkload
    | StopWorkloads
    | StopElements
    | AdjustWorkload
    | ReadElements
    | ReadOffers
    | OrderLease
    | ExtendLease
    | JudgeNode
    | CheckNode
    | ScaleEndpoint
    | RolloutEndpoint
    | ExplainWorkload
    | ApplyFactory
    | CreateKey
    | RevokeKey
    | UpdateKey
    | RotateKey
    | ReadAllowances
    | SettleAlert
    | AcceptLicence
    | SyncGateway
    | StoreObject
    | DeleteObject
    | OpenBatch
    | CancelBatch
    | EndBatch
    | SetSecret
    | DeleteSecret
    | OpenSession
    | CloseSession
    | ReadStatus
)
Answer = (
    WorkloadView
    | ElementPage
    | NodeView
    | Stopped
    | Trial
    | Explanation
    | Applied
    | ApiKey
    | AllowancePage
    | LicenceAcceptance
    | SyncReply
    | FactoryStatus
    | LeaseOffers
    | StoredObject
    | BatchJob
    | SecretInfo
    | SessionTicket
)

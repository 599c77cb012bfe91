"""What edges may ask of the control plane, as values, and what it answers.

A command is taken by the next cycle and answered when its events are durable. Authorisation has
happened at the edge: a command carries the principal only to be recorded as actor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moulin.domain.factory import DeclaredObject, ObjectKind
from moulin.domain.ids import ProjectId, WorkloadId
from moulin.domain.principal import ApiKey, Principal
from moulin.domain.reasons import Reason
from moulin.domain.snapshot import SyncReply, SyncRequest
from moulin.domain.views import BalanceView, NodeView, WorkloadView
from moulin.domain.workload import WorkloadSpec


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
class Trial:
    """What a submission would meet now: nodes when it would start at once, else reasons.

    `is_possible` is False when waiting would not help. Amounts are for the whole time limit;
    `energy_mj` is an estimate at full use of what the tasks hold.
    """

    is_possible: bool
    nodes: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    reasons: tuple[Reason, ...] = ()
    time_limit_s: int = 0
    reserved_neur: int = 0
    energy_mj: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StopWorkload:
    """Ask for the end of a workload. Answer: its `WorkloadView`; raises `NotFound`."""

    principal: Principal
    workload: WorkloadId


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleEndpoint:
    """Set an endpoint's number of replicas. Answer: its `WorkloadView`; raises `NotFound`."""

    principal: Principal
    workload: WorkloadId
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainWorkload:
    """Ask why a workload is where it is. Answer: `Explanation`; raises `NotFound`."""

    workload: WorkloadId


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A workload with the reasons, in the order of DESIGN rule 3, why it does not run (more)."""

    workload: WorkloadView
    reasons: tuple[Reason, ...]


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
class ObjectDiff:
    """One line of a diff: `action` is create, update or delete; wire forms before and after."""

    action: str
    kind: ObjectKind
    name: str
    before: Mapping[str, object] = field(default_factory=dict)
    after: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What an apply changed, or would change; empty when the file is already true."""

    diffs: tuple[ObjectDiff, ...]
    is_dry_run: bool
    sequence: int


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
class SyncGateway:
    """A gateway's exchange (see `moulin.domain.snapshot`). Answer: `SyncReply`."""

    principal: Principal
    request: SyncRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadStatus:
    """Ask for the factory at a glance. Answer: `FactoryStatus`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneStatus:
    """A zone with its site's facts and what is held there."""

    name: str
    site: str
    country: str
    country_basis: str
    state: str
    nodes: int
    power_held_w: int
    power_envelope_w: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FactoryStatus:
    """The factory at a glance, from the state the last cycle left."""

    version: str
    epoch: int
    sequence: int
    now_ns: int
    zones: tuple[ZoneStatus, ...]
    nodes: tuple[NodeView, ...]
    balances: tuple[BalanceView, ...]
    counts: Mapping[str, int]


Command = (
    SubmitWorkload
    | TryWorkload
    | StopWorkload
    | ScaleEndpoint
    | ExplainWorkload
    | ApplyFactory
    | CreateKey
    | RevokeKey
    | SyncGateway
    | ReadStatus
)
Answer = (
    WorkloadView | Trial | Explanation | Applied | ApiKey | SyncReply | FactoryStatus
)

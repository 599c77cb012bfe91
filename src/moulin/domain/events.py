"""The event log's vocabulary: everything that ever changed the factory, as typed payloads.

An event is appended once, in the transaction that also writes the current rows, and never
changed. `schema` is the version of a payload's shape: a shape changes only by adding a field with
a default, or under a new kind; `tests/golden/logs` holds old logs that must still fold.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from moulin.domain.batch_events import PreemptionDecided, UnitFinished, WorkloadAdjusted
from moulin.domain.factory import DeclaredObject, EnergyClass, ObjectKind
from moulin.domain.gateway_events import (
    AlertSettled,
    AllowanceAlerted,
    AllowanceGranted,
    AllowanceReturned,
    GatewayEpochClosed,
    GatewayEpochOpened,
    GrantIssued,
    GrantReturned,
    JournalRecorded,
)
from moulin.domain.ids import AttemptId, NodeId, ProjectId, StepId, WorkloadId
from moulin.domain.lease_events import LeaseExtended
from moulin.domain.node_events import GangChecked, NodeChecked, NodeHealthObserved, NodeJudged
from moulin.domain.objects import BatchJob, StoredObject
from moulin.domain.observation import Claim, NodeCapacity, TaskPhase
from moulin.domain.plan import StopCause, TaskPlacement
from moulin.domain.principal import ApiKey
from moulin.domain.reasons import Reason
from moulin.domain.replica_events import SuccessionDecided
from moulin.domain.secret_events import SecretDeleted, SecretSet
from moulin.domain.session_events import SessionClosed, SessionOpened
from moulin.domain.snapshot import EndpointLoad
from moulin.domain.workload import Scaling, Submission, WorkloadSpec, WorkloadState

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochOpened:
    """A control plane took the lead; every later event carries this epoch until the next."""

    epoch: int
    boot_id: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LicenceAccepted:
    """`by` accepted a model's licence for the organisation that the event belongs to."""

    licence: str
    model: str
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectChange:
    """One declared object set (`value`) or removed (`value` is None)."""

    kind: ObjectKind
    name: str
    value: DeclaredObject | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FactoryApplied:
    """An operator file was applied, whole; `managed_by` is the file's name for its objects."""

    managed_by: str
    changes: tuple[ObjectChange, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeJoined:
    """An engine reports a node, or reports changed facts about one it already had."""

    pool: str
    capacity: NodeCapacity


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReachabilityChanged:
    """A node can no longer be asked, or can again; by itself this ends nothing (DESIGN rule 7)."""

    node: NodeId
    is_reachable: bool
    evidence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLeft:
    """An engine no longer serves this node."""

    node: NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyCreated:
    """A key was issued; only its digest is known here."""

    key: ApiKey


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUpdated:
    """A key's restrictions, limits, labels or expiry changed; `key` is all of it from now on."""

    key: ApiKey


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRevoked:
    """A key stops working."""

    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSubmitted:
    """A workload was admitted to wait; `reserved_neur` is held from its project's budget.

    `model_digest` names the weights an endpoint will serve. `met` are those of its `after` that had
    ended as wanted, long enough ago that only the store still knew them.
    """

    submission: Submission
    reserved_neur: int
    policy_decision: str
    model_digest: str = ""
    met: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadRefused:
    """A workload was refused for good; kept so that the refusal can be asked about."""

    submission: Submission
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadStopRequested:
    """Somebody asked for the end of a workload, or of some elements of an array."""

    workload: WorkloadId
    by: str
    units: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadScaled:
    """Somebody asked for another number of replicas; with `scaling` the load moves it from here."""

    workload: WorkloadId
    replicas: int
    by: str
    scaling: Scaling | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRolledOut:
    """An endpoint has another spec from here on; replicas of the one before go when these serve.

    `revision` is a new number, or that of an earlier spec which somebody went back to.
    """

    workload: WorkloadId
    spec: WorkloadSpec
    revision: int
    by: str
    policy_decision: str
    model_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicasDecided:
    """The load of an endpoint asks for another number of replicas."""

    workload: WorkloadId
    replicas: int
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReported:
    """What one gateway has to do for endpoints that follow their load; it replaces its last word.

    Written when it changes what is wanted, else rarely: not at every exchange.
    """

    gateway: str
    gateway_epoch: int
    endpoints: tuple[EndpointLoad, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptDrainDecided:
    """A replica gets no new request from here on and is stopped later."""

    attempt: AttemptId
    cause: StopCause
    until_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainConfirmed:
    """A gateway sends nothing new to a replica; with `is_idle` nothing of it is under way either."""

    gateway: str
    gateway_epoch: int
    attempt: AttemptId
    is_idle: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleDecided:
    """A cycle's evidence: its time, the state it saw and the digest of its plan."""

    now_ns: int
    input_sequence: int
    plan_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptPlaced:
    """One unit holds nodes and devices from here on; `choice` says which of its alternatives.

    With `check_s` its nodes are checked first, for so long at most; the unit itself comes after.
    """

    attempt: AttemptId
    workload: WorkloadId
    unit: int
    generation: int
    tasks: tuple[TaskPlacement, ...]
    choice: int = 0
    check_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStopDecided:
    """An attempt is to end; its nodes stay held until its tasks are proved ended."""

    attempt: AttemptId
    cause: StopCause
    grace_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRequeued:
    """A unit waits again under the next generation."""

    workload: WorkloadId
    unit: int
    generation: int
    not_before_ns: int
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadFinished:
    """A workload has its final state; what is left of its hold goes when all it used is charged.

    `ended_at_ns` is when the last of its tasks ended; 0 when the event itself is the end.
    """

    workload: WorkloadId
    state: WorkloadState
    reason: Reason | None = None
    ended_at_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksForgotten:
    """Engines dropped logs, records and files of all tasks of these workloads: kept long enough."""

    workloads: tuple[WorkloadId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskObserved:
    """A task's phase, claim or readiness changed, or when its replica has to end.

    `observed_at_ns` is the engine's reading time, `wall_ns` when the engine itself will end it, 0 for never.
    """

    step: StepId
    phase: TaskPhase
    observed_at_ns: int
    claim: Claim | None = None
    exit_code: int | None = None
    started_at_ns: int = 0
    ended_at_ns: int = 0
    address: str = ""
    is_ready: bool = False
    cpu_ns: int = 0
    memory_bytes_max: int = 0
    evidence: str = ""
    host: NodeId | None = None
    wall_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalMetered:
    """A node's metering interval closed; `task_cpu_ns` are the cumulative counters at its end.

    `node_cpu_ns` is the node's own cumulative counter, -1 when it could not be read. `energy_mj` =
    sum of `task_energy_mj` + `idle_mj` + `unattributed_mj`; overhead (PUE) comes on top and is split
    the same way. Of the tasks in `task_unread` nobody could read anything: their counters say nothing.
    """

    node: NodeId
    start_ns: int
    end_ns: int
    node_cpu_ns: int
    task_cpu_ns: Mapping[str, int]
    task_energy_mj: Mapping[str, int]
    task_overhead_mj: Mapping[str, int]
    task_standing_mj: Mapping[str, int]
    energy_mj: int
    idle_mj: int
    unattributed_mj: int
    overhead_mj: int
    method: str
    quality: EnergyClass
    uncertainty_ppm: int
    task_unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteringClosed:
    """Intervals and requests became final as of `now_ns`, with journals known to `journal_until_ns`."""

    now_ns: int
    journal_until_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargedUsage:
    """One usage charged: enough to keep balances; the usage itself is a row with its receipt.

    `workload` is the hold it is taken from: a workload's reservation, or with `is_from_grant` the
    request whose settled escrow pays.
    """

    usage: str
    receipt: str
    project: ProjectId
    workload: str
    amount_neur: int
    leaf_index: int
    is_from_grant: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UsagesCharged:
    """Usages were priced, posted and committed to the evidence log of shard `origin`."""

    origin: str
    items: tuple[ChargedUsage, ...]
    tree_size: int
    root: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectStored:
    """A tenant's object is kept from now on; its bytes are elsewhere and were whole before."""

    object: StoredObject


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectDeleted:
    """A stored object, or a batch that ended long ago, is gone: `cause` is `deleted` or `expired`."""

    object: str
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOpened:
    """A batch was accepted."""

    batch: BatchJob


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCancelled:
    """Somebody asked for the end of a batch; lines under way are finished."""

    batch: str
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEnded:
    """A batch is final; `batch` is all there is to say of it."""

    batch: BatchJob


Payload = (
    EpochOpened
    | FactoryApplied
    | NodeJoined
    | NodeReachabilityChanged
    | NodeLeft
    | NodeHealthObserved
    | NodeChecked
    | NodeJudged
    | GangChecked
    | KeyCreated
    | KeyUpdated
    | KeyRevoked
    | WorkloadSubmitted
    | WorkloadRefused
    | WorkloadStopRequested
    | WorkloadScaled
    | EndpointRolledOut
    | ReplicasDecided
    | LoadReported
    | CycleDecided
    | AttemptPlaced
    | AttemptDrainDecided
    | DrainConfirmed
    | SuccessionDecided
    | AttemptStopDecided
    | UnitRequeued
    | UnitFinished
    | PreemptionDecided
    | SessionOpened
    | SessionClosed
    | WorkloadAdjusted
    | LeaseExtended
    | WorkloadFinished
    | TasksForgotten
    | TaskObserved
    | IntervalMetered
    | MeteringClosed
    | UsagesCharged
    | GatewayEpochOpened
    | GrantIssued
    | GrantReturned
    | AllowanceGranted
    | AllowanceReturned
    | AllowanceAlerted
    | AlertSettled
    | JournalRecorded
    | GatewayEpochClosed
    | ObjectStored
    | ObjectDeleted
    | BatchOpened
    | BatchCancelled
    | BatchEnded
    | LicenceAccepted
    | SecretSet
    | SecretDeleted
)

KIND_BY_TYPE: Final[Mapping[type, str]] = {
    EpochOpened: "epoch.opened",
    FactoryApplied: "factory.applied",
    NodeJoined: "node.joined",
    NodeReachabilityChanged: "node.reachability_changed",
    NodeLeft: "node.left",
    NodeHealthObserved: "node.health_observed",
    NodeChecked: "node.checked",
    NodeJudged: "node.judged",
    GangChecked: "gang.checked",
    KeyCreated: "key.created",
    KeyUpdated: "key.updated",
    KeyRevoked: "key.revoked",
    WorkloadSubmitted: "workload.submitted",
    WorkloadRefused: "workload.refused",
    WorkloadStopRequested: "workload.stop_requested",
    WorkloadScaled: "workload.scaled",
    EndpointRolledOut: "endpoint.rolled_out",
    ReplicasDecided: "endpoint.replicas_decided",
    LoadReported: "gateway.load_reported",
    CycleDecided: "cycle.decided",
    AttemptPlaced: "attempt.placed",
    AttemptDrainDecided: "attempt.drain_decided",
    SuccessionDecided: "attempt.succession_decided",
    DrainConfirmed: "gateway.drain_confirmed",
    AttemptStopDecided: "attempt.stop_decided",
    UnitRequeued: "unit.requeued",
    UnitFinished: "unit.finished",
    PreemptionDecided: "unit.preemption_decided",
    SessionOpened: "session.opened",
    SessionClosed: "session.closed",
    WorkloadAdjusted: "workload.adjusted",
    LeaseExtended: "lease.extended",
    WorkloadFinished: "workload.finished",
    TasksForgotten: "tasks.forgotten",
    TaskObserved: "task.observed",
    IntervalMetered: "interval.metered",
    MeteringClosed: "metering.closed",
    UsagesCharged: "usages.charged",
    GatewayEpochOpened: "gateway.epoch_opened",
    GrantIssued: "grant.issued",
    GrantReturned: "grant.returned",
    AllowanceGranted: "allowance.granted",
    AllowanceReturned: "allowance.returned",
    AllowanceAlerted: "allowance.alerted",
    AlertSettled: "alert.settled",
    JournalRecorded: "journal.recorded",
    GatewayEpochClosed: "gateway.epoch_closed",
    ObjectStored: "object.stored",
    ObjectDeleted: "object.deleted",
    BatchOpened: "batch.opened",
    BatchCancelled: "batch.cancelled",
    BatchEnded: "batch.ended",
    LicenceAccepted: "licence.accepted",
    SecretSet: "secret.set",
    SecretDeleted: "secret.deleted",
}
TYPE_BY_KIND: Final[Mapping[str, type]] = {kind: cls for cls, kind in KIND_BY_TYPE.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the log.

    `sequence` is gapless from 1; `epoch` fences a control plane that lost the lead; `actor` is
    the key or component that caused it; `causation` the sequence of the event it answers, or 0.
    `organisation`, `project` and `site` are empty for events of the factory as a whole.
    """

    sequence: int
    epoch: int
    at_ns: int
    actor: str
    payload: Payload
    organisation: str = ""
    project: str = ""
    site: str = ""
    causation: int = 0
    schema: int = SCHEMA_VERSION
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The payload's stable name."""
        return KIND_BY_TYPE[type(self.payload)]

"""Current rows as people and programs read them: what the store keeps and the API answers.

A view is derived from events and can always be rebuilt from them; nothing decides from a view.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moulin.domain.health import Symptom, Verdict
from moulin.domain.reasons import Reason
from moulin.domain.usage import Charge, Usage
from moulin.domain.workload import Scaling, WorkloadSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """One task of a unit's latest attempt.

    `cpu_ns` and `memory_bytes_max` are what was last read of it, 0 before anything was; what a task
    of `cpu_milli` could have used at most is its time from start to end. Of a leased node, `address`
    is where one logs in. Where somebody asked why: `job` is what the queue that its engine put it into
    calls it, and `waits_for` that queue's own word for why it has not begun, expected at `expected_ns`.
    It runs on the machine `host` where its node only stands for one.
    """

    rank: int
    step: str
    node: str
    zone: str
    devices: tuple[int, ...] = ()
    phase: str = ""
    exit_code: int | None = None
    is_ready: bool = False
    address: str = ""
    cpu_milli: int = 0
    cpu_ns: int = 0
    memory_bytes_max: int = 0
    started_at_ns: int = 0
    ended_at_ns: int = 0
    memory_bytes: int = 0
    job: str = ""
    waits_for: str = ""
    expected_ns: int = 0
    host: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptView:
    """One try of a unit: what its tasks held and what they used of it, summed over them.

    `cpu_held_ns` is CPU time held until its end, or until `read_at_ns` while it runs. `memory_bytes`
    is what each task may use, `memory_bytes_max` the most that one of them did. `unread` names what
    nobody could read, so that its figure means nothing: start, cpu, memory, accelerators.
    """

    attempt: str
    generation: int
    state: str
    placed_at_ns: int = 0
    started_at_ns: int = 0
    ended_at_ns: int = 0
    read_at_ns: int = 0
    stop_cause: str = ""
    tasks: int = 1
    cpu_used_ns: int = 0
    cpu_held_ns: int = 0
    memory_bytes_max: int = 0
    memory_bytes: int = 0
    accelerators: int = 0
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitView:
    """One unit (a job's gang, an endpoint's replica, an array's element) with its latest attempt.

    `replica` is waiting, starting, ready, draining or stopped; empty for a unit that serves nobody.
    `revision` says which of its endpoint's specs a replica serves. `restarts` are the attempts before
    this one, `is_check` says that it only checks the nodes before the unit starts, `choice` which of its alternatives it was given. Of an array, `index` is this element's
    and `reason` why it ended. `attempts` are the last few of them, this one included, oldest first; an
    array's row has them of elements that were tried again, as `tasks` say all of the others.
    """

    unit: int
    generation: int
    state: str
    attempt: str = ""
    tasks: tuple[TaskView, ...] = ()
    replica: str = ""
    revision: int = 1
    restarts: int = 0
    choice: int = 0
    index: int | None = None
    reason: Reason | None = None
    is_check: bool = False
    attempts: tuple[AttemptView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadView:
    """A workload's current row. Times are ns UTC, 0 when not yet; `sequence` is its last event.

    An endpoint has `units_wanted` replicas of `revision` when it is as it shall be. Of an array,
    `counts` has how many elements are in each state, and `units` a few: those that run or failed
    before others. `eligible_at_ns` is since when nothing but room and order keeps it.
    """

    id: str
    kind: str
    name: str
    organisation: str
    project: str
    state: str
    spec: WorkloadSpec
    submitted_by: str
    submitted_at_ns: int
    started_at_ns: int = 0
    ended_at_ns: int = 0
    reasons: tuple[Reason, ...] = ()
    units: tuple[UnitView, ...] = ()
    reserved_neur: int = 0
    spent_neur: int = 0
    sequence: int = 0
    units_wanted: int = 1
    revision: int = 1
    scaling: Scaling | None = None
    is_held: bool = False
    eligible_at_ns: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredView:
    """A declared object's current row; `body` is its wire form."""

    kind: str
    name: str
    organisation: str
    managed_by: str
    body: Mapping[str, object]
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptView:
    """A receipt's row: the usage, its charge and its place in the evidence log."""

    id: str
    organisation: str
    project: str
    usage: Usage
    charge: Charge
    origin: str
    leaf_index: int
    issued_at_ns: int
    salt_hex: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIntervalView:
    """Where one node's reading went over one interval."""

    node: str
    zone: str
    site: str
    start_ns: int
    end_ns: int
    energy_mj: int
    allocated_mj: int
    idle_mj: int
    unattributed_mj: int
    overhead_mj: int
    method: str
    quality: str
    uncertainty_ppm: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceView:
    """A project's money: limit (-1 none), spent, held for workloads, held by gateways."""

    project: str
    organisation: str
    budget_neur: int
    spent_neur: int
    reserved_neur: int
    granted_neur: int

    @property
    def is_spent(self) -> bool:
        """Whether its charges have used up its whole budget, so that nothing of it is started."""
        return 0 <= self.budget_neur <= self.spent_neur


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyRecord:
    """The first answer to a key: repeated with the same body hash, it is given again."""

    project: str
    key: str
    body_hash: str
    status: int
    body: str
    created_at_ns: int
    organisation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node's current row; `symptoms` are present ones, `health_reason` why it is not healthy.

    `evidence` is what put it into quarantine. `taken_*` is what work holds there that is not Moulin's,
    part of what is held; nothing new is put where its engine has `closed_because`. The node last passed
    a check with others at `fit_at_ns`, and failed one lately together with `doubted_with`. `lacks` are
    words of `moulin.domain.needs.Need`: what needs one of them is never put there. One that
    `is_watched_only` is a machine whose room others stand for: its amounts count in theirs.
    """

    node: str
    pool: str
    zone: str
    engine: str
    machine_class: str
    cpu_milli: int
    cpu_milli_held: int
    memory_bytes: int
    memory_bytes_held: int
    accelerators: int = 0
    accelerators_held: int = 0
    is_reachable: bool = True
    cpu_ids: tuple[int, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    health: Verdict = Verdict.HEALTHY
    health_reason: Reason | None = None
    symptoms: tuple[Symptom, ...] = ()
    evidence: tuple[Symptom, ...] = ()
    taken_cpu_milli: int = 0
    taken_memory_bytes: int = 0
    taken_accelerators: int = 0
    closed_because: str = ""
    fit_at_ns: int = 0
    doubted_with: tuple[str, ...] = ()
    is_watched_only: bool = False
    lacks: tuple[str, ...] = ()

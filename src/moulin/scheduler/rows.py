"""The mutable rows a state is made of: workloads, their units, attempts and tasks.

Rows are changed by the fold alone. Everyone else reads them.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from moulin.domain.ids import AttemptId, NodeId, StepId, WorkloadId
from moulin.domain.observation import Claim, TaskPhase
from moulin.domain.plan import StopCause
from moulin.domain.reasons import Reason
from moulin.domain.snapshot import EndpointLoad
from moulin.domain.views import AttemptView
from moulin.domain.workload import (
    FINAL_WORKLOAD_STATES,
    LIVE_ATTEMPT_STATES,
    AfterWhen,
    AttemptState,
    Resources,
    Scaling,
    Submission,
    WorkloadSpec,
    WorkloadState,
    choices_of,
)
from moulin.scheduler.demand import Demand


@dataclass(slots=True, kw_only=True)
class TaskRow:
    """One task and what it holds on its node until its end is proved.

    `phase` is None until an engine was seen to have the task. `is_seen` says that it was once
    starting or running, so that ABSENT means lost and not "not started yet". `is_lasting` says that
    no time limit will end it, so that nobody may count on what it holds. `metered_ns` is until when
    what it used is known (`is_unread`: until when nobody could read it), `cpu_metered_ns` its counter
    then; `quiet_since_ns` since when it has used next to nothing of what it holds, 0 while it uses it
    or nobody knows. `host` is the machine it runs on, where its node only stands for one.
    """

    step: StepId
    attempt: AttemptId
    rank: int
    node: NodeId
    devices: tuple[int, ...]
    cpu_milli: int
    memory_bytes: int
    is_lasting: bool = False
    phase: TaskPhase | None = None
    is_seen: bool = False
    is_ended: bool = False
    claim: Claim | None = None
    exit_code: int | None = None
    started_at_ns: int = 0
    ended_at_ns: int = 0
    address: str = ""
    is_ready: bool = False
    ready_since_ns: int = 0
    cpu_ns: int = 0
    memory_bytes_max: int = 0
    evidence: str = ""
    metered_ns: int = 0
    cpu_metered_ns: int = 0
    is_unread: bool = False
    quiet_since_ns: int = 0
    host: NodeId | None = None

    @property
    def is_success(self) -> bool:
        """Whether the program ended by itself with status 0."""
        return self.phase is TaskPhase.EXITED and self.exit_code == 0


@dataclass(slots=True, kw_only=True)
class AttemptRow:
    """One try of one unit.

    `stop_cause` is set once a stop is decided; the attempt stays live until every task is proved
    ended. `broken_rank` is the rank that first ended without success, -1 for none. `port` is the
    gang's rendezvous port, 0 for a single task. `choice` says which alternative it was given. With
    `check_s` it is not the unit but the check of its nodes, of which there were `checks_before`.
    `ends_at_ns` is when its time ends, known from when it runs, 0 for never: of `limit_ends_ns`, by its own
    limit, and of a replica `wall_ns`, by what its engine said last, the sooner one. `preempted_by` is the
    workload that it gives way to.
    """

    id: AttemptId
    workload: str
    unit: int
    generation: int
    placed_at_ns: int
    tasks: list[TaskRow] = field(default_factory=list)
    state: AttemptState = AttemptState.PLACED
    stop_cause: StopCause | None = None
    grace_s: int = 0
    ends_at_ns: int = 0
    limit_ends_ns: int = 0
    wall_ns: int = 0
    started_at_ns: int = 0
    ended_at_ns: int = 0
    tasks_live: int = 0
    broken_rank: int = -1
    port: int = 0
    choice: int = 0
    check_s: int = 0
    checks_before: int = 0
    stop_decided_ns: int = 0
    preempted_by: str = ""

    @property
    def is_check(self) -> bool:
        """Whether it is the check of its unit's nodes."""
        return self.check_s > 0

    @property
    def restarts(self) -> int:
        """How often its unit was started before."""
        return self.generation - 1 - self.checks_before

    @property
    def is_live(self) -> bool:
        """Whether it still holds anything."""
        return self.state in LIVE_ATTEMPT_STATES


@dataclass(slots=True, kw_only=True)
class UnitRow:
    """One unit: a job's gang or an endpoint's replica.

    `generation` is that of `attempt`, or of the next one while `is_waiting`. `failures` and
    `losses` count ended attempts, `checks` those that only checked its nodes; an endpoint's start again at zero after a healthy minute.
    `revision` is the endpoint's spec it serves. `is_leaving` marks a replica that is to go, and
    `is_retired` one that went (its generations are never used again). `is_expiring` marks one whose
    time ends soon, so that it has a successor; `asked_at_ns` is since when that is wanted, 0 once it runs.

    A waiting unit is in a line, or backs off, or `is_withheld` until its workload may go on. Of an
    array, `final` is the end of this element, `reason` why, and `is_stopping` that it was asked for.
    `past` are the last few attempts before `attempt`, oldest first, `preemptions` how many of all
    gave way to others.
    """

    unit: int
    generation: int = 1
    attempt: AttemptId | None = None
    revision: int = 1
    is_waiting: bool = True
    is_leaving: bool = False
    is_retired: bool = False
    is_expiring: bool = False
    asked_at_ns: int = 0
    is_withheld: bool = False
    is_stopping: bool = False
    not_before_ns: int = 0
    failures: int = 0
    losses: int = 0
    checks: int = 0
    final: WorkloadState | None = None
    reason: Reason | None = None
    past: list[AttemptView] = field(default_factory=list)
    preemptions: int = 0


class Peak(NamedTuple):
    """A number of replicas that load asked for, until `until_ns`."""

    replicas: int
    until_ns: int


@dataclass(slots=True, kw_only=True)
class Revision:
    """A spec that an endpoint had, and what each replica of it needs."""

    spec: WorkloadSpec
    demand: Demand


@dataclass(slots=True, kw_only=True)
class Serving:
    """What an endpoint is besides a workload.

    `former` are earlier specs that a replica still serves or that somebody may go back to, `before`
    the last of them. `wish` is what the reported load asks for, `peaks` what it asked for before:
    ever less, ever later. `since_ns` is the last change of the number or the spec. `loads` are how long
    the last few replicas took to be ready from when they ran, in ns, and `pools` where replicas ran.
    """

    scaling: Scaling | None
    revision: int = 1
    revision_last: int = 1
    before: int = 0
    former: dict[int, Revision] = field(default_factory=dict)
    wish: int = 0
    requests: int = 0
    peaks: list[Peak] = field(default_factory=list)
    since_ns: int = 0
    loads: tuple[int, ...] = ()
    pools: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class PromiseRow:
    """Nodes kept for a unit while those that give way to it end."""

    nodes: tuple[NodeId, ...]
    attempts: tuple[AttemptId, ...]
    until_ns: int


@dataclass(slots=True, kw_only=True)
class DrainRow:
    """A replica that gets no new request; `left` are gateway epochs that know, True once idle."""

    cause: StopCause
    decided_at_ns: int
    until_ns: int
    left: dict[tuple[str, int], bool] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class LoadRow:
    """What a gateway epoch last reported, by endpoint."""

    at_ns: int
    endpoints: dict[WorkloadId, EndpointLoad] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class WorkloadRow:
    """One workload. `units_wanted` follows scaling; `sequence` is the last event that changed it.

    `submission` and `demand` are those of the present revision; `serving` is None for all but
    endpoints.

    `after_left` are workloads that have to end first, `after_failed` one that did not end as it had
    to. `eligible_at_ns` is since when nothing but room and order keeps it, 0 while something does.
    `withheld` are the units that wait outside any line, in order, `in_line` how many wait in one.
    Of an array, `open_units` counts the elements without an end, and `due_units` are those that a
    decision has to look at.
    """

    submission: Submission
    demand: Demand
    units_wanted: int
    time_limit_s: int
    reserved_neur: int = 0
    spent_neur: int = 0
    state: WorkloadState = WorkloadState.ADMITTED
    units: list[UnitRow] = field(default_factory=list)
    stop_requested_by: str = ""
    started_at_ns: int = 0
    ended_at_ns: int = 0
    reasons: tuple[Reason, ...] = ()
    sequence: int = 0
    attempts_live: int = 0
    attempts_running: int = 0
    serving: Serving | None = None
    is_held: bool = False
    after_left: dict[WorkloadId, AfterWhen] = field(default_factory=dict)
    after_failed: WorkloadId | None = None
    eligible_at_ns: int = 0
    withheld: list[int] = field(default_factory=list)
    in_line: int = 0
    open_units: int = 0
    due_units: dict[int, None] = field(default_factory=dict)

    def spec_of(self, unit: UnitRow) -> WorkloadSpec:
        """Return the spec that a unit was made from."""
        former = self.serving.former.get(unit.revision) if self.serving else None
        return former.spec if former is not None else self.submission.spec

    def demand_of(self, unit: UnitRow) -> Demand:
        """Return what a unit needs."""
        former = self.serving.former.get(unit.revision) if self.serving else None
        return former.demand if former is not None else self.demand

    def resources_of(self, attempt: AttemptRow) -> Resources:
        """Return what each task of an attempt was given, of the alternatives that would do."""
        return choices_of(self.spec_of(self.units[attempt.unit]))[attempt.choice]

    @property
    def is_final(self) -> bool:
        """Whether nothing can happen to it any more."""
        return self.state in FINAL_WORKLOAD_STATES

    @property
    def is_lasting(self) -> bool:
        """Whether it lasts until somebody ends it; an endpoint's time limit is each replica's."""
        return self.time_limit_s == 0 or self.serving is not None

    @property
    def is_array(self) -> bool:
        """Whether its units end on their own."""
        return self.submission.spec.array is not None

    @property
    def is_eligible(self) -> bool:
        """Whether nothing but room and order keeps it."""
        return not (self.is_held or self.after_left or self.after_failed)

    @property
    def at_most(self) -> int:
        """How many of its units may hold something at once, 0 for any number."""
        array = self.submission.spec.array
        return array.at_most if array is not None else 0

    @property
    def deadline_at_ns(self) -> int:
        """The time by which it must have been placed, 0 for none."""
        deadline_s = self.submission.spec.when.deadline_s
        return self.submission.submitted_at_ns + deadline_s * 10**9 if deadline_s else 0


@dataclass(slots=True)
class Held:
    """What a project holds now."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    accelerators: int = 0
    workloads: int = 0

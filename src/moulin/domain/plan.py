"""What a decision is made of: placements, stops and outcomes, as immutable values.

A plan leaves engines nothing to choose: the nodes, devices and names of every step are in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from moulin.domain.health import Verdict
from moulin.domain.ids import AttemptId, NodeId, OrganisationId, ProjectId, StepId, WorkloadId
from moulin.domain.reasons import Reason
from moulin.domain.workload import (
    EndpointSpec,
    LeaseSpec,
    Resources,
    TaskTemplate,
    WorkloadState,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlacement:
    """One task on one node; `devices` are the node's device indices it holds."""

    rank: int
    node: NodeId
    devices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Start one unit of a workload as a whole; `choice` says which of its alternatives it gets.

    With `check_s` start the check of its nodes instead, for so long at most.
    """

    attempt: AttemptId
    workload: WorkloadId
    unit: int
    generation: int
    tasks: tuple[TaskPlacement, ...]
    choice: int = 0
    check_s: int = 0


class StopCause(StrEnum):
    """Why a running attempt is stopped."""

    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    TIME_LIMIT = "time_limit"
    SCALED_IN = "scaled_in"
    GANG_BROKEN = "gang_broken"
    BUDGET = "budget"
    ZONE_CLOSED = "zone_closed"
    ROLLED_OUT = "rolled_out"
    ROLLED_OVER = "rolled_over"
    UNHEALTHY = "unhealthy"
    IDLE = "idle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Stop every live task of an attempt, politely for `grace_s`, then by force."""

    attempt: AttemptId
    cause: StopCause
    grace_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Let an endpoint have another number of replicas; `reason` says what its load asks for."""

    workload: WorkloadId
    replicas: int
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Send an attempt no new request; it stops when it has none left, or at `until_ns`."""

    attempt: AttemptId
    cause: StopCause
    until_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Succeed:
    """Start the successor of a replica whose own time ends at `ends_at_ns`."""

    attempt: AttemptId
    ends_at_ns: int
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeue:
    """Let a unit wait again, not before `not_before_ns`, under the next generation."""

    workload: WorkloadId
    unit: int
    generation: int
    not_before_ns: int
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Give a workload its final state.

    `ended_at_ns` is when the last task of its last attempts ended, which can be long before that
    became known; 0 when the workload ends by this decision.
    """

    workload: WorkloadId
    state: WorkloadState
    reason: Reason | None = None
    ended_at_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishUnit:
    """Give one element of an array its final state; the others go on."""

    workload: WorkloadId
    unit: int
    state: WorkloadState
    reason: Reason | None = None
    ended_at_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Preempt:
    """Let attempts of lower priority give way to a unit, and keep these nodes for it until then.

    Each of the attempts has a `Stop` of its own. What is not placed by `until_ns` lost its chance.
    """

    workload: WorkloadId
    unit: int
    nodes: tuple[NodeId, ...]
    attempts: tuple[AttemptId, ...]
    until_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Give a node another verdict."""

    node: NodeId
    verdict: Verdict
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything one cycle decided from one state.

    `input_sequence` is the last event the state had folded; a plan made from another sequence is
    refused. Order within each tuple is the order of decision.
    """

    now_ns: int
    input_sequence: int
    places: tuple[Place, ...] = ()
    stops: tuple[Stop, ...] = ()
    requeues: tuple[Requeue, ...] = ()
    finishes: tuple[Finish, ...] = ()
    scales: tuple[Scale, ...] = ()
    drains: tuple[Drain, ...] = ()
    unit_finishes: tuple[FinishUnit, ...] = ()
    judgements: tuple[Judge, ...] = ()
    successions: tuple[Succeed, ...] = ()
    preemptions: tuple[Preempt, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether applying the plan would change nothing."""
        ends = (self.stops, self.requeues, self.finishes, self.unit_finishes)
        replicas = (self.scales, self.drains, self.successions)
        return not any((self.places, self.judgements, *replicas, *ends))


@dataclass(frozen=True, slots=True, kw_only=True)
class StartStep:
    """All an engine needs to start one task; the same step id is started at most once.

    `nodes` lists the gang's nodes in rank order, so `nodes[rank]` is this task's.
    `env` holds what the control plane adds to the task's own environment. The control plane itself ends
    a task at its `time_limit_s` (0: none); an engine may take it as a hint. With a
    `lease` it lets people log in instead of running `task`. `secrets` and
    `secret_files` map variables to values in the clear; they reach the task and nothing else.
    `bundle_path` is where the control plane has the task's bundle.
    """

    step: StepId
    attempt: AttemptId
    workload: WorkloadId
    organisation: OrganisationId
    project: ProjectId
    unit: int
    generation: int
    rank: int
    nodes: tuple[NodeId, ...]
    devices: tuple[int, ...]
    resources: Resources
    task: TaskTemplate
    endpoint: EndpointSpec | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    time_limit_s: int = 0
    stop_grace_s: int = 10
    stop_signal: str = "TERM"
    lease: LeaseSpec | None = None
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret_files: Mapping[str, str] = field(default_factory=dict, repr=False)
    bundle_path: str = ""

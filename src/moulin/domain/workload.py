"""What a tenant asks for: a workload of one of four kinds, and the states it passes through.

Every field a later engine, invoice or audit would miss is here from the first version, even where
the first scheduler ignores it; `docs/decisions` says which.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from moulin.domain.ids import OrganisationId, ProjectId, WorkloadId
from moulin.domain.model import Ability


class WorkloadKind(StrEnum):
    """The four things a factory sells besides tokens."""

    JOB = "job"
    ENDPOINT = "endpoint"
    LEASE = "lease"
    SESSION = "session"


class WorkloadState(StrEnum):
    """Where a workload stands; ADMITTED means waiting for a placement."""

    ADMITTED = "admitted"
    PLACED = "placed"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"


class AttemptState(StrEnum):
    """Where one try of one unit stands; LOST means its engine proved that it is gone."""

    PLACED = "placed"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    LOST = "lost"


# Seven days: long enough to look after a weekend, short enough that disks and secrets do not pile up.
RETENTION_S_DEFAULT: Final = 7 * 86400
# An array is one row and one hold: beyond this, several arrays are kinder to everybody.
ARRAY_SIZE_MAX: Final = 10_000
ARRAY_INDEX_MAX: Final = 10**9
AFTER_MAX: Final = 100
ALTERNATIVES_MAX: Final = 8
STOP_SIGNALS: Final = ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2")
FINAL_WORKLOAD_STATES: Final = frozenset(
    {
        WorkloadState.SUCCEEDED,
        WorkloadState.FAILED,
        WorkloadState.CANCELLED,
        WorkloadState.REFUSED,
    }
)
LIVE_ATTEMPT_STATES: Final = frozenset({AttemptState.PLACED, AttemptState.RUNNING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What each task of a workload holds on its node."""

    cpu_milli: int = 1000
    memory_bytes: int = 512 * 10**6
    accelerator_class: str = ""
    accelerators: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where a workload may run; empty means anywhere its organisation may be served.

    `countries` are ISO 3166-1 alpha-2 codes. A zone whose country is only guessed never matches.
    """

    countries: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """How patient a workload is; `deadline_s` counts from submission, 0 means none."""

    deadline_s: int = 0
    is_flexible: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often a unit is tried; `attempts_max` counts the first try."""

    attempts_max: int = 1
    backoff_s: int = 1


class AfterWhen(StrEnum):
    """Which end of another workload lets one start: a success, or whatever end it has."""

    OK = "ok"
    ANY = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """Another workload that has to end first: by its id, or as asked for the newest of that name."""

    workload: str
    when: AfterWhen = AfterWhen.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class JobArray:
    """A job of `size` elements that start, end and are retried on their own, each with an index.

    Indices are `first`, `first + step` and so on, or those `listed`, least first. At most `at_most` elements
    hold anything at one time; 0 means as many as there is room for.
    """

    size: int
    first: int = 0
    step: int = 1
    listed: tuple[int, ...] = ()
    at_most: int = 0

    def index_of(self, unit: int) -> int:
        """Return the index of the element that unit `unit` is."""
        return self.listed[unit] if self.listed else self.first + unit * self.step

    def units_of(self, indices: Collection[int]) -> tuple[int, ...]:
        """Return the units that have these indices, in order; what is no index is left out."""
        return tuple(unit for unit in range(self.size) if self.index_of(unit) in indices)


class OutputsWhen(StrEnum):
    """After which end of its program a task's outputs are saved."""

    SUCCESS = "success"
    ALWAYS = "always"


# What a task copies, each a file or a folder; and how both sides of a copy are written.
COPIES_MAX: Final = 100
PLACE: Final = r"(?!(?:.*/)?\.{1,2}(?:/|$))[^/\x00-\x1f\x7f][^\x00-\x1f\x7f]{0,254}"
ADDRESS: Final = (
    r"(?:s3://[a-z0-9][a-z0-9.-]{1,62}(?:/[^\x00-\x1f\x7f]*)?|(?:file://)?/[^/\x00-\x1f\x7f]"
    r"[^\x00-\x1f\x7f]*)"
)


# Of the CPU it holds: a notebook that nobody uses takes less.
IDLE_SHARE_PPM_DEFAULT: Final = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleStop:
    """Stop a job that has used next to nothing for `after_s`.

    Next to nothing is less than `share_ppm` millionths of the CPU time that each task holds, and less
    than half a CPU whatever it holds: a task with one busy thread is never idle.
    """

    after_s: int
    share_ppm: int = IDLE_SHARE_PPM_DEFAULT


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTemplate:
    """The program each task runs; `command` is an argv, a job file's `run` becomes `sh -c`.

    `secrets` map variables to names of the project's secrets; those of `secret_files` hold the path
    of a file with the value. `bundle` is the SHA-256 of a packed folder that the project keeps: each
    task starts in a copy of its own, and `workdir` is empty then; otherwise that is a path on the nodes.

    `inputs` are copied from addresses to places below the working directory before it starts,
    `outputs` from places to addresses after it has ended as `outputs_when` says.
    """

    command: tuple[str, ...]
    setup: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""
    image: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict)
    secret_files: Mapping[str, str] = field(default_factory=dict)
    bundle: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    outputs_when: OutputsWhen = OutputsWhen.SUCCESS


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How an endpoint's number of replicas follows its load.

    One replica is wanted for every `target_requests` under way or waiting (0: as many as a replica
    serves at once), and one more while a request waits longer than `target_queue_s`. What was
    wanted is kept for `stabilise_s`. Where `replicas_min` is 0, all go after `idle_s` without a
    request; those that then come are held for `cold_start_s` at most.
    """

    replicas_min: int = 0
    replicas_max: int = 1
    target_requests: int = 0
    target_queue_s: int = 5
    stabilise_s: int = 120
    idle_s: int = 600
    cold_start_s: int = 300


# Long answers of slow models take minutes; what is still under way then is cut.
DRAIN_S_DEFAULT: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSpec:
    """A model behind an address; `is_public` offers it to every organisation of the factory.

    `replicas` is how many it starts with; without `scaling`, how many it keeps. A replica that is
    to go gets no new request and has `drain_s` to finish those it has.

    `fallbacks` name endpoints that serve in its place, in order, when none of its replicas can.
    `ability`, `infill` and what is left of `variant` are filled in at admission from the catalogue.
    """

    model: str
    variant: str = ""
    replicas: int = 1
    context_tokens: int = 4096
    parallel_requests: int = 2
    is_public: bool = False
    ability: Ability = Ability.GENERATE
    infill: tuple[str, ...] = ()
    scaling: Scaling | None = None
    drain_s: int = DRAIN_S_DEFAULT
    fallbacks: tuple[str, ...] = ()


# Time enough to save what is open; who leases for less is told when a quarter is left.
LEASE_WARNING_S_DEFAULT: Final = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSpec:
    """Who may log in to leased nodes: public keys as OpenSSH writes them, without options.

    Who is logged in is told `warn_s` before the end.
    """

    ssh_keys: tuple[str, ...]
    warn_s: int = LEASE_WARNING_S_DEFAULT


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """One workload as asked for.

    `nodes` is the gang size of a job or lease (tasks that start together or not at all).
    `reservation` names an advance reservation; `managed_by` the file or tool that owns the
    object; `retention_s` how long logs and the tasks' own files are kept after the end;
    `time_limit_s` 0 means the project's default for jobs and none for endpoints, whose replicas each
    have so long before another follows. `priority` is
    0..100, higher first.

    `alternatives` are other resources that would do, in order of preference, where `resources` do
    not fit now. What is in `after` has to end before it may start, and `is_held` keeps it until
    somebody releases it. `stop_signal` is what a program is asked to end with, `stop_grace_s`
    before it is made to. With `is_notified` its project's webhook is told of its end. `idle_stop` ends
    a job that does nothing.

    A lease holds whole nodes, each at least as large as `resources`; with a `lease` people log in
    there, else it runs its `task`.
    """

    kind: WorkloadKind
    name: str
    resources: Resources = field(default_factory=Resources)
    nodes: int = 1
    task: TaskTemplate | None = None
    endpoint: EndpointSpec | None = None
    where: Where = field(default_factory=Where)
    when: When = field(default_factory=When)
    retry: Retry = field(default_factory=Retry)
    time_limit_s: int = 0
    priority: int = 50
    labels: Mapping[str, str] = field(default_factory=dict)
    retention_s: int = RETENTION_S_DEFAULT
    reservation: str = ""
    managed_by: str = ""
    stop_grace_s: int = 10
    alternatives: tuple[Resources, ...] = ()
    array: JobArray | None = None
    after: tuple[After, ...] = ()
    is_held: bool = False
    stop_signal: str = "TERM"
    is_notified: bool = False
    lease: LeaseSpec | None = None
    idle_stop: IdleStop | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A spec with its owner; `id` is drawn at the edge so that a repeated command is recognised."""

    id: WorkloadId
    organisation: OrganisationId
    project: ProjectId
    spec: WorkloadSpec
    submitted_by: str
    submitted_at_ns: int


def units_wanted(spec: WorkloadSpec) -> int:
    """Return how many units it has: replicas of an endpoint, elements of an array, else one gang."""
    if spec.endpoint is not None:
        return spec.endpoint.replicas
    return spec.array.size if spec.array is not None else 1


def choices_of(spec: WorkloadSpec) -> tuple[Resources, ...]:
    """Return all resources that would do, the preferred ones first."""
    return (spec.resources, *spec.alternatives)

"""What engines report of tasks and nodes: raw readings, never conclusions.

UNREACHABLE is an absence of knowledge; only EXITED and GONE are evidence of an end (DESIGN rule 7).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from moulin.domain.factory import EnergyClass
from moulin.domain.ids import NodeId, StepId
from moulin.domain.needs import Need


class TaskPhase(StrEnum):
    """What an engine can say of a step. ABSENT: this engine never started it (positive evidence)."""

    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"
    GONE = "gone"
    ABSENT = "absent"
    UNREACHABLE = "unreachable"


# A task that is there, and the phases that are positive evidence of its end.
SEEN_PHASES: Final = frozenset({TaskPhase.STARTING, TaskPhase.RUNNING})
ENDED_PHASES: Final = frozenset({TaskPhase.EXITED, TaskPhase.GONE, TaskPhase.ABSENT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Proof of which process an engine owns for a step.

    A pid alone names nothing: `pid_started_ticks` (field 22 of /proc/PID/stat) and `boot_id` make
    it unique. Engines without processes put their own handle in `handle` and leave the rest zero.
    """

    handle: str = ""
    pid: int = 0
    pid_started_ticks: int = 0
    boot_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One reading of one step.

    `cpu_ns` is cumulative user + system time of the task's whole process tree. `exit_code` is the
    program's status when EXITED (128 + signal when a signal ended it). `address` is host:port of
    a server the task runs, `is_ready` whether that server answered its own readiness check.
    `evidence` says in a few words how an end is known. `host` is the machine it runs on, where that is
    another than the node it was placed on, as far as it is known. `wall_ns` is when the engine itself
    will end a task that runs, whatever is asked of it; 0 where nothing does, or that is not known.
    """

    step: StepId
    phase: TaskPhase
    at_ns: int
    claim: Claim | None = None
    exit_code: int | None = None
    started_at_ns: int = 0
    ended_at_ns: int = 0
    wall_ns: int = 0
    address: str = ""
    is_ready: bool = False
    cpu_ns: int = 0
    memory_bytes_max: int = 0
    evidence: str = ""
    host: NodeId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCapacity:
    """One machine as its engine sees it now.

    `cpu_ids` are the machine's CPU numbers that belong to this node (empty: not divided).
    `idle_mw` and `peak_mw` are milliwatts of the whole node; `power_source` says where they
    come from, `power_quality` and `power_uncertainty_ppm` how far to trust energy made from them.
    `taken_*` is what work that Moulin did not start holds there. Nothing new is put on a node that has
    a `closed_because`: its engine's words for why, such as that somebody drained it; whoever leases a
    node that `has_login` can log in. `time_limit_s` is
    how long a task may run there before the engine itself ends it, 0 where nothing does. Jobs and leases
    may ask for at most `asked_time_limit_s`, 0 where for any time. `lacks` is what
    its engine cannot carry there, so that no work that needs it is placed.
    A node that `is_exclusive` is given as a whole: whatever is on it, nothing is free there. One that
    `is_watched_only` is a machine behind others that stand for its room: it has health, and no work is
    placed on it.
    """

    node: NodeId
    cpu_milli: int
    memory_bytes: int
    machine_class: str
    accelerators: int = 0
    accelerator_class: str = ""
    boot_id: str = ""
    address: str = "127.0.0.1"
    cpu_ids: tuple[int, ...] = ()
    idle_mw: int = 0
    peak_mw: int = 0
    power_source: str = ""
    power_quality: EnergyClass = EnergyClass.CONSTANT
    power_uncertainty_ppm: int = 500_000
    is_reachable: bool = True
    taken_cpu_milli: int = 0
    taken_memory_bytes: int = 0
    taken_accelerators: int = 0
    closed_because: str = ""
    has_login: bool = False
    time_limit_s: int = 0
    lacks: tuple[Need, ...] = ()
    asked_time_limit_s: int = 0
    is_exclusive: bool = False
    is_watched_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LogChunk:
    """Bytes of a task's log from `cursor`; `next_cursor` continues, `is_end` when no more can come."""

    data: bytes
    next_cursor: int
    is_end: bool

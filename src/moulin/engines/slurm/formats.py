"""Reads what Slurm's commands print, in the forms of its versions; decides nothing from it.

`squeue --json` of 22.05 (v0.0.38) has plain numbers and one state; from 23.02 on numbers are objects
`{"set", "infinite", "number"}` and states are lists. `scontrol` prints `Name=value` lines, one
record a line with `-o`, the same in all versions. What a form lacks is empty or zero, never guessed.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from moulin.domain.errors import EngineUnavailable
from moulin.domain.slurmwords import expand_hosts, parse_slurm_time_s

MIB: Final = 1 << 20
NS_PER_S: Final = 1_000_000_000

# A job's base state; what else newer versions list beside it are flags.
PENDING: Final = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
STARTING: Final = frozenset({"CONFIGURING"})
RUNNING: Final = frozenset(
    {"RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
)
COMPLETED: Final = "COMPLETED"
LOST: Final = frozenset({"NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED", "LAUNCH_FAILED"})
ENDED: Final = frozenset(
    {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY", *LOST}
)
_STATES: Final = PENDING | STARTING | RUNNING | ENDED
COMPLETING: Final = "COMPLETING"
# What a partition that gives whole nodes says from 26.05 on, one each or those of a switch; of others
# a user's jobs may share a node.
WHOLE_NODES: Final = frozenset({"NODE", "TOPO"})
# States of a partition.
_CLOSED: Final = frozenset({"DRAIN", "INACTIVE"})

# Field of a job -> the names that versions gave it.
_JOB_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "id": ("job_id",),
    "name": ("name",),
    "comment": ("comment",),
    "user": ("user_name",),
    "partition": ("partition",),
    "nodes": ("nodes",),
    "reason": ("state_reason",),
    "description": ("state_description",),
    "cpus": ("cpus",),
    "node_count": ("node_count",),
    "submit": ("submit_time",),
    "start": ("start_time",),
    "end": ("end_time",),
    "time_limit": ("time_limit",),
    "memory_per_node": ("memory_per_node",),
    "memory_per_cpu": ("memory_per_cpu",),
}
# Where the accelerators of each node are written, the most exact first.
_GRES_FIELDS: Final = ("tres_per_node", "gres_detail")
# A type may begin with a digit, as 2080ti and 1g.5gb do; digits with nothing after them are a count.
_GRES: Final = re.compile(r"(?:gres[:/])?gpu(?::(?![0-9]+$)(\w[\w.-]*))?(?:[:=]([0-9]+))?")
_PAIR: Final = re.compile(r"(?:^|\s)([A-Za-z][A-Za-z0-9_/:]*)=")
_JOB: Final = re.compile(r"([0-9]+)(?:_[0-9]+)?")
_SPAN: Final = re.compile(r"([0-9]+)(?:-([0-9]+)(?::([0-9]+))?)?")
_ELEMENT_MAX: Final = 1 << 62
# What stands for no limit in forms that have no word for it, in minutes, as all 32 bits.
_UNLIMITED_S: Final = 60 * ((1 << 32) - 2)
_STATE_MARKS: Final = "*~#!%$@^-"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmJob:
    """One job as squeue shows it.

    `state` is the base state, `is_completing` says that its processes are still being ended;
    amounts are per node. `exit_code` and `signal` are those of its batch script. Of an array job
    `array` is its number; what still waits is one job with its elements in `waiting` (`3-9,12`), and
    each other one is a job of its own with its `element`. `reason` is what squeue shows, `reason_word` the
    one word of it; of a job that waits, `started_at_ns` is when Slurm reckons to start it, and of one that
    runs, `ended_at_ns` is when it will end it. It runs on `nodes`, and was submitted to run on
    `required_nodes` and no others, on none of `excluded_nodes`.
    """

    id: int
    name: str
    state: str
    array: int = 0
    element: int | None = None
    waiting: str = ""
    comment: str = ""
    user: str = ""
    partition: str = ""
    reason: str = ""
    reason_word: str = ""
    nodes: str = ""
    required_nodes: str = ""
    excluded_nodes: str = ""
    is_completing: bool = False
    exit_code: int = 0
    signal: int = 0
    cpus: int = 0
    memory_bytes: int = 0
    accelerators: int = 0
    submitted_at_ns: int = 0
    started_at_ns: int = 0
    ended_at_ns: int = 0
    time_limit_s: int = 0

    @property
    def key(self) -> str:
        """What Slurm's commands call it."""
        return str(self.id) if self.element is None else f"{self.array}_{self.element}"

    @property
    def wall_ns(self) -> int:
        """When Slurm will end it, as long as it runs; 0 for never. One that is suspended gets its time later."""
        is_timed = self.state == "RUNNING" and 0 < self.time_limit_s < _UNLIMITED_S
        return self.ended_at_ns if is_timed and not self.is_completing else 0

    @property
    def holds_nodes(self) -> bool:
        """Whether what it was given is not yet given back."""
        return self.state in RUNNING or self.state in STARTING or self.is_completing

    @property
    def has_ended(self) -> bool:
        """Whether no process of it is left."""
        return self.state in ENDED and not self.is_completing


class JobBook:
    """All jobs of one reading, found by what Slurm calls them: `12`, or `12_3` of an array."""

    def __init__(self, jobs: Iterable[SlurmJob] = ()) -> None:
        self._jobs = {job.key: job for job in jobs}

    def __len__(self) -> int:
        return len(self._jobs)

    def get(self, key: str) -> SlurmJob | None:
        """Return a job, None when it is not listed; of a waiting element the array that has it."""
        found = self._jobs.get(key)
        array, _, element = key.partition("_")
        if found is not None or not element:
            return found
        whole = self._jobs.get(array)
        return whole if whole is not None and is_among(int(element), whole.waiting) else None

    def all(self) -> tuple[SlurmJob, ...]:
        """Return every job, in Slurm's order."""
        return tuple(self._jobs.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmNode:
    """One node; `used_*` is what all jobs hold there, `flags` its state's words in lower case."""

    name: str
    address: str = ""
    flags: frozenset[str] = frozenset()
    reason: str = ""
    cpus: int = 0
    memory_bytes: int = 0
    accelerators: int = 0
    accelerator_type: str = ""
    used_cpus: int = 0
    used_memory_bytes: int = 0
    used_accelerators: int = 0
    partitions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmPartition:
    """One partition; `state` is Slurm's word for it, and `time_limit_s` 0 is none.

    `default_time_s` is what a job gets that asks for no time, 0: as long as the partition lets it. One
    that `is_exclusive` gives whole nodes, however little a job asks for.
    """

    name: str
    is_default: bool = False
    state: str = "UP"
    nodes: str = ""
    node_count: int = 0
    time_limit_s: int = 0
    default_time_s: int = 0
    is_exclusive: bool = False
    account: str = ""

    @property
    def is_closed(self) -> bool:
        """Whether Slurm refuses jobs for it. One that is DOWN takes them, and starts them when it is up."""
        return self.state in _CLOSED


def read_jobs(data: bytes) -> tuple[SlurmJob, ...]:
    """Return the jobs of a `squeue --json`, in its order.

    Raises `EngineUnavailable` when it is no such thing, and when it says that it failed: without a
    controller 22.05 ends with status 0, no jobs, and a word among `errors`. Cost: O(bytes).
    """
    try:
        whole = json.loads(data)
        if not whole.get("errors"):
            return tuple(_job(body) for body in whole["jobs"])
        words = "; ".join(_words(error) for error in whole["errors"])
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise EngineUnavailable(
            f"read the output of squeue --json: {cause!r}",
            hint="Slurm 21.08 or later with its JSON serializer plugin is needed",
        ) from cause
    raise EngineUnavailable(
        f"read the jobs: Slurm says: {words}",
        hint="`scontrol ping` says whether the controller is up",
    )


def read_nodes(text: str) -> tuple[SlurmNode, ...]:
    """Return the nodes of a `scontrol show node -d -o`, in its order."""
    return tuple(_node(fields) for fields in records(text) if "NodeName" in fields)


def read_partitions(text: str, *, is_linear: bool = False) -> tuple[SlurmPartition, ...]:
    """Return the partitions of a `scontrol show partition -o`, in its order.

    With `is_linear` (`SelectType=select/linear`) nodes are whole unless a partition shares them.
    """
    return tuple(
        _partition(fields, is_linear=is_linear)
        for fields in records(text)
        if "PartitionName" in fields
    )


def find_partition(partitions: Iterable[SlurmPartition], wanted: str) -> SlurmPartition | None:
    """Return the partition of that name, of none the cluster's default; None when it is not there."""
    return next((p for p in partitions if (p.name == wanted if wanted else p.is_default)), None)


def no_partition(wanted: str) -> str:
    """Say that it is not there."""
    if wanted:
        return f"there is no partition {wanted!r}"
    return "Slurm names no partition as the default"


def read_accounting(text: str) -> dict[str, SlurmJob]:
    r"""Return the jobs of a `sacct -n -P -X -o JobID,JobName,State,ExitCode,Start,End` by name.

    >>> read_accounting("7_2|a|CANCELLED by 0|0:15|2026-01-01T00:00:00|Unknown\n")["7_2"].signal
    15
    """
    found: dict[str, SlurmJob] = {}
    for line in text.splitlines():
        fields = line.split("|")
        key = _JOB.fullmatch(fields[0])
        if len(fields) == 6 and key is not None:
            code, _, signal = fields[3].partition(":")
            found[fields[0]] = SlurmJob(
                id=int(key[1]),
                name=fields[1],
                state=fields[2].partition(" ")[0],
                exit_code=_integer(code),
                signal=_integer(signal),
            )
    return found


def records(text: str) -> Iterator[dict[str, str]]:
    r"""Yield the fields of each record; several lines of one record are joined first.

    >>> list(records("NodeName=n1 OS=Linux 6 #1 SMP State=IDLE\n   Reason=a b\n"))
    [{'NodeName': 'n1', 'OS': 'Linux 6 #1 SMP', 'State': 'IDLE', 'Reason': 'a b'}]
    """
    joined: list[str] = []
    for line in text.splitlines():
        if line[:1].isspace() and joined:
            joined[-1] += f" {line.strip()}"
        elif line.strip():
            joined.append(line.strip())
    for line in joined:
        starts = list(_PAIR.finditer(line))
        ends = [*(found.start() for found in starts[1:]), len(line)][: len(starts)]
        yield {
            found[1]: line[found.end() : end].strip()
            for found, end in zip(starts, ends, strict=True)
        }


def number(value: Any) -> int:
    """Return a number in either form; unset and infinite are 0.

    >>> number(7), number(None), number({"set": True, "infinite": False, "number": 7})
    (7, 0, 7)
    """
    if isinstance(value, Mapping):
        if not value.get("set", True) or value.get("infinite"):
            return 0
        value = value.get("number", 0)
    return int(value) if isinstance(value, int | float | str) and str(value).strip() else 0


def _is_set(value: Any) -> bool:
    """Say whether a number is there; element 0 of an array is, and no element is not."""
    return bool(value.get("set")) if isinstance(value, Mapping) else value is not None


def is_among(element: int, waiting: str) -> bool:
    """Say whether an element is one of those that an array still has waiting.

    >>> [is_among(n, "0,3-9:2%4") for n in (0, 1, 3, 4, 9)], is_among(7, "0-3,...")
    ([True, False, True, False, True], True)
    """
    return any(
        first <= element <= last and not (element - first) % step
        for first, last, step in _spans(waiting)
    )


@lru_cache(maxsize=4096)
def _spans(waiting: str) -> tuple[tuple[int, int, int], ...]:
    # Slurm cuts a long list short with `...` where it was not told otherwise: then any may be meant.
    if waiting.endswith("..."):
        return ((0, _ELEMENT_MAX, 1),)
    found = _SPAN.findall(waiting.partition("%")[0])
    return tuple((int(a), int(b or a), int(step or 1)) for a, b, step in found)


def gres_count(written: str) -> tuple[int, str]:
    """Return the number and type of GPUs in a text of generic resources.

    >>> gres_count("gpu:h100:8(S:0-1),gpu:a100:2,nvme:1"), gres_count("gres:gpu:2")
    ((10, 'h100'), (2, ''))
    >>> gres_count("gpu:2080ti:4"), gres_count("gpu:1g.5gb:7"), gres_count("gpu:3090=2")
    ((4, '2080ti'), (7, '1g.5gb'), (2, '3090'))
    """
    total, kind = 0, ""
    for part in re.sub(r"\([^)]*\)", "", written).split(","):
        found = _GRES.fullmatch(part.strip())
        if found is not None:
            total += int(found[2] or 1)
            kind = kind or found[1] or ""
    return total, kind


def _words(error: Any) -> str:
    if not isinstance(error, Mapping):
        return str(error)
    return str(error.get("description") or error.get("error") or "no reason")


def _job(body: Mapping[str, Any]) -> SlurmJob:
    fields = {
        name: next((body[key] for key in keys if key in body), "")
        for name, keys in _JOB_FIELDS.items()
    }
    state, is_completing = base_state(body.get("job_state"))
    element = body.get("array_task_id")
    exit_code, signal = _exit(body.get("exit_code"))
    nodes = max(1, number(fields["node_count"]))
    cpus = -(-number(fields["cpus"]) // nodes)
    per_node = number(fields["memory_per_node"]) or number(fields["memory_per_cpu"]) * cpus
    return SlurmJob(
        id=number(fields["id"]),
        name=str(fields["name"] or ""),
        state=state,
        array=number(body.get("array_job_id")),
        element=number(element) if _is_set(element) else None,
        waiting=str(body.get("array_task_string") or "") if not _is_set(element) else "",
        comment=_comment(fields["comment"]),
        user=str(fields["user"] or ""),
        partition=str(fields["partition"] or ""),
        reason=str(fields["description"] or fields["reason"] or "").replace("None", ""),
        reason_word=str(fields["reason"] or "").replace("None", ""),
        nodes=str(fields["nodes"] or ""),
        required_nodes=str(body.get("required_nodes") or ""),
        excluded_nodes=str(body.get("excluded_nodes") or ""),
        is_completing=is_completing,
        exit_code=exit_code,
        signal=signal,
        cpus=cpus,
        memory_bytes=per_node * MIB,
        accelerators=_job_accelerators(body),
        submitted_at_ns=number(fields["submit"]) * NS_PER_S,
        started_at_ns=number(fields["start"]) * NS_PER_S,
        ended_at_ns=number(fields["end"]) * NS_PER_S,
        time_limit_s=number(fields["time_limit"]) * 60,
    )


def _comment(value: Any) -> str:
    # 23.11 and later tell apart who commented.
    return str(value.get("job", "")) if isinstance(value, Mapping) else str(value or "")


def base_state(value: Any) -> tuple[str, bool]:
    """Return the base state in either form, and whether processes are still being ended."""
    words = [value] if isinstance(value, str) else [str(word) for word in value or ()]
    base = next((word for word in words if word in _STATES), "")
    is_completing = COMPLETING in words
    if base == "RUNNING" and STARTING & set(words):
        base = "CONFIGURING"  # of what waits for its nodes to boot, newer releases say both
    return base or ("COMPLETED" if is_completing else "RUNNING"), is_completing


def _exit(value: Any) -> tuple[int, int]:
    """Return exit code and signal; 22.05 gives the raw wait status, later an object."""
    if isinstance(value, Mapping):
        signal = value.get("signal") or {}
        found = signal.get("id", signal.get("signal_id")) if isinstance(signal, Mapping) else signal
        return number(value.get("return_code")), number(found)
    status = number(value)
    return status >> 8 & 0xFF, status & 0x7F


def _job_accelerators(body: Mapping[str, Any]) -> int:
    for name in _GRES_FIELDS:
        value = body.get(name)
        written = value[0] if isinstance(value, list) and value else value
        if isinstance(written, str) and written:
            return gres_count(written)[0]
    return 0


def _node(fields: Mapping[str, str]) -> SlurmNode:
    state = fields.get("State", "").lower().split("+")
    accelerators, kind = gres_count(fields.get("Gres", ""))
    used, _ = gres_count(fields.get("GresUsed", ""))
    marks = {"not_responding"} if "*" in fields.get("State", "") else set()
    return SlurmNode(
        name=fields["NodeName"],
        address=fields.get("NodeAddr") or fields["NodeName"],
        flags=frozenset({word.strip(_STATE_MARKS) for word in state} | marks),
        reason=fields.get("Reason", ""),
        cpus=_integer(fields.get("CPUEfctv") or fields.get("CPUTot")),
        memory_bytes=max(
            0, _integer(fields.get("RealMemory")) - _integer(fields.get("MemSpecLimit"))
        )
        * MIB,
        accelerators=accelerators,
        accelerator_type=kind,
        used_cpus=_integer(fields.get("CPUAlloc")),
        used_memory_bytes=_integer(fields.get("AllocMem")) * MIB,
        used_accelerators=used,
        partitions=tuple(fields["Partitions"].split(",")) if fields.get("Partitions") else (),
    )


def _partition(fields: Mapping[str, str], *, is_linear: bool) -> SlurmPartition:
    nodes = fields.get("Nodes", "")
    shared = fields.get("OverSubscribe") or fields.get("Shared") or "NO"
    return SlurmPartition(
        name=fields["PartitionName"],
        is_default=fields.get("Default") == "YES",
        state=fields.get("State", "UP").upper(),
        nodes="" if nodes == "(null)" else nodes,
        node_count=_integer(fields.get("TotalNodes")) or len(expand_hosts(nodes)),
        time_limit_s=parse_slurm_time_s(fields.get("MaxTime", "UNLIMITED")),
        default_time_s=parse_slurm_time_s(fields.get("DefaultTime", "NONE")),
        is_exclusive=shared.startswith("EXCLUSIVE")
        or fields.get("Exclusive") in WHOLE_NODES
        or fields.get("ExclusiveTopo") == "YES"
        or (is_linear and shared == "NO"),
    )


def _integer(written: str | None) -> int:
    found = re.match(r"[0-9]+", written or "")
    return int(found[0]) if found else 0

"""What a partition offers: its machines, or so many places on any of them; decides no placement.

An owned pool's nodes are Slurm's. A delegated pool offers one place for each machine, without saying
which: Slurm chooses, and what others hold is taken off the last places, so that sums are right. Its
machines are watched beside them, and jobs are kept away from those in quarantine.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from moulin.domain.health import Quarantine
from moulin.domain.ids import NodeId
from moulin.domain.needs import Need
from moulin.domain.observation import NodeCapacity
from moulin.domain.slurmwords import expand_hosts
from moulin.engines.slurm.classes import classes_by_type
from moulin.engines.slurm.formats import SlurmJob, SlurmNode, SlurmPartition
from moulin.engines.slurm.settings import SlurmSettings

# Words of a node's state that mean that nothing new may be put there, and that it does not answer.
CLOSING: Final = frozenset(
    {
        *("down", "drain", "drained", "draining", "fail", "failing", "error", "unknown", "future"),
        *("maint", "maintenance", "external", "reserved", "planned"),
        *("reboot", "reboot_issued", "reboot_requested"),
        *("not_responding", "no_respond", "invalid", "invalid_reg", "blocked", "perfctrs"),
        *("powering_down", "inval"),
    }
)
ABSENT: Final = frozenset({"down", "not_responding", "no_respond", "unknown"})
# A node that saves power, or is on its way up: Slurm wakes it for a job, and only for one. That it
# does not answer meanwhile means nothing.
_ASLEEP: Final = frozenset({"powered_down", "power_down", "powering_up"})
_SILENT: Final = frozenset({"not_responding", "no_respond"})
_HARMLESS: Final = frozenset({"planned", "reserved"})
_CPU: Final = 1000
_UP: Final = SlurmPartition(name="")
_NONE: Final[Mapping[NodeId, Quarantine]] = {}
_PLACE: Final = re.compile("[0-9]{5,}")


def places(
    nodes: Sequence[SlurmNode],
    jobs: Sequence[SlurmJob],
    ours: frozenset[int],
    settings: SlurmSettings,
    *,
    partition: SlurmPartition = _UP,
    time_limit_s: int = 0,
    lacks: tuple[Need, ...] = (),
    avoided: Mapping[NodeId, Quarantine] = _NONE,
) -> tuple[NodeCapacity, ...]:
    """Return what the pool offers, in the order of Slurm's node names, for `time_limit_s` each.

    `ours` are the numbers of jobs that this pool started; all else that is held is taken by others. On
    the `avoided` machines of a delegated pool there is no place.
    """
    own = _held_by_node([job for job in jobs if job.id in ours and job.holds_nodes])
    classes = classes_by_type(nodes, settings.accelerator_class)
    found = tuple(
        replace(
            _capacity(node, own.get(node.name, _NOTHING), settings, classes),
            time_limit_s=time_limit_s,
            asked_time_limit_s=partition.time_limit_s,
            lacks=lacks,
            is_exclusive=partition.is_exclusive,
        )
        for node in nodes
    )
    if partition.is_closed:
        why = f"partition {partition.name} is {partition.state} and takes no jobs"
        found = tuple(_closed(node, why) for node in found)
    if not settings.is_delegated:
        return found
    watched = tuple(_watched(node) for node in found) if settings.reads_nodes else ()
    offered = [
        _closed(node, f"in quarantine: {avoided[node.node].words}")
        if node.node in avoided
        else node
        for node in found
    ]
    return (*_anonymous(offered, settings.prefix), *watched)


def machine_of(node: str, prefix: str) -> str:
    """Return Slurm's name of a node, empty for a place on whichever machine.

    >>> machine_of("gpu-n7", "gpu-"), machine_of("gpu-00003", "gpu-")
    ('n7', '')
    """
    name = node.removeprefix(prefix)
    return "" if _PLACE.fullmatch(name) else name


_Held = tuple[int, int, int]
_NOTHING: Final[_Held] = (0, 0, 0)


def _held_by_node(jobs: Sequence[SlurmJob]) -> dict[str, _Held]:
    held: dict[str, _Held] = {}
    for job in jobs:
        for name in expand_hosts(job.nodes):
            cpus, memory, devices = held.get(name, _NOTHING)
            held[name] = (
                cpus + job.cpus,
                memory + job.memory_bytes,
                devices + job.accelerators,
            )
    return held


def _capacity(
    node: SlurmNode, own: _Held, settings: SlurmSettings, classes: Mapping[str, str]
) -> NodeCapacity:
    flags = node.flags - _SILENT if node.flags & _ASLEEP else node.flags
    closing = sorted((flags & CLOSING) - _HARMLESS)
    words = " ".join(closing)
    return NodeCapacity(
        has_login=not settings.is_delegated,  # of a place nobody knows whose machine it will be
        node=NodeId(f"{settings.prefix}{node.name}"),
        cpu_milli=node.cpus * _CPU,
        memory_bytes=node.memory_bytes,
        machine_class=settings.machine_class,
        accelerators=node.accelerators,
        accelerator_class=classes[node.accelerator_type] if node.accelerators else "",
        address=node.address,
        idle_mw=settings.idle_mw,
        peak_mw=settings.peak_mw,
        power_source="stated by the operator" if settings.peak_mw else "",
        is_reachable=not flags & ABSENT,
        closed_because=f"{words}: {node.reason}" if node.reason and words else words,
        taken_cpu_milli=max(0, node.used_cpus - own[0]) * _CPU,
        taken_memory_bytes=max(0, node.used_memory_bytes - own[1]),
        taken_accelerators=max(0, node.used_accelerators - own[2]),
    )


def calmed(now: Sequence[NodeCapacity], before: Sequence[NodeCapacity]) -> tuple[NodeCapacity, ...]:
    """Return `now` with only that taken which was taken before too.

    Jobs and nodes are two questions: a job of ours that starts or ends between them looks like
    somebody else's for one reading.
    """
    earlier = {node.node: node for node in before}
    return tuple(
        replace(
            node,
            taken_cpu_milli=min(node.taken_cpu_milli, past.taken_cpu_milli),
            taken_memory_bytes=min(node.taken_memory_bytes, past.taken_memory_bytes),
            taken_accelerators=min(node.taken_accelerators, past.taken_accelerators),
        )
        if (past := earlier.get(node.node)) is not None
        else node
        for node in now
    )


def _closed(node: NodeCapacity, why: str) -> NodeCapacity:
    return replace(node, closed_because="; ".join(filter(None, (node.closed_because, why))))


def _watched(node: NodeCapacity) -> NodeCapacity:
    """Return a machine whose room and power are offered, and held, by places."""
    return replace(
        node,
        is_watched_only=True,
        idle_mw=0,
        peak_mw=0,
        power_source="",
        taken_cpu_milli=0,
        taken_memory_bytes=0,
        taken_accelerators=0,
    )


def _anonymous(nodes: Sequence[NodeCapacity], prefix: str) -> tuple[NodeCapacity, ...]:
    """Return as many places, the largest first, what is closed or taken at the end."""
    ordered = sorted(
        nodes,
        key=lambda node: (
            bool(node.closed_because),
            not node.is_reachable,
            -node.accelerators,
            -node.cpu_milli,
            -node.memory_bytes,
            node.taken_cpu_milli,
            node.node,
        ),
    )
    return tuple(
        replace(node, node=NodeId(f"{prefix}{index:05d}"), address="")
        for index, node in enumerate(ordered)
    )

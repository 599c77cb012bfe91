"""Writes the operator file of a cluster that is there: what Slurm says, in the factory's words.

It reads what `scontrol` and `squeue` printed, as text or JSON, and decides only names. What the file
cannot say (jobs of others, nodes in several partitions) stands in it as a comment.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from moulin.domain.errors import InvalidSpec
from moulin.domain.slurmwords import expand_hosts, parse_slurm_time_s
from moulin.domain.words import duration, memory
from moulin.engines.slurm.formats import (
    MIB,
    WHOLE_NODES,
    SlurmJob,
    SlurmNode,
    SlurmPartition,
    gres_count,
    number,
    read_nodes,
    read_partitions,
)
from moulin.engines.slurm.tenants import name_of

NS_PER_S: Final = 1_000_000_000
CPU_CLASS: Final = "cpu-node"
_SHOWN: Final = 8
_LIVE: Final = ("PENDING", "RUNNING", "SUSPENDED", "CONFIGURING")

# Field of a node or partition -> the names that versions of the JSON gave it.
_NODE_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "address": ("address",),
    "cpus": ("effective_cpus", "cpus"),
    "memory": ("real_memory",),
    "reason": ("reason",),
    "gres": ("gres",),
    "partitions": ("partitions",),
}
_TIME_FIELDS: Final = (("maximums", "time"), ("max_time_limit",), ("maximum_time",))
_DEFAULT_TIME_FIELDS: Final = (("defaults", "time"), ("default_time_limit",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """What the operator says: the site, its country, how pools reach the cluster, known classes."""

    site: str
    country: str
    classes: Collection[str] = ()
    settings: Mapping[str, str] | None = None
    is_delegated: bool = False


def read_cluster_nodes(data: bytes) -> tuple[SlurmNode, ...]:
    """Return the nodes in the output of `scontrol show node`, plain, with -o or with --json.

    Raises `InvalidSpec` when there is none.
    """
    found = (
        tuple(_json_node(body) for body in _listed(data, "nodes"))
        if data.lstrip().startswith(b"{")
        else read_nodes(data.decode(errors="replace"))
    )
    if not found:
        raise InvalidSpec(
            "read the nodes of a cluster: there is none in it",
            hint="give the output of `scontrol show node`, with -o or --json or without",
        )
    return found


def read_cluster_partitions(data: bytes) -> tuple[SlurmPartition, ...]:
    """Return the partitions in the output of `scontrol show partition`, in any of its forms.

    Raises `InvalidSpec` when there is none.
    """
    found = (
        tuple(_json_partition(body) for body in _listed(data, "partitions"))
        if data.lstrip().startswith(b"{")
        else read_partitions(data.decode(errors="replace"))
    )
    if not found:
        raise InvalidSpec(
            "read the partitions of a cluster: there is none in it",
            hint="give the output of `scontrol show partition`, with -o or --json or without",
        )
    return found


def operator_file(
    nodes: Sequence[SlurmNode],
    partitions: Sequence[SlurmPartition],
    jobs: Sequence[SlurmJob],
    naming: Naming,
    *,
    tenants: Sequence[str] = (),
    remarks: Sequence[str] = (),
) -> str:
    """Return an operator file with a zone and a pool for each partition that has nodes.

    `tenants` are lines that declare who may use it, `remarks` comments about the whole cluster.

    Order:  as Slurm lists partitions. Cost: O(nodes · partitions + jobs).
    """
    by_partition = {
        partition: [node for node in nodes if partition.name in node.partitions]
        for partition in partitions
    }
    filled = {each: held for each, held in by_partition.items() if held}
    classes = {each: _machine_class(held, naming.classes) for each, held in filled.items()}
    lines = [*_header(nodes, filled, jobs), *remarks, "", *tenants, *_sites(naming), "", "zones:"]
    lines += [f"  {name_of(each.name)}: {{site: {naming.site}}}" for each in filled]
    lines += ["", *_declared(classes, filled, naming)]
    if "directory" not in (naming.settings or {}):
        lines += [
            "# Before jobs can run on other machines, each pool's settings need a `directory` that its",
            "# nodes see at the same path, such as /shared/moulin; `--directory` writes it here.",
        ]
    lines.append("pools:")
    for each, held in filled.items():
        lines += _pool(each, held, classes[each], naming)
    return "\n".join(lines) + "\n"


def _header(
    nodes: Sequence[SlurmNode],
    filled: Mapping[SlurmPartition, Sequence[SlurmNode]],
    jobs: Sequence[SlurmJob],
) -> list[str]:
    live = [job for job in jobs if job.state in _LIVE]
    shared = sum(len(set(node.partitions) & {each.name for each in filled}) > 1 for node in nodes)
    closed = [node for node in nodes if node.flags & {"down", "drain", "drained", "fail"}]
    lines = [f"# Written from a Slurm cluster of {len(nodes)} nodes; look at it, then apply it."]
    if live:
        users = len({job.user for job in live})
        running = sum(job.state == "RUNNING" for job in live)
        lines.append(
            f"# {running} jobs of others run and {len(live) - running} wait, of {users} users:"
            " they are counted and never touched."
        )
    if shared:
        lines.append(
            f"# {shared} nodes are in several partitions: what one pool runs there is taken in the"
            " others."
        )
    for node in closed[:_SHOWN]:
        words = " ".join(sorted(node.flags))
        lines.append(f"# {node.name} is {words}{': ' + node.reason if node.reason else ''}")
    if len(closed) > _SHOWN:
        lines.append(f"# and {len(closed) - _SHOWN} more nodes are down or drained")
    return lines


def _sites(naming: Naming) -> list[str]:
    return ["sites:", f"  {naming.site}: {{country: {naming.country}}}"]


def _declared(
    classes: Mapping[SlurmPartition, str],
    filled: Mapping[SlurmPartition, Sequence[SlurmNode]],
    naming: Naming,
) -> list[str]:
    """Declare the classes that no registry has."""
    unknown = {
        name: filled[each] for each, name in classes.items() if name not in set(naming.classes)
    }
    if not unknown:
        return []
    lines = ["machine_classes:"]
    for name, held in sorted(unknown.items()):
        is_accelerator = str(any(node.accelerators for node in held)).lower()
        lines.append(f"  {name}: {{title: {name}, is_accelerator: {is_accelerator}}}")
    return [*lines, ""]


def _pool(
    partition: SlurmPartition, held: Sequence[SlurmNode], machine_class: str, naming: Naming
) -> list[str]:
    shapes = Counter(
        (node.cpus, node.memory_bytes, node.accelerators, node.accelerator_type) for node in held
    )
    lines = []
    for (cpus, memory_bytes, count, kind), nodes in shapes.most_common(_SHOWN):
        devices = f", {count} × {kind or 'gpu'}" if count else ""
        lines.append(f"  # {nodes} × {cpus} CPUs, {memory(memory_bytes)}{devices}")
    limit = partition.time_limit_s
    lines.append(f"  # time limit {duration(limit * NS_PER_S) if limit else 'none'}")
    settings = {"partition": partition.name, **(naming.settings or {})}
    mode = ", mode: delegated" if naming.is_delegated else ""
    return [
        *lines,
        f"  {name_of(partition.name)}:",
        f"    {{zone: {name_of(partition.name)}, engine: slurm, machine_class: {machine_class}{mode},",
        f"     settings: {json.dumps(settings)}}}",
    ]


def _machine_class(held: Sequence[SlurmNode], known: Collection[str]) -> str:
    """Return the class of most of the partition's devices, as the registry spells it."""
    kinds = Counter(node.accelerator_type or "gpu" for node in held if node.accelerators)
    if not kinds:
        return CPU_CLASS
    kind = kinds.most_common(1)[0][0]
    return next((name for name in known if name.casefold() == kind.casefold()), name_of(kind))


def _listed(data: bytes, key: str) -> Sequence[Mapping[str, Any]]:
    try:
        listed = json.loads(data)[key]
    except (ValueError, KeyError, TypeError) as cause:
        raise InvalidSpec(
            f"read a cluster's {key}: {cause!r}", hint=f"give the output of `scontrol show {key}`"
        ) from cause
    bodies = listed if isinstance(listed, list) else []
    return [body for body in bodies if isinstance(body, Mapping)]


def _json_node(body: Mapping[str, Any]) -> SlurmNode:
    fields = {
        name: next((body[key] for key in keys if key in body), "")
        for name, keys in _NODE_FIELDS.items()
    }
    state = body.get("state", "")
    words = [state] if isinstance(state, str) else list(state)
    accelerators, kind = gres_count(str(fields["gres"] or ""))
    partitions = fields["partitions"] or ()
    return SlurmNode(
        name=str(body.get("name", "")),
        address=str(fields["address"] or body.get("name", "")),
        flags=frozenset(str(word).lower() for word in [*words, *body.get("state_flags", ())]),
        reason=str(fields["reason"] or ""),
        cpus=number(fields["cpus"]),
        memory_bytes=max(0, number(fields["memory"]) - number(body.get("specialized_memory")))
        * MIB,
        accelerators=accelerators,
        accelerator_type=kind,
        used_cpus=number(body.get("alloc_cpus")),
        used_memory_bytes=number(body.get("alloc_memory")) * MIB,
        used_accelerators=gres_count(str(body.get("gres_used") or ""))[0],
        partitions=tuple(partitions.split(",") if isinstance(partitions, str) else partitions),
    )


def _json_partition(body: Mapping[str, Any]) -> SlurmPartition:
    nodes = body.get("nodes", "")
    listed = str(nodes.get("configured", "") if isinstance(nodes, Mapping) else nodes or "")
    inner, maximums = body.get("partition") or {}, body.get("maximums") or {}
    said = body.get("state") or inner.get("state") or "UP"
    exclusive, shares = inner.get("exclusive"), maximums.get("shares")
    return SlurmPartition(
        name=str(body.get("name", "")),
        is_default="default" in [str(flag).lower() for flag in body.get("flags") or ()],
        state=(said if isinstance(said, str) else str(said[0])).upper(),
        nodes=listed,
        node_count=len(expand_hosts(listed)),
        time_limit_s=_json_time_s(body, _TIME_FIELDS),
        default_time_s=_json_time_s(body, _DEFAULT_TIME_FIELDS),
        # Before there was a word for it, nobody could share a node of such a partition.
        is_exclusive=exclusive in WHOLE_NODES if exclusive is not None else shares == 0,
    )


def _json_time_s(body: Mapping[str, Any], paths: Sequence[Sequence[str]]) -> int:
    """Return a time of a partition, 0 where none is set; JSON has it in minutes."""
    for path in paths:
        value: Any = body
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, str):
            return parse_slurm_time_s(value)
        if value is not None:
            return max(0, number(value)) * 60
    return 0

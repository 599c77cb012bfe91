"""Divides one machine into nodes with disjoint CPUs; never decides what runs on them."""

from collections.abc import Sequence

from moulin.domain.errors import InvalidSpec
from moulin.domain.ids import NodeId
from moulin.domain.observation import NodeCapacity
from moulin.domain.units import share_out


def divide_machine(
    *,
    nodes: int,
    cpu_ids: Sequence[int],
    memory_bytes: int,
    boot_id: str,
    machine_class: str = "this-machine",
    accelerators: int = 0,
    accelerator_class: str = "",
    idle_mw: int = 0,
    peak_mw: int = 0,
    power_source: str = "",
    node_prefix: str = "node",
) -> tuple[NodeCapacity, ...]:
    """Split the machine's CPUs, memory, accelerators and power evenly over `nodes` nodes.

    Units:  bytes for memory, mW of the whole machine for power.
    Order:  by node number; CPUs and accelerators go out in runs of neighbours, so that device
            `i` of a node is the machine's device `i` plus those of all nodes before it.
    Raises `InvalidSpec` when there are fewer CPUs than nodes.

    >>> [n.cpu_ids for n in divide_machine(nodes=2, cpu_ids=(0, 1, 2), memory_bytes=9, boot_id="")]
    [(0, 1), (2,)]
    """
    cpus = tuple(sorted(cpu_ids))
    if not 1 <= nodes <= len(cpus):
        raise InvalidSpec(
            f"divide this machine into {nodes} nodes: it has {len(cpus)} CPUs for Moulin",
            hint=f"ask for 1 to {len(cpus)} nodes; each needs a CPU of its own",
            details={"nodes": nodes, "cpus": len(cpus)},
        )
    even = (1,) * nodes
    counts = share_out(len(cpus), even)
    memory = share_out(memory_bytes, even)
    devices = share_out(accelerators, even)
    idle = share_out(idle_mw, counts)
    peak = share_out(peak_mw, counts)
    firsts = [sum(counts[:index]) for index in range(nodes)]
    return tuple(
        NodeCapacity(
            node=NodeId(f"{node_prefix}-{index}"),
            cpu_milli=1000 * counts[index],
            memory_bytes=memory[index],
            machine_class=machine_class,
            accelerators=devices[index],
            accelerator_class=accelerator_class if devices[index] else "",
            boot_id=boot_id,
            cpu_ids=cpus[firsts[index] : firsts[index] + counts[index]],
            idle_mw=idle[index],
            peak_mw=peak[index],
            power_source=power_source,
        )
        for index in range(nodes)
    )


def machine_devices(
    nodes: Sequence[NodeCapacity], node: NodeId, devices: Sequence[int]
) -> tuple[int, ...]:
    """Return the machine's device numbers for device numbers of one of its nodes."""
    first = 0
    for capacity in nodes:
        if capacity.node == node:
            break
        first += capacity.accelerators
    return tuple(first + device for device in devices)

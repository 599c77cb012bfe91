"""Decide what energy a node used in an interval and who carries each millijoule of it.

Never invents energy to balance a sum: the reading is made first, with its own method, class and
uncertainty, and is then split exactly (DESIGN rule 2). Because every interval is split to the
millijoule, sums over any number of intervals are exact too; there is no remainder to carry.
A single share is off its true proportion by less than 1 mJ per interval.
"""

from collections.abc import Callable, Sequence

from moulin.domain.errors import check
from moulin.domain.factory import Site
from moulin.domain.ids import NodeId, StepId
from moulin.domain.units import MJ_PER_KWH, NS_PER_S, PPM, divide_round_half_even, share_out
from moulin.domain.usage import NodeAllocation, NodeReading, TaskReading
from moulin.energy.power import PowerModel


def node_energy(
    *,
    node: NodeId,
    zone: str,
    start_ns: int,
    end_ns: int,
    cpu_ns_busy: int,
    cpu_milli: int,
    power: PowerModel,
) -> NodeReading:
    """Model a node's energy over [start_ns, end_ns): P = idle + (peak - idle) x busy / capacity.

    Units:  `cpu_ns_busy` is CPU time of the whole node, `cpu_milli` its thousandths of a CPU.

    Idle energy depends on the clock only and telescopes: adjacent intervals add up to what one
    long interval gives. The load's energy is rounded half even, once per interval. CPU time above
    capacity (two counters read at slightly different moments) adds no energy.
    """
    check(end_ns >= start_ns, "an interval cannot end before it starts")
    check(cpu_ns_busy >= 0, "CPU time cannot be below zero")
    check(0 <= power.idle_mw <= power.peak_mw, "idle power cannot exceed peak power")
    idle_mj = power.idle_mw * end_ns // NS_PER_S - power.idle_mw * start_ns // NS_PER_S
    capacity = cpu_milli * (end_ns - start_ns)
    busy = min(cpu_ns_busy * 1000, capacity)
    load_mj = 0
    if cpu_milli > 0:
        load_mj = divide_round_half_even(
            (power.peak_mw - power.idle_mw) * busy, cpu_milli * NS_PER_S
        )
    return NodeReading(
        node=node,
        zone=zone,
        start_ns=start_ns,
        end_ns=end_ns,
        cpu_ns=cpu_ns_busy,
        cpu_milli=cpu_milli,
        energy_mj=idle_mj + load_mj,
        idle_mj=idle_mj,
        method=(
            f"linear model, {power.idle_mw} mW idle to {power.peak_mw} mW busy,"
            f" from CPU time: {power.source}"
        ),
        quality=power.quality,
        uncertainty_ppm=power.uncertainty_ppm,
    )


def allocate(reading: NodeReading, tasks: Sequence[TaskReading], pue_ppm: int) -> NodeAllocation:
    """Split a node's reading over its tasks, idle and unattributed, to the millijoule.

    Idle energy goes to who holds the node: held CPUs x time held, the rest to idle. The load's
    energy goes by CPU time of tasks, the rest of the node's CPU time is unattributed (the system,
    and Moulin itself), except while somebody has the whole node: then it is theirs, by time. Tasks that together claim more than the node counted are scaled down.
    PUE overhead (Power Usage Effectiveness above 1, on the whole reading) is split in proportion
    to these shares; what `task_overhead_mj` leaves belongs to idle and unattributed.

    Order:  shares do not depend on the order of `tasks`; ties go to the smaller step id.
    Cost:   O(tasks log tasks).
    """
    check(pue_ppm >= PPM, "power usage effectiveness cannot be below 1")
    check(0 <= reading.idle_mj <= reading.energy_mj, "idle energy is part of the reading")
    steps = sorted({task.step for task in tasks})
    held = _sum_by_step(steps, tasks, lambda task: task.cpu_milli * _overlap_ns(reading, task))
    busy = _sum_by_step(steps, tasks, lambda task: task.cpu_ns)
    capacity = reading.cpu_milli * (reading.end_ns - reading.start_ns)
    standing, idle_mj = _split(reading.idle_mj, held, capacity)
    working, unattributed_mj = _split(reading.energy_mj - reading.idle_mj, busy, reading.cpu_ns)
    whole = _sum_by_step(
        steps, tasks, lambda task: _overlap_ns(reading, task) if task.is_whole_node else 0
    )
    rest, unattributed_mj = _split(unattributed_mj, whole, reading.end_ns - reading.start_ns)
    task_mj = [sum(each) for each in zip(standing, working, rest, strict=True)]
    check(
        sum(task_mj) + idle_mj + unattributed_mj == reading.energy_mj,
        "tasks, idle and unattributed must add up to the reading",
    )
    overhead_mj = divide_round_half_even(reading.energy_mj * (pue_ppm - PPM), PPM)
    overheads = share_out(overhead_mj, (*task_mj, idle_mj, unattributed_mj))
    return NodeAllocation(
        reading=reading,
        task_mj=dict(zip(steps, task_mj, strict=True)),
        idle_mj=idle_mj,
        unattributed_mj=unattributed_mj,
        overhead_mj=overhead_mj,
        task_overhead_mj=dict(zip(steps, overheads, strict=False)),
        task_standing_mj=dict(zip(steps, standing, strict=True)),
    )


def carbon(energy_mj: int, site: Site) -> tuple[int, int]:
    """Return the (location-based, market-based) ng CO2e of energy used at a site, rounded half even.

    Both are always kept: mixing them overstates savings (arXiv 2402.03550).
    """
    return (
        divide_round_half_even(energy_mj * site.carbon_location_ng_per_kwh, MJ_PER_KWH),
        divide_round_half_even(energy_mj * site.carbon_market_ng_per_kwh, MJ_PER_KWH),
    )


def _overlap_ns(reading: NodeReading, task: TaskReading) -> int:
    return max(0, min(reading.end_ns, task.end_ns) - max(reading.start_ns, task.start_ns))


def _sum_by_step(
    steps: Sequence[StepId], tasks: Sequence[TaskReading], amount: Callable[[TaskReading], int]
) -> list[int]:
    totals = dict.fromkeys(steps, 0)
    for task in tasks:
        totals[task.step] += amount(task)
    return list(totals.values())


def _split(total: int, weights: Sequence[int], whole: int) -> tuple[tuple[int, ...], int]:
    """Split by weights out of `whole`; what the weights leave is the second result."""
    rest = max(0, whole - sum(weights))
    if rest == 0 and not any(weights):
        return tuple(0 for _ in weights), total
    *shares, remainder = share_out(total, (*weights, rest))
    return tuple(shares), remainder

"""Decide what each attempt held and used: allocations and task readings become usages.

Never prices anything and never draws an id: a usage is named by what it measures, so that metering
the same interval twice gives the same usage twice and the store keeps one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypedDict

from moulin.domain.errors import check
from moulin.domain.factory import EnergyClass, Site
from moulin.domain.ids import AttemptId, OrganisationId, ProjectId, WorkloadId
from moulin.domain.units import divide_round_half_even
from moulin.domain.usage import NOT_READ, Meter, NodeAllocation, TaskReading, Usage

NS_PER_MS: Final = 1_000_000
BYTES_PER_MB: Final = 1_000_000

# What the energy stage gives: (mJ, site) to location-based and market-based ng CO2e.
Carbon = Callable[[int, Site], tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFacts:
    """What metering must be told of an attempt: who pays, where it runs, what it was allowed by.

    `subject` is what prices may be narrowed to (a model, a machine class); `policy_decision` is
    the digest of the decision that let it run here. `has_ended` when no interval of it is still
    to come: it ended, and it is metered to its end.
    """

    attempt: AttemptId
    workload: WorkloadId
    organisation: OrganisationId
    project: ProjectId
    zone: str
    site: Site
    subject: str = ""
    model_digest: str = ""
    policy_decision: str = ""
    has_ended: bool = False


class Place(TypedDict):
    """The fields of a usage that say where it happened and how that is known."""

    zone: str
    site: str
    country: str
    country_basis: str
    carbon_source: str


def interval_usage_id(attempt: str, node: str, start_ns: int) -> str:
    """Name what an attempt used on a node in the interval that starts at `start_ns`."""
    return f"use_{attempt}.{node}.{start_ns}"


def request_usage_id(request: str) -> str:
    """Name what one inference request used."""
    return f"use_{request}"


def job_usages(
    allocation: NodeAllocation,
    tasks: Sequence[TaskReading],
    facts: Mapping[AttemptId, AttemptFacts],
    carbon: Carbon,
) -> tuple[Usage, ...]:
    """Return one usage per attempt that held the node in the interval, in order of attempt.

    Raises `InvariantViolated` when `facts` misses an attempt.

    Cost:   O(tasks log tasks).
    """
    by_attempt: dict[AttemptId, list[TaskReading]] = {}
    for task in tasks:
        by_attempt.setdefault(task.attempt, []).append(task)
    return tuple(
        _job_usage(allocation, by_attempt[attempt], facts_of(attempt, facts), carbon)
        for attempt in sorted(by_attempt)
    )


def held_quantities(tasks: Sequence[TaskReading]) -> dict[str, int]:
    """Return what tasks held, by meter; meters of which nothing was held are left out.

    Milliseconds are counted between whole milliseconds of the clock, so that adjacent intervals
    add up to what one long interval gives. MB are 10**6 bytes, rounded half even.
    """
    quantities: dict[str, int] = {}
    for task in tasks:
        held_ms = task.end_ns // NS_PER_MS - task.start_ns // NS_PER_MS
        memory = divide_round_half_even(task.memory_bytes * held_ms, BYTES_PER_MB)
        for meter, quantity in (
            (Meter.CPU_MILLI_MS, task.cpu_milli * held_ms),
            (Meter.MEMORY_MB_MS, memory),
            (Meter.ACCELERATOR_MS, task.accelerators * held_ms),
        ):
            if quantity:
                quantities[meter.value] = quantities.get(meter.value, 0) + quantity
    return dict(sorted(quantities.items()))


def cpu_used_ns(tasks: Sequence[TaskReading]) -> int:
    """Return the CPU time that tasks used, `NOT_READ` when that of one of them could not be read."""
    is_known = not any(task.is_unread for task in tasks)
    return sum(task.cpu_ns for task in tasks) if is_known else NOT_READ


def worst(*qualities: EnergyClass) -> EnergyClass:
    """Return the least trustworthy of some energy classes (A is best, E worst)."""
    return max(qualities, key=lambda quality: quality.value)


def place_of(facts: AttemptFacts) -> Place:
    """Return where an attempt runs, as a usage states it."""
    return Place(
        zone=facts.zone,
        site=facts.site.name,
        country=facts.site.country,
        country_basis=facts.site.country_basis.value,
        carbon_source=facts.site.carbon_source,
    )


def facts_of(attempt: AttemptId, facts: Mapping[AttemptId, AttemptFacts]) -> AttemptFacts:
    """Return the facts of an attempt; raises `InvariantViolated` when they were not given."""
    check(attempt in facts, f"metering needs the facts of attempt {attempt}")
    return facts[attempt]


def _job_usage(
    allocation: NodeAllocation,
    tasks: Sequence[TaskReading],
    facts: AttemptFacts,
    carbon: Carbon,
) -> Usage:
    reading = allocation.reading
    steps = sorted({task.step for task in tasks})
    overhead_mj = sum(allocation.task_overhead_mj[step] for step in steps)
    energy_mj = sum(allocation.task_mj[step] for step in steps) + overhead_mj
    location_ng, market_ng = carbon(energy_mj, facts.site)
    return Usage(
        id=interval_usage_id(facts.attempt, reading.node, reading.start_ns),
        workload=facts.workload,
        attempt=facts.attempt,
        organisation=facts.organisation,
        project=facts.project,
        start_ns=min(task.start_ns for task in tasks),
        end_ns=max(task.end_ns for task in tasks),
        quantities=held_quantities(tasks),
        subject=facts.subject,
        model_digest=facts.model_digest,
        energy_mj=energy_mj,
        overhead_mj=overhead_mj,
        energy_method=reading.method,
        energy_quality=reading.quality,
        energy_uncertainty_ppm=reading.uncertainty_ppm,
        carbon_location_ng=location_ng,
        carbon_market_ng=market_ng,
        policy_decision=facts.policy_decision,
        cpu_used_ns=cpu_used_ns(tasks),
        memory_bytes_max=max(task.memory_bytes_max for task in tasks),
        **place_of(facts),
    )

"""What a waiting unit needs, as one hashable value: units with equal demands are interchangeable.

A demand that cannot be placed is not tried again in the same cycle, whatever number of units share
it; this is what keeps a long queue cheap.
"""

from typing import NamedTuple

from moulin.domain.workload import Submission, WorkloadKind


class Shape(NamedTuple):
    """What one task asks of its node; `is_whole_node` asks for all of it (a lease)."""

    cpu_milli: int
    memory_bytes: int
    accelerators: int
    accelerator_class: str
    is_whole_node: bool


class Demand(NamedTuple):
    """Everything the placement of a unit depends on.

    `tasks` is the gang's size. `workload` is set for endpoints only: their replicas share one
    count against the project's quota of workloads.
    """

    shape: Shape
    tasks: int
    countries: tuple[str, ...]
    zones: tuple[str, ...]
    organisation: str
    project: str
    priority: int
    workload: str


def demand_of(submission: Submission) -> Demand:
    """Return the demand of each unit of a submission."""
    spec = submission.spec
    is_endpoint = spec.kind is WorkloadKind.ENDPOINT
    return Demand(
        shape=Shape(
            cpu_milli=spec.resources.cpu_milli,
            memory_bytes=spec.resources.memory_bytes,
            accelerators=spec.resources.accelerators,
            accelerator_class=spec.resources.accelerator_class
            if spec.resources.accelerators
            else "",
            is_whole_node=spec.kind is WorkloadKind.LEASE,
        ),
        tasks=1 if is_endpoint else spec.nodes,
        countries=tuple(sorted(set(spec.where.countries))),
        zones=tuple(sorted(set(spec.where.zones))),
        organisation=submission.organisation,
        project=submission.project,
        priority=spec.priority,
        workload=submission.id if is_endpoint else "",
    )

"""What a waiting unit needs, as one hashable value: units with equal demands are interchangeable.

A demand that cannot be placed is not tried again in the same cycle, whatever number of units share
it; this is what keeps a long queue cheap.
"""

from typing import NamedTuple

from moulin.domain.workload import Resources, Submission, WorkloadKind, choices_of
from moulin.scheduler.needs import need_mask, needs_of


class Shape(NamedTuple):
    """What one task asks of its node; `is_whole_node` asks for all of it (a lease).

    `needs` is a mask of what it needs that is no amount, as `need_mask` makes it. `time_limit_min` is
    how long a job or lease may last, in whole minutes as other systems' limits are: few differ then.
    """

    cpu_milli: int
    memory_bytes: int
    accelerators: int
    accelerator_class: str
    is_whole_node: bool
    needs: int = 0
    time_limit_min: int = 0


class Demand(NamedTuple):
    """Everything the placement of a unit depends on.

    `tasks` is the gang's size. `workload` is set for endpoints and arrays only: their units share
    one count against the project's quota of workloads. `others` are shapes that would do as well.
    """

    shape: Shape
    tasks: int
    countries: tuple[str, ...]
    zones: tuple[str, ...]
    organisation: str
    project: str
    priority: int
    workload: str
    others: tuple[Shape, ...] = ()


def options(demand: Demand) -> tuple[Demand, ...]:
    """Return a demand with each shape that would do, the preferred one first."""
    if not demand.others:
        return (demand,)
    shapes = (demand.shape, *demand.others)
    return tuple(demand._replace(shape=shape, others=()) for shape in shapes)


def demand_of(submission: Submission) -> Demand:
    """Return the demand of each unit of a submission."""
    spec = submission.spec
    is_endpoint = spec.kind is WorkloadKind.ENDPOINT
    is_lease = spec.kind is WorkloadKind.LEASE
    needs = need_mask(needs_of(spec))
    time_limit_min = 0 if is_endpoint else -(-spec.time_limit_s // 60)
    shapes = tuple(
        _shape(resources, is_lease=is_lease, needs=needs, time_limit_min=time_limit_min)
        for resources in choices_of(spec)
    )
    return Demand(
        shape=shapes[0],
        tasks=1 if is_endpoint else spec.nodes,
        countries=tuple(sorted(set(spec.where.countries))),
        zones=tuple(sorted(set(spec.where.zones))),
        organisation=submission.organisation,
        project=submission.project,
        priority=spec.priority,
        workload=submission.id if is_endpoint or spec.array is not None else "",
        others=shapes[1:],
    )


def _shape(resources: Resources, *, is_lease: bool, needs: int, time_limit_min: int) -> Shape:
    return Shape(
        cpu_milli=resources.cpu_milli,
        memory_bytes=resources.memory_bytes,
        accelerators=resources.accelerators,
        accelerator_class=resources.accelerator_class if resources.accelerators else "",
        is_whole_node=is_lease,
        needs=needs,
        time_limit_min=time_limit_min,
    )

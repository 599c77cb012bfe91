"""What only leases need of a state: ends that move, what could be leased, and who waits for leased nodes.

Where a lease is placed, and when it ends, is decided where every gang's is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from moulin.domain.events import Event
from moulin.domain.ids import OrganisationId, ProjectId, WorkloadId
from moulin.domain.lease_events import LeaseExtended
from moulin.domain.observation import NodeCapacity
from moulin.domain.reasons import Reason
from moulin.domain.workload import (
    LeaseSpec,
    Submission,
    WorkloadKind,
    WorkloadSpec,
)
from moulin.scheduler.changes import unfinished
from moulin.scheduler.demand import demand_of
from moulin.scheduler.fleet import Fleet
from moulin.scheduler.nodes import Column, NodeRow
from moulin.scheduler.quota import shortfalls
from moulin.scheduler.rows import Held
from moulin.scheduler.state import State
from moulin.scheduler.walltime import set_end


class Lot(NamedTuple):
    """The nodes of one class in one zone, of one engine, that could be leased, and which are free."""

    zone: str
    machine_class: str
    nodes: tuple[NodeCapacity, ...]
    free: int


def lots(state: State, organisation: OrganisationId, project: ProjectId) -> tuple[Lot, ...]:
    """Return what a project could lease in the zones it may use, by zone and class.

    Of several engines in one zone, the one with most such nodes: a lease is of one engine's.
    """
    anything = WorkloadSpec(kind=WorkloadKind.LEASE, name="any", lease=LeaseSpec(ssh_keys=()))
    demand = demand_of(
        Submission(
            id=WorkloadId("any"),
            organisation=organisation,
            project=project,
            spec=anything,
            submitted_by="",
            submitted_at_ns=0,
        )
    )
    zones = set(state.declared.open_zones(demand))
    found: dict[tuple[str, str], dict[int, list[int]]] = {}
    for position, row in enumerate(state.nodes.rows):
        zone = state.zone_of_node(row.capacity.node)
        if row.is_present and row.capacity.has_login and zone in zones:
            domain = int(state.nodes.columns[Column.DOMAIN, position])
            domains = found.setdefault((zone, row.capacity.machine_class), {})
            domains.setdefault(domain, []).append(position)
    return tuple(
        _lot(state, name, max(domains.values(), key=len)) for name, domains in sorted(found.items())
    )


def _lot(state: State, name: tuple[str, str], positions: Sequence[int]) -> Lot:
    rows = [state.nodes.rows[position] for position in positions]
    free = sum(_is_free(state, position) for position in positions)
    return Lot(*name, tuple(row.capacity for row in rows), free)


def _is_free(state: State, position: int) -> bool:
    columns = state.nodes.columns
    is_idle = int(columns[Column.TASKS, position]) == 0
    return is_idle and int(columns[Column.IS_PLACEABLE, position]) > 0


def possible_nodes(state: State, submission: Submission) -> list[NodeCapacity]:
    """Return the nodes of which a lease may get some, as they are when empty."""
    demand = demand_of(submission)
    fleet = Fleet(state)
    able = fleet.able(demand.shape, state.declared.permitted_zones(demand))
    return [state.nodes.rows[position].capacity for position in able.tolist()]


def held_too_much(state: State, project: str) -> Iterator[Reason]:
    """Yield of which resource a project holds more than its quota, as after that was lowered."""
    held = state.held_by_project.get(project, Held())
    yield from shortfalls(project, state.declared.quota(project), held, Held())


def leased_nodes(state: State, workload: WorkloadId) -> Iterator[NodeRow]:
    """Yield the nodes that a lease holds now, in rank order."""
    for attempt in state.live_attempts(state.workloads[workload]):
        for task in attempt.tasks:
            row = state.nodes.row(task.node)
            if row is not None and not task.is_ended:
                yield row


def _extended(state: State, payload: LeaseExtended, event: Event) -> None:
    """Let a lease and what runs of it end later; one that is being ended stays so."""
    row = unfinished(state, payload.workload, event)
    if row is None or row.submission.spec.kind is not WorkloadKind.LEASE:
        return
    added_s = payload.time_limit_s - row.time_limit_s
    row.time_limit_s = payload.time_limit_s
    row.reserved_neur += payload.added_neur
    spec = replace(row.submission.spec, time_limit_s=payload.time_limit_s)
    row.submission = replace(row.submission, spec=spec)
    for attempt in state.live_attempts(row):
        if attempt.limit_ends_ns:
            attempt.limit_ends_ns += added_s * 10**9
            set_end(state, row, attempt)


LEASE_HANDLERS: Final[Mapping[type, Callable[[State, Any, Event], None]]] = {
    LeaseExtended: _extended,
}

"""Leases in the cycle: what may be leased, orders as submissions, and ends that are put off.

Placement, budgets and ends are those of every workload; only the words are of leases.
"""

from collections.abc import Callable

from moulin.controlplane.commands import (
    Answer,
    ExtendLease,
    OrderLease,
    ReadOffers,
    SubmitWorkload,
)
from moulin.controlplane.draft import Draft
from moulin.controlplane.lookup import pool_of, steps_of_attempt
from moulin.controlplane.plane import Plane
from moulin.controlplane.rows import view_of
from moulin.controlplane.schedule import present_policy
from moulin.controlplane.submit import prices_of, refusal, submit_workload
from moulin.domain.errors import Conflict, EngineRefused, InvalidRequest, NotFound
from moulin.domain.factory import Project
from moulin.domain.ids import OrganisationId, ProjectId, WorkloadId
from moulin.domain.lease import (
    NODES_MAX,
    LeaseOffer,
    LeaseOffers,
    LeaseWanted,
)
from moulin.domain.lease_events import LeaseExtended
from moulin.domain.observation import NodeCapacity
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.section import nearest
from moulin.domain.units import format_euros
from moulin.domain.workload import (
    LeaseSpec,
    Resources,
    Submission,
    Where,
    WorkloadKind,
    WorkloadSpec,
)
from moulin.ledger import book_at
from moulin.policy.admit import reservation_neur
from moulin.ports.engine import Extends
from moulin.scheduler import (
    Lot,
    WorkloadRow,
    held_too_much,
    leased_nodes,
    lots,
    wanted_next,
)

HOUR_S = 3600
LEASE_S_MAX = 366 * 86400


def read_offers(plane: Plane, draft: Draft, command: ReadOffers) -> Callable[[], Answer]:
    """Answer with what a project may lease; raises `NotFound` when there is no such project."""
    project = _project(draft, command.project)
    offers = LeaseOffers(items=tuple(_offer(draft, project, lot) for lot in _lots(draft, project)))
    return lambda: offers


def order_lease(plane: Plane, draft: Draft, command: OrderLease) -> Callable[[], Answer]:
    """Submit the workload that an order means.

    Raises `NotFound` for no such offer, `InvalidRequest` and `InvalidSpec` for an order that makes no
    lease, and what `submit_workload` raises.
    """
    project, wanted = _project(draft, command.project), command.wanted
    by_name = {_name_of(lot): lot for lot in _lots(draft, project)}
    lot = by_name.get(wanted.offer)
    if lot is None:
        known = nearest(wanted.offer, list(by_name)) if by_name else "nothing may be leased here"
        raise NotFound(f"lease {wanted.offer!r}: there is no such offer", hint=known)
    return submit_workload(
        plane,
        draft,
        SubmitWorkload(
            principal=command.principal,
            project=command.project,
            spec=_spec(wanted, lot),
            id=command.id,
            idempotency=command.idempotency,
        ),
    )


def extend_lease(plane: Plane, draft: Draft, command: ExtendLease) -> Callable[[], Answer]:
    """Let a lease end later, or raise the reasons why it cannot.

    In this order: a quota that it is over, work that waits for its nodes, the budget, and what the
    engine itself allows. Raises `NotFound`, `Conflict`, `InvalidRequest`, and those of a refusal.
    """
    row = _running_lease(draft, command.workload)
    limit_s = row.time_limit_s + command.by_s
    if command.by_s <= 0 or limit_s > LEASE_S_MAX:
        raise InvalidRequest(
            f"extend {command.workload} by {command.by_s} s",
            hint=f"by at least a second; a lease lasts {LEASE_S_MAX // 86400} days at most",
        )
    added_neur = _price_of_more(draft, row, command.by_s)
    reasons = [
        *held_too_much(draft.books.schedule, row.submission.project),
        *_wanted(plane, draft, command.workload),
        *_unpaid(draft, row, added_neur),
    ]
    attempted = f"extend lease {row.submission.spec.name!r}"
    if reasons:
        raise refusal(attempted, reasons)
    _tell_engines(plane, draft, command.workload, limit_s)
    draft.append(
        LeaseExtended(
            workload=command.workload,
            by=command.principal.name,
            time_limit_s=limit_s,
            added_neur=added_neur,
        ),
        actor=command.principal.key,
        project=row.submission.project,
    )
    return lambda: view_of(draft.books, command.workload)


def _project(draft: Draft, name: ProjectId) -> Project:
    found = draft.books.project(name)
    if found is None:
        raise NotFound(f"lease for project {name!r}: there is no such project")
    return found


def _lots(draft: Draft, project: Project) -> tuple[Lot, ...]:
    return lots(draft.books.schedule, OrganisationId(project.organisation), ProjectId(project.name))


def _name_of(lot: Lot) -> str:
    return f"{lot.zone}/{lot.machine_class}" if lot.machine_class else lot.zone


def _offer(draft: Draft, project: Project, lot: Lot) -> LeaseOffer:
    least, site = _least(lot), draft.books.site_of(lot.zone)
    book = book_at(draft.books.price_books(), draft.now_ns)
    prices = prices_of(draft, least.accelerator_class)
    hour_neur = reservation_neur(_held(project, least, HOUR_S), prices) if prices else None
    return LeaseOffer(
        name=_name_of(lot),
        zone=lot.zone,
        country=site.country if site else "",
        machine_class=lot.machine_class,
        nodes=len(lot.nodes),
        free=lot.free,
        cpu_milli=least.cpu_milli,
        memory_bytes=least.memory_bytes,
        accelerators=least.accelerators,
        accelerator_class=least.accelerator_class,
        node_hour_neur=hour_neur,
        price_book=book.name if book else "",
    )


def _least(lot: Lot) -> NodeCapacity:
    """Return the smallest node of a lot: an order of the lot is one of at least that size."""
    return min(lot.nodes, key=lambda node: (node.accelerators, node.cpu_milli, node.memory_bytes))


def _spec(wanted: LeaseWanted, lot: Lot) -> WorkloadSpec:
    nodes = wanted.nodes or len(lot.nodes)
    if not 0 < nodes <= NODES_MAX or not 0 < wanted.time_limit_s <= LEASE_S_MAX:
        raise InvalidRequest(
            f"lease {nodes} nodes for {wanted.time_limit_s} s",
            hint=f"1 to {NODES_MAX} nodes for up to {LEASE_S_MAX // 86400} days",
        )
    return WorkloadSpec(
        kind=WorkloadKind.LEASE,
        name=wanted.name,
        resources=Resources(
            cpu_milli=min(node.cpu_milli for node in lot.nodes),
            memory_bytes=min(node.memory_bytes for node in lot.nodes),
            accelerator_class=lot.nodes[0].accelerator_class,
            accelerators=min(node.accelerators for node in lot.nodes),
        ),
        nodes=nodes,
        lease=LeaseSpec(ssh_keys=wanted.ssh_keys, warn_s=wanted.warn_s),
        where=Where(zones=(lot.zone,)),
        time_limit_s=wanted.time_limit_s,
        priority=wanted.priority,
        labels=wanted.labels,
        is_notified=wanted.is_notified,
    )


def _running_lease(draft: Draft, workload: WorkloadId) -> WorkloadRow:
    row = draft.books.schedule.workloads.get(workload)
    if row is None:
        raise NotFound(f"extend {workload}: there is no such lease, or it ended long ago")
    if row.submission.spec.kind is not WorkloadKind.LEASE:
        raise Conflict(f"extend {workload}: it is no lease", hint="only a lease can be extended")
    if row.is_final:
        raise Conflict(f"extend {workload}: it has ended", hint="order another")
    is_ending = any(
        attempt.stop_cause is not None for attempt in draft.books.schedule.live_attempts(row)
    )
    if is_ending or row.stop_requested_by:
        raise Conflict(f"extend {workload}: it is being ended", hint="order another")
    return row


def _held(project: Project, node: NodeCapacity, held_s: int) -> Submission:
    """Return what holds one whole node for a time, to be priced."""
    return Submission(
        id=WorkloadId("lease"),
        organisation=OrganisationId(project.organisation),
        project=ProjectId(project.name),
        spec=WorkloadSpec(
            kind=WorkloadKind.LEASE,
            name="lease",
            resources=Resources(
                cpu_milli=node.cpu_milli,
                memory_bytes=node.memory_bytes,
                accelerators=node.accelerators,
                accelerator_class=node.accelerator_class,
            ),
            time_limit_s=held_s,
        ),
        submitted_by="",
        submitted_at_ns=0,
    )


def _price_of_more(draft: Draft, row: WorkloadRow, by_s: int) -> int:
    """Return what the nodes that a lease has, or one like it would have, cost for longer."""
    project = _project(draft, row.submission.project)
    schedule, spec = draft.books.schedule, row.submission.spec
    nodes = [node.capacity for node in leased_nodes(schedule, row.submission.id)]
    prices = prices_of(draft, spec.resources.accelerator_class)
    if nodes:
        return sum(reservation_neur(_held(project, node, by_s), prices) for node in nodes)
    return -(-row.reserved_neur * by_s // max(1, row.time_limit_s))


def _wanted(plane: Plane, draft: Draft, workload: WorkloadId) -> tuple[Reason, ...]:
    policy = present_policy(draft, plane.policy)
    found = wanted_next(draft.books.schedule, workload, draft.now_ns, policy)
    return () if found is None else (found,)


def _unpaid(draft: Draft, row: WorkloadRow, added_neur: int) -> tuple[Reason, ...]:
    name = row.submission.project
    left_neur = draft.books.balances.available_neur(name)
    if left_neur is None or added_neur <= left_neur:
        return ()
    parameters = {
        "project": name,
        "left_eur": format_euros(left_neur),
        "limit_eur": format_euros(_project(draft, name).budget_neur),
        "wanted_eur": format_euros(added_neur),
    }
    return (Reason(code=ReasonCode.BUDGET_EXCEEDED, parameters=parameters),)


def _tell_engines(plane: Plane, draft: Draft, workload: WorkloadId, limit_s: int) -> None:
    """Have engines that end tasks themselves, or tell people when, know the new limit.

    Before it is durable: what then fails leaves a task that may last longer than it will.
    """
    schedule = draft.books.schedule
    live = schedule.live_attempts(schedule.workloads[workload])
    for step, node in [each for a in live for each in steps_of_attempt(schedule, a.id)]:
        engine = plane.engines.get(pool_of(schedule, node))
        if not isinstance(engine, Extends):
            continue
        try:
            engine.extend(step, limit_s)
        except EngineRefused as refused:
            reason = Reason(code=ReasonCode.ENGINE_REFUSED, parameters={"detail": refused.message})
            raise refusal(f"extend {workload}", [reason]) from refused

"""Leases: what may be leased, orders, where one logs in, and ends that are put off or brought forward."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from moulin.api.access import missing, own_project
from moulin.api.describe import described
from moulin.api.exchange import in_thread, parse, read_bytes, read_value, respond
from moulin.api.parameters import CursorQuery, LeasePath, LimitQuery, ProjectPath, ProjectQuery
from moulin.api.state import ApiState, state_of
from moulin.api.workloads import (
    IdempotencyKey,
    Reader,
    Sender,
    Stopper,
    Trier,
    drawn_id,
    owned,
    repeated_as,
)
from moulin.controlplane.commands import (
    ExtendLease,
    OrderLease,
    ReadOffers,
    StopWorkload,
)
from moulin.domain.ids import ProjectId, WorkloadId
from moulin.domain.lease import (
    ExtendWanted,
    LeaseOffers,
    LeasePage,
    LeaseView,
    LeaseWanted,
    lease_view,
)
from moulin.domain.principal import Principal
from moulin.domain.views import WorkloadView
from moulin.domain.workload import WorkloadKind
from moulin.identity import Action
from moulin.ports.store import WorkloadFilter

router = APIRouter(tags=["leases"])


@router.get("/projects/{project}/leases/offers", **described(LeaseOffers))
async def list_offers(request: Request, project: ProjectPath, principal: Trier) -> Response:
    """Return the machines that the project may lease whole, and what an hour of one costs."""
    command = ReadOffers(project=ProjectId(project))
    return respond(await state_of(request).bridge.ask(command, LeaseOffers))


@router.post("/projects/{project}/leases", **described(LeaseView, body=LeaseWanted, status=201))
async def order_lease(
    request: Request,
    project: ProjectPath,
    principal: Sender,
    idempotency_key: IdempotencyKey = "",
) -> Response:
    """Order nodes of an offer for a time; durable when answered, delivered when they are free."""
    state = state_of(request)
    body = await read_bytes(request)
    wanted = parse(LeaseWanted, body)
    command = OrderLease(
        principal=principal,
        project=ProjectId(project),
        wanted=wanted,
        id=drawn_id(state, WorkloadKind.LEASE),
        idempotency=repeated_as(idempotency_key, body),
    )
    view = await state.bridge.ask(command, WorkloadView)
    return respond(_shown(state, view), 201, {"location": f"/api/v1/leases/{view.id}"})


@router.get("/leases", **described(LeasePage))
async def list_leases(
    request: Request,
    principal: Reader,
    *,
    project: ProjectQuery = "",
    cursor: CursorQuery = "",
    limit: LimitQuery = 100,
) -> Response:
    """Return leases, newest first."""
    state = state_of(request)
    wanted = WorkloadFilter(
        project=own_project(principal, Action.WORKLOAD_READ, project),
        kind=WorkloadKind.LEASE.value,
        before=cursor,
        limit=limit,
    )
    found = tuple(await in_thread(state.services.store.workloads, wanted))
    shown = tuple(_shown(state, view) for view in found if view.spec.lease is not None)
    return respond(LeasePage(items=shown, next=found[-1].id if len(found) == limit else ""))


@router.get("/leases/{lease}", **described(LeaseView))
async def read_lease(request: Request, lease: LeasePath, principal: Reader) -> Response:
    """Return one lease, with where one logs in once it is delivered."""
    state = state_of(request)
    view = await _own_lease(state, principal, Action.WORKLOAD_READ, lease)
    return respond(_shown(state, view))


@router.post("/leases/{lease}/extend", **described(LeaseView, body=ExtendWanted))
async def extend_lease(request: Request, lease: LeasePath, principal: Sender) -> Response:
    """Let a lease end later, or say why not: work that waits for its nodes, a quota, the budget."""
    state = state_of(request)
    wanted = await read_value(request, ExtendWanted)
    view = await _own_lease(state, principal, Action.WORKLOAD_SUBMIT, lease)
    command = ExtendLease(principal=principal, workload=WorkloadId(view.id), by_s=wanted.by_s)
    return respond(_shown(state, await state.bridge.ask(command, WorkloadView)))


@router.post("/leases/{lease}/release", **described(LeaseView))
async def release_lease(request: Request, lease: LeasePath, principal: Stopper) -> Response:
    """Give the nodes back now; billing ends with the last process there."""
    state = state_of(request)
    view = await _own_lease(state, principal, Action.WORKLOAD_STOP, lease)
    command = StopWorkload(principal=principal, workload=WorkloadId(view.id))
    return respond(_shown(state, await state.bridge.ask(command, WorkloadView)))


def _shown(state: ApiState, view: WorkloadView) -> LeaseView:
    return lease_view(view, state.services.clock.now_ns())


async def _own_lease(
    state: ApiState, principal: Principal, action: Action, lease: str
) -> WorkloadView:
    view = await owned(state, principal, action, lease)
    if view.spec.lease is None:
        raise missing(f"lease {lease}")
    return view

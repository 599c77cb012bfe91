"""Workloads: submit, try, list, read, stop, scale, why and logs."""

import hashlib
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response

from moulin.api.access import Allow, missing, own_project, require_owner
from moulin.api.describe import described
from moulin.api.exchange import in_thread, parse, read_bytes, read_value, respond
from moulin.api.parameters import (
    CursorQuery,
    LimitQuery,
    ProjectPath,
    ProjectQuery,
    SequenceQuery,
    WorkloadPath,
)
from moulin.api.state import ApiState, state_of
from moulin.controlplane.commands import (
    AdjustWorkload,
    ExplainWorkload,
    Explanation,
    Idempotency,
    ReadElements,
    RolloutEndpoint,
    ScaleEndpoint,
    StopElements,
    StopWorkload,
    StopWorkloads,
    SubmitWorkload,
    Trial,
    TryWorkload,
)
from moulin.domain.control import (
    AdjustWanted,
    ElementPage,
    ElementsWanted,
    RolloutWanted,
    ScaleWanted,
    Stopped,
    StopWanted,
    WorkloadPage,
)
from moulin.domain.ids import PREFIX_BY_KIND, ProjectId, WorkloadId, make_id
from moulin.domain.observation import LogChunk
from moulin.domain.principal import Principal
from moulin.domain.views import WorkloadView
from moulin.domain.workload import WorkloadKind, WorkloadSpec, WorkloadState
from moulin.identity import Action
from moulin.ports.store import WorkloadFilter

router = APIRouter(tags=["workloads"])
Sender = Annotated[Principal, Depends(Allow(Action.WORKLOAD_SUBMIT))]
Trier = Annotated[Principal, Depends(Allow(Action.WORKLOAD_TRY))]
Reader = Annotated[Principal, Depends(Allow(Action.WORKLOAD_READ))]
Stopper = Annotated[Principal, Depends(Allow(Action.WORKLOAD_STOP))]
Scaler = Annotated[Principal, Depends(Allow(Action.WORKLOAD_SCALE))]
Adjuster = Annotated[Principal, Depends(Allow(Action.WORKLOAD_ADJUST))]
LogsReader = Annotated[Principal, Depends(Allow(Action.LOGS_READ))]
IDEMPOTENCY_PATTERN: Final = r"^[!-~]{0,128}$"
IdempotencyKey = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        pattern=IDEMPOTENCY_PATTERN,
        description="Repeating a request with the same key and body gives the first answer again.",
    ),
]
LABEL_PATTERN: Final = r"^(?:[A-Za-z0-9][A-Za-z0-9._-]{0,62}=[^\x00-\x1f]{0,200})?$"


@router.post(
    "/projects/{project}/workloads",
    **described(WorkloadView, body=WorkloadSpec, status=201),
)
async def submit_workload(
    request: Request,
    project: ProjectPath,
    principal: Sender,
    idempotency_key: IdempotencyKey = "",
) -> Response:
    """Admit a workload to wait for its placement; durable when answered."""
    state = state_of(request)
    body = await read_bytes(request)
    spec = parse(WorkloadSpec, body)
    view = await state.bridge.ask(
        SubmitWorkload(
            principal=principal,
            project=ProjectId(project),
            spec=spec,
            id=drawn_id(state, spec.kind),
            idempotency=repeated_as(idempotency_key, body),
        ),
        WorkloadView,
    )
    return respond(view, 201, {"location": f"/api/v1/workloads/{view.id}"})


def drawn_id(state: ApiState, kind: WorkloadKind) -> WorkloadId:
    """Return a new id for a workload of a kind."""
    services = state.services
    now_ns, entropy = services.clock.now_ns(), services.ids.entropy()
    return WorkloadId(make_id(PREFIX_BY_KIND[kind], now_ns, entropy))


def repeated_as(key: str, body: bytes) -> Idempotency | None:
    """Return by what a repeated request is known, None for one without a key."""
    return Idempotency(key=key, body_hash=hashlib.sha256(body).hexdigest()) if key else None


@router.post("/projects/{project}/workloads/try", **described(Trial, body=WorkloadSpec))
async def try_workload(request: Request, project: ProjectPath, principal: Trier) -> Response:
    """Say where and when a workload would start and what it would cost; nothing is recorded."""
    spec = await read_value(request, WorkloadSpec)
    trial = await state_of(request).bridge.ask(
        TryWorkload(principal=principal, project=ProjectId(project), spec=spec), Trial
    )
    return respond(trial)


@router.post("/projects/{project}/workloads/stop", **described(Stopped, body=StopWanted))
async def stop_workloads(request: Request, project: ProjectPath, principal: Stopper) -> Response:
    """Ask for the end of all that fits in one go, or only say what would."""
    wanted = await read_value(request, StopWanted)
    command = StopWorkloads(principal=principal, project=ProjectId(project), wanted=wanted)
    return respond(await state_of(request).bridge.ask(command, Stopped))


@router.get("/workloads", **described(WorkloadPage))
async def list_workloads(
    request: Request,
    principal: Reader,
    *,
    project: ProjectQuery = "",
    kind: Annotated[WorkloadKind | None, Query()] = None,
    state: Annotated[list[WorkloadState] | None, Query(max_length=10)] = None,
    name: Annotated[str, Query(max_length=200)] = "",
    label: Annotated[str, Query(pattern=LABEL_PATTERN, description="key=value")] = "",
    cursor: CursorQuery = "",
    limit: LimitQuery = 100,
) -> Response:
    """Return workloads, newest first."""
    key, _, value = label.partition("=")
    wanted = WorkloadFilter(
        project=own_project(principal, Action.WORKLOAD_READ, project),
        kind=kind.value if kind else "",
        states=tuple(each.value for each in state or ()),
        name=name,
        label=(key, value) if label else None,
        before=cursor,
        limit=limit,
    )
    found = tuple(await in_thread(state_of(request).services.store.workloads, wanted))
    return respond(WorkloadPage(items=found, next=found[-1].id if len(found) == limit else ""))


@router.get("/workloads/{workload}", **described(WorkloadView))
async def read_workload(request: Request, workload: WorkloadPath, principal: Reader) -> Response:
    """Return one workload."""
    return respond(await owned(state_of(request), principal, Action.WORKLOAD_READ, workload))


@router.post("/workloads/{workload}/stop", **described(WorkloadView))
async def stop_workload(request: Request, workload: WorkloadPath, principal: Stopper) -> Response:
    """Ask for the end of a workload; one that has ended stays as it is."""
    state = state_of(request)
    view = await owned(state, principal, Action.WORKLOAD_STOP, workload)
    command = StopWorkload(principal=principal, workload=WorkloadId(view.id))
    return respond(await state.bridge.ask(command, WorkloadView))


@router.post("/workloads/{workload}/adjust", **described(WorkloadView, body=AdjustWanted))
async def adjust_workload(
    request: Request, workload: WorkloadPath, principal: Adjuster
) -> Response:
    """Hold a workload, let it go on, or give it another priority; what runs is left alone."""
    state = state_of(request)
    wanted = await read_value(request, AdjustWanted)
    view = await owned(state, principal, Action.WORKLOAD_ADJUST, workload)
    command = AdjustWorkload(principal=principal, workload=WorkloadId(view.id), wanted=wanted)
    return respond(await state.bridge.ask(command, WorkloadView))


@router.get("/workloads/{workload}/elements", **described(ElementPage))
async def read_elements(
    request: Request,
    workload: WorkloadPath,
    principal: Reader,
    *,
    index: Annotated[list[int] | None, Query(max_length=1000)] = None,
    state: Annotated[list[str] | None, Query(max_length=10)] = None,
) -> Response:
    """Return elements of an array: all, or those of some indices or states."""
    found = state_of(request)
    view = await owned(found, principal, Action.WORKLOAD_READ, workload)
    command = ReadElements(
        workload=WorkloadId(view.id), indices=tuple(index or ()), states=tuple(state or ())
    )
    return respond(await found.bridge.ask(command, ElementPage))


@router.post("/workloads/{workload}/elements/stop", **described(WorkloadView, body=ElementsWanted))
async def stop_elements(request: Request, workload: WorkloadPath, principal: Stopper) -> Response:
    """Ask for the end of some elements of an array; the others go on."""
    state = state_of(request)
    wanted = await read_value(request, ElementsWanted)
    view = await owned(state, principal, Action.WORKLOAD_STOP, workload)
    command = StopElements(
        principal=principal, workload=WorkloadId(view.id), indices=wanted.indices
    )
    return respond(await state.bridge.ask(command, WorkloadView))


@router.post("/workloads/{workload}/scale", **described(WorkloadView, body=ScaleWanted))
async def scale_workload(request: Request, workload: WorkloadPath, principal: Scaler) -> Response:
    """Set an endpoint's number of replicas, or between which numbers its load moves it."""
    state = state_of(request)
    wanted = await read_value(request, ScaleWanted)
    view = await owned(state, principal, Action.WORKLOAD_SCALE, workload)
    command = ScaleEndpoint(
        principal=principal,
        workload=WorkloadId(view.id),
        replicas=wanted.replicas,
        scaling=wanted.scaling,
    )
    return respond(await state.bridge.ask(command, WorkloadView))


@router.post("/workloads/{workload}/rollout", **described(WorkloadView, body=RolloutWanted))
async def rollout_workload(request: Request, workload: WorkloadPath, principal: Scaler) -> Response:
    """Let an endpoint serve something else, or what it served before, without a cut stream."""
    state = state_of(request)
    wanted = await read_value(request, RolloutWanted)
    view = await owned(state, principal, Action.WORKLOAD_SCALE, workload)
    command = RolloutEndpoint(principal=principal, workload=WorkloadId(view.id), wanted=wanted)
    return respond(await state.bridge.ask(command, WorkloadView))


@router.get("/workloads/{workload}/why", **described(Explanation))
async def explain_workload(request: Request, workload: WorkloadPath, principal: Reader) -> Response:
    """Say why a workload does not run, or not more of it, with the numbers."""
    state = state_of(request)
    view = await owned(state, principal, Action.WORKLOAD_READ, workload)
    command = ExplainWorkload(workload=WorkloadId(view.id))
    return respond(await state.bridge.ask(command, Explanation))


@router.get("/workloads/{workload}/logs", **described(LogChunk))
async def read_logs(
    request: Request,
    workload: WorkloadPath,
    principal: LogsReader,
    *,
    unit: Annotated[int, Query(ge=0, le=10**6)] = 0,
    rank: Annotated[int, Query(ge=0, le=10**6)] = 0,
    cursor: SequenceQuery = 0,
    limit: Annotated[int, Query(ge=1, le=2**20, description="bytes")] = 2**16,
) -> Response:
    """Return output of one task of the latest attempt, from byte `cursor`; ask on to follow."""
    state = state_of(request)
    view = await owned(state, principal, Action.LOGS_READ, workload)
    return respond(await in_thread(state.services.logs, view.id, unit, rank, cursor, limit))


async def owned(
    state: ApiState, principal: Principal, action: Action, workload: str
) -> WorkloadView:
    """Return a workload the caller may do `action` to; raises `NotFound`."""
    view = await in_thread(state.services.store.workload, workload)
    if view is None:
        raise missing(f"workload {workload}")
    require_owner(principal, action, (view.project, view.organisation), f"workload {workload}")
    return view

"""Batches of a project: open, list, read, cancel, forget. Carrying them out is another's work."""

from dataclasses import replace
from typing import Annotated, Final

import orjson
from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from moulin.api.access import Allow, missing, own_project, require_owner
from moulin.api.describe import described
from moulin.api.exchange import read_value, respond
from moulin.api.objects import owned as owned_object
from moulin.api.objects import store_lines
from moulin.api.parameters import ID, CursorQuery, LimitQuery
from moulin.api.state import ApiState, state_of
from moulin.controlplane.commands import CancelBatch, DeleteObject, OpenBatch
from moulin.domain.errors import InvalidSpec
from moulin.domain.ids import make_id
from moulin.domain.objects import (
    BatchJob,
    BatchPage,
    BatchWanted,
    StoredKind,
)
from moulin.domain.principal import Principal
from moulin.domain.units import NS_PER_S
from moulin.identity import Action

router = APIRouter(tags=["batches"])
Reader = Annotated[Principal, Depends(Allow(Action.OBJECT_READ))]
Writer = Annotated[Principal, Depends(Allow(Action.OBJECT_WRITE))]
BatchPath = Annotated[str, Path(pattern=ID, description="A batch's id.")]
ENDPOINTS: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/fim/completions",
)


@router.post("/batches", **described(BatchJob, body=BatchWanted, status=201))
async def open_batch(request: Request, principal: Writer) -> Response:
    """Accept requests to be carried out within a day, at the batch price, when there is room."""
    state = state_of(request)
    wanted = await read_value(request, BatchWanted)
    if wanted.endpoint not in ENDPOINTS:
        raise InvalidSpec(
            f"open a batch for {wanted.endpoint[:60]!r}: that endpoint takes none",
            hint=f"endpoints: {', '.join(ENDPOINTS)}",
            details={"path": "endpoint", "param": "endpoint"},
        )
    if bool(wanted.input_files) == bool(wanted.requests):
        raise InvalidSpec(
            "open a batch: give input_files or requests",
            hint="upload a file of requests, one JSON object a line",
            details={"path": "input_files", "param": "input_file_id"},
        )
    for name in wanted.input_files:
        owned_object(state, principal, name, StoredKind.FILE)
    if wanted.requests:
        lines = b"".join(orjson.dumps(dict(each)) + b"\n" for each in wanted.requests)
        stored = await store_lines(state, principal, "requests.jsonl", lines)
        wanted = replace(wanted, input_files=(stored.id,), requests=())
    command = OpenBatch(principal=principal, batch=_batch(state, principal, wanted))
    batch = await state.bridge.ask(command, BatchJob)
    state.services.desk.wake()
    return respond(batch, 201, {"location": f"/api/v1/batches/{batch.id}"})


@router.get("/batches", **described(BatchPage))
async def list_batches(
    request: Request, principal: Reader, *, cursor: CursorQuery = "", limit: LimitQuery = 100
) -> Response:
    """Return the project's batches, newest first."""
    state = state_of(request)
    project = own_project(principal, Action.OBJECT_READ, "")
    found = [
        each
        for each in list(state.services.objects().batches.values())
        if each.project == project and (not cursor or each.id < cursor)
    ]
    found.sort(key=lambda each: each.id, reverse=True)
    page = tuple(state.services.desk.progress(each) for each in found[:limit])
    return respond(BatchPage(items=page, next=page[-1].id if len(found) > limit else ""))


@router.get("/batches/{batch}", **described(BatchJob))
async def read_batch(request: Request, batch: BatchPath, principal: Reader) -> Response:
    """Return one batch with how far it is."""
    state = state_of(request)
    return respond(state.services.desk.progress(_owned(state, principal, batch)))


@router.post("/batches/{batch}/cancel", **described(BatchJob))
async def cancel_batch(request: Request, batch: BatchPath, principal: Writer) -> Response:
    """Begin no further line; what is done is kept in the output file."""
    state = state_of(request)
    _owned(state, principal, batch)
    cancelled = await state.bridge.ask(CancelBatch(principal=principal, batch=batch), BatchJob)
    state.services.desk.wake()
    return respond(state.services.desk.progress(cancelled))


@router.delete("/batches/{batch}", **described(BatchJob))
async def delete_batch(request: Request, batch: BatchPath, principal: Writer) -> Response:
    """Forget a batch that has ended; its files stay until they are deleted or expire."""
    state = state_of(request)
    _owned(state, principal, batch)
    return respond(
        await state.bridge.ask(DeleteObject(principal=principal, object=batch), BatchJob)
    )


def _owned(state: ApiState, principal: Principal, name: str) -> BatchJob:
    found = state.services.objects().batches.get(name)
    if found is None:
        raise missing(f"batch {name}")
    owner = (found.project, found.organisation)
    require_owner(principal, Action.OBJECT_READ, owner, f"batch {name}")
    return found


def _batch(state: ApiState, principal: Principal, wanted: BatchWanted) -> BatchJob:
    services = state.services
    now_ns = services.clock.now_ns()
    return BatchJob(
        id=make_id("batch", now_ns, services.ids.entropy()),
        organisation=principal.organisation,
        project=principal.project,
        key=principal.key,
        endpoint=wanted.endpoint,
        input_files=wanted.input_files,
        model=wanted.model,
        metadata=wanted.metadata,
        created_at_ns=now_ns,
        deadline_at_ns=now_ns + wanted.window_s * NS_PER_S,
    )

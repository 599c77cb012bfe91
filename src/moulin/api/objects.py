"""Files and stored responses of a project: upload, list, read, delete.

An upload goes to its place piece by piece and is an object when it is whole and recorded; until then
nobody can name it. What one project stored is, for another, nothing that exists.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import Response, StreamingResponse

from moulin.api.access import Allow, missing, own_project, require_owner
from moulin.api.describe import described
from moulin.api.edge import UNREAD
from moulin.api.exchange import in_thread, respond
from moulin.api.forms import Form
from moulin.api.parameters import ID, CursorQuery, LimitQuery
from moulin.api.services import ObjectUpload
from moulin.api.state import ApiState, state_of
from moulin.controlplane.commands import DeleteObject, StoreObject
from moulin.domain.errors import BodyTooLarge, InvalidRequest
from moulin.domain.ids import make_id
from moulin.domain.objects import (
    FILE_KEPT_S,
    RESPONSE_KEPT_S,
    StoredKind,
    StoredObject,
    StoredPage,
)
from moulin.domain.principal import Principal
from moulin.domain.units import NS_PER_S
from moulin.identity import Action

router = APIRouter(tags=["objects"])
Reader = Annotated[Principal, Depends(Allow(Action.OBJECT_READ))]
Writer = Annotated[Principal, Depends(Allow(Action.OBJECT_WRITE))]
FilePath = Annotated[str, Path(pattern=ID, description="A file's id.")]
ResponsePath = Annotated[str, Path(pattern=ID, description="A response's id.")]
KEPT_S_MIN: Final = 3600
NAME_CHARACTERS_MAX: Final = 200
PURPOSES: Final = ("batch", "user_data", "fine-tune", "evals", "vision", "assistants", "ocr")
PIECE_BYTES: Final = 1 << 18
OCTETS: Final = "application/octet-stream"


@router.post("/files", **described(StoredObject, status=201))
async def upload_file(request: Request, principal: Writer) -> Response:
    """Store a file sent as a form with `file` and `purpose`; `expires_after[seconds]` if wanted."""
    state = state_of(request)
    name = draw_id(state, "file")
    upload = await in_thread(state.services.contents.begin, name)
    try:
        form = await receive_form(request, state, upload)
        stored = _file(state, principal, name, form)
        return respond(await keep_upload(state, principal, upload, stored), 201)
    except BaseException:
        await asyncio.shield(in_thread(upload.drop))
        raise


@router.get("/files", **described(StoredPage))
async def list_files(
    request: Request,
    principal: Reader,
    *,
    purpose: Annotated[str, Query(max_length=40)] = "",
    cursor: CursorQuery = "",
    limit: LimitQuery = 100,
) -> Response:
    """Return the project's files, newest first."""
    project = own_project(principal, Action.OBJECT_READ, "")
    found = [
        each
        for each in list(state_of(request).services.objects().stored.values())
        if each.kind is StoredKind.FILE
        and each.project == project
        and purpose in ("", each.purpose)
        and (not cursor or each.id < cursor)
    ]
    found.sort(key=lambda each: each.id, reverse=True)
    page = tuple(found[:limit])
    return respond(StoredPage(items=page, next=page[-1].id if len(found) > limit else ""))


@router.get("/files/{file}", **described(StoredObject))
async def read_file(request: Request, file: FilePath, principal: Reader) -> Response:
    """Return what is known of a file."""
    return respond(owned(state_of(request), principal, file, StoredKind.FILE))


@router.get("/files/{file}/content", **described(OCTETS))
async def read_content(request: Request, file: FilePath, principal: Reader) -> Response:
    """Return a file's bytes."""
    state = state_of(request)
    return await _content(state, owned(state, principal, file, StoredKind.FILE), OCTETS)


@router.delete("/files/{file}", **described(StoredObject))
async def delete_file(request: Request, file: FilePath, principal: Writer) -> Response:
    """Delete a file with its bytes."""
    return respond(await _delete(state_of(request), principal, file, StoredKind.FILE))


@router.post("/responses", **described(StoredObject, status=201))
async def store_response(
    request: Request, principal: Writer, id: Annotated[str, Query(pattern=ID)]
) -> Response:
    """Store a model's response, as its caller asked, under the id it already has."""
    state = state_of(request)
    known = state.services.objects().stored.get(id)
    if known is not None or not id.startswith("resp_"):
        raise InvalidRequest(f"store response {id}: that id cannot be used")
    upload = await in_thread(state.services.contents.begin, id)
    try:
        async for piece in _pieces(request, state.services.limits.response_bytes_max):
            await in_thread(upload.write, piece)
        stored = new_object(state, principal, id, RESPONSE_KEPT_S, kind=StoredKind.RESPONSE)
        return respond(await keep_upload(state, principal, upload, stored), 201)
    except BaseException:
        await asyncio.shield(in_thread(upload.drop))
        raise


@router.get("/responses/{response}", **described(dict))
async def read_response(request: Request, response: ResponsePath, principal: Reader) -> Response:
    """Return a stored response as it was given."""
    state = state_of(request)
    found = owned(state, principal, response, StoredKind.RESPONSE)
    return await _content(state, found, "application/json")


@router.delete("/responses/{response}", **described(StoredObject))
async def delete_response(request: Request, response: ResponsePath, principal: Writer) -> Response:
    """Delete a stored response."""
    return respond(await _delete(state_of(request), principal, response, StoredKind.RESPONSE))


def owned(state: ApiState, principal: Principal, name: str, kind: StoredKind) -> StoredObject:
    """Return an object of the caller's project; raises `NotFound`."""
    found = state.services.objects().stored.get(name)
    if found is None or found.kind is not kind:
        raise missing(f"{kind} {name}")
    owner = (found.project, found.organisation)
    require_owner(principal, Action.OBJECT_READ, owner, f"{kind} {name}")
    return found


async def store_lines(
    state: ApiState, principal: Principal, title: str, lines: bytes
) -> StoredObject:
    """Store what came inside a request as a file of its own; raises as an upload does."""
    name = draw_id(state, "file")
    size_bytes, sha256 = await in_thread(state.services.contents.put, name, (lines,))
    stored = new_object(state, principal, name, FILE_KEPT_S, title=title, purpose="batch")
    return await _record(state, principal, stored, size_bytes, sha256)


async def receive_form(request: Request, state: ApiState, upload: ObjectUpload) -> Form:
    """Take a form whose field `file` goes to `upload`; raises `InvalidRequest` for another."""
    waiting: list[bytes] = []
    form = Form(request.headers.get("content-type", ""), waiting.append)
    async for piece in _pieces(request, state.services.limits.upload_bytes_max):
        form.feed(piece)
        if sum(map(len, waiting)) >= PIECE_BYTES:
            await in_thread(upload.write, b"".join(waiting))
            waiting.clear()
    await in_thread(upload.write, b"".join(waiting))
    if not form.is_done or form.file_name is None:
        raise InvalidRequest(
            "read the upload: it has no field `file`, or ended early",
            hint="send multipart/form-data with the fields file and purpose",
            details={"param": "file"},
        )
    return form


async def _pieces(request: Request, limit_bytes: int) -> AsyncIterator[bytes]:
    """Yield the body as it comes; raises `BodyTooLarge`, `InvalidRequest` when it stops coming."""
    wait_s = state_of(request).services.limits.body_wait_s
    size_bytes, has_more = 0, True
    request.scope[UNREAD] = True
    while has_more:
        try:
            async with asyncio.timeout(wait_s):
                message = await request.receive()
        except TimeoutError:
            raise InvalidRequest(f"read the upload: nothing came for {wait_s:g} s") from None
        if message["type"] == "http.disconnect":
            raise InvalidRequest("read the upload: the connection ended before it did")
        piece: bytes = message.get("body", b"")
        size_bytes += len(piece)
        if size_bytes > limit_bytes:
            raise BodyTooLarge(
                f"read the upload: it is larger than {limit_bytes} bytes",
                hint="send it in several files",
            )
        has_more = message.get("more_body", False)
        yield piece
    del request.scope[UNREAD]


def _file(state: ApiState, principal: Principal, name: str, form: Form) -> StoredObject:
    purpose = form.fields.get("purpose", "batch")
    if purpose not in PURPOSES:
        raise InvalidRequest(
            f"store a file for {purpose[:60]!r}: that is no purpose here",
            hint=f"purposes: {', '.join(PURPOSES)}",
            details={"param": "purpose"},
        )
    title = (form.file_name or "").replace("\\", "/").rpartition("/")[2]
    title = "".join(each for each in title if each.isprintable())[:NAME_CHARACTERS_MAX] or "upload"
    return new_object(state, principal, name, _kept_s(form), title=title, purpose=purpose)


def _kept_s(form: Form) -> int:
    """Return for how long a file is kept: as asked, in seconds or in hours, at most a month."""
    seconds, hours = form.fields.get("expires_after[seconds]"), form.fields.get("expiry")
    asked = seconds if seconds is not None else hours
    if not asked:
        return FILE_KEPT_S
    kept_s = -1
    with contextlib.suppress(ValueError):
        kept_s = int(asked[:12]) * (1 if seconds is not None else 3600)
    if not KEPT_S_MIN <= kept_s <= FILE_KEPT_S:
        raise InvalidRequest(
            f"keep a file for {asked[:40]!r}: use {KEPT_S_MIN} s to {FILE_KEPT_S} s",
            details={"param": "expires_after"},
        )
    return kept_s


def new_object(
    state: ApiState,
    principal: Principal,
    name: str,
    kept_s: int,
    *,
    title: str = "",
    purpose: str = "",
    kind: StoredKind = StoredKind.FILE,
) -> StoredObject:
    """Return an object of the caller's project without its size and digest."""
    now_ns = state.services.clock.now_ns()
    return StoredObject(
        id=name,
        kind=kind,
        organisation=principal.organisation,
        project=principal.project,
        key=principal.key,
        name=title,
        purpose=purpose,
        size_bytes=0,
        sha256="",
        created_at_ns=now_ns,
        expires_at_ns=now_ns + kept_s * NS_PER_S,
    )


async def keep_upload(
    state: ApiState, principal: Principal, upload: ObjectUpload, stored: StoredObject
) -> StoredObject:
    """Put an upload in its place and make it an object; raises what `StoreObject` does."""
    sha256 = await in_thread(upload.close)
    return await _record(state, principal, stored, upload.size_bytes, sha256)


async def _record(
    state: ApiState, principal: Principal, stored: StoredObject, size_bytes: int, sha256: str
) -> StoredObject:
    """Make stored bytes an object; they go again where that is refused."""
    whole = replace(stored, size_bytes=size_bytes, sha256=sha256)
    try:
        command = StoreObject(principal=principal, object=whole)
        return await state.bridge.ask(command, StoredObject)
    except BaseException:
        await asyncio.shield(in_thread(state.services.contents.delete, stored.id))
        raise


async def _delete(
    state: ApiState, principal: Principal, name: str, kind: StoredKind
) -> StoredObject:
    owned(state, principal, name, kind)
    command = DeleteObject(principal=principal, object=name)
    gone = await state.bridge.ask(command, StoredObject)
    await in_thread(state.services.contents.delete, name)
    return gone


async def _content(state: ApiState, stored: StoredObject, media_type: str) -> Response:
    pieces = state.services.contents.read(stored.id)
    first = await in_thread(next, pieces, b"")
    headers = {"content-length": str(stored.size_bytes), "cache-control": "no-store"}
    return StreamingResponse(
        itertools.chain((first,), pieces), media_type=media_type, headers=headers
    )


def draw_id(state: ApiState, prefix: str) -> str:
    """Return a new id."""
    services = state.services
    return make_id(prefix, services.clock.now_ns(), services.ids.entropy())

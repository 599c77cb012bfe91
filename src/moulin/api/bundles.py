"""Bundles of a project: folders that jobs start in copies of, named by the digest of their bytes.

What is kept already need not be sent again. One project's bundles are, for another, nothing that
exists, whatever their digest; their bytes are given to tasks and to nobody who asks.
"""

import asyncio
from dataclasses import replace
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from moulin.api.access import Allow, missing
from moulin.api.describe import described
from moulin.api.exchange import in_thread, respond
from moulin.api.keys import organisation_of
from moulin.api.objects import draw_id, keep_upload, new_object, receive_form
from moulin.api.parameters import ProjectPath
from moulin.api.state import ApiState, state_of
from moulin.controlplane.commands import DeleteObject
from moulin.domain.errors import InvalidRequest
from moulin.domain.ids import OrganisationId, ProjectId
from moulin.domain.objects import BUNDLE_KEPT_S, StoredKind, StoredObject, StoredPage
from moulin.domain.principal import Principal
from moulin.identity import Action

router = APIRouter(tags=["bundles"])
Reader = Annotated[Principal, Depends(Allow(Action.WORKLOAD_READ))]
Writer = Annotated[Principal, Depends(Allow(Action.WORKLOAD_SUBMIT))]
DIGEST: Final = r"^[0-9a-f]{64}$"
DigestPath = Annotated[str, Path(pattern=DIGEST, description="SHA-256 of the packed folder.")]


@router.get("/projects/{project}/bundles", **described(StoredPage))
async def list_bundles(request: Request, project: ProjectPath, principal: Reader) -> Response:
    """Return the project's bundles, newest first."""
    found = [
        each
        for each in list(state_of(request).services.objects().stored.values())
        if each.kind is StoredKind.BUNDLE and each.project == project
    ]
    found.sort(key=lambda each: each.id, reverse=True)
    return respond(StoredPage(items=tuple(found)))


@router.get("/projects/{project}/bundles/{digest}", **described(StoredObject))
async def read_bundle(
    request: Request, project: ProjectPath, digest: DigestPath, principal: Reader
) -> Response:
    """Return what is known of a bundle; one that is there need not be sent."""
    return respond(_found(state_of(request), project, digest))


@router.put("/projects/{project}/bundles/{digest}", **described(StoredObject, status=201))
async def store_bundle(
    request: Request, project: ProjectPath, digest: DigestPath, principal: Writer
) -> Response:
    """Store a packed folder sent as a form with `file`; what has another digest is refused."""
    state = state_of(request)
    organisation = await in_thread(organisation_of, state.services, principal, project)
    name = draw_id(state, "bundle")
    upload = await in_thread(state.services.contents.begin, name)
    try:
        await receive_form(request, state, upload)
        stored = replace(
            new_object(state, principal, name, BUNDLE_KEPT_S, kind=StoredKind.BUNDLE),
            organisation=OrganisationId(organisation),
            project=ProjectId(project),
        )
        if upload.sha256() != digest:
            raise InvalidRequest(
                f"store bundle {digest[:12]}: what came has another digest", hint="send it again"
            )
        return respond(await keep_upload(state, principal, upload, stored), 201)
    except BaseException:
        await asyncio.shield(in_thread(upload.drop))
        raise


@router.delete("/projects/{project}/bundles/{digest}", **described(StoredObject))
async def delete_bundle(
    request: Request, project: ProjectPath, digest: DigestPath, principal: Writer
) -> Response:
    """Delete a bundle with its bytes; one that an unfinished job starts with is in use."""
    state = state_of(request)
    found = _found(state, project, digest)
    command = DeleteObject(principal=principal, object=found.id)
    gone = await state.bridge.ask(command, StoredObject)
    await in_thread(state.services.contents.delete, found.id)
    return respond(gone)


def _found(state: ApiState, project: str, digest: str) -> StoredObject:
    found = state.services.objects().bundle(project, digest)
    if found is None:
        raise missing(f"bundle {digest[:12]}")
    return found

"""Secrets of a project: set, list by name, delete; and the master key of all of them, rotated.

A value is sealed as soon as it is read and is in no answer, error or log of this edge.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from moulin.api.access import Allow
from moulin.api.describe import described
from moulin.api.exchange import in_thread, read_value, respond
from moulin.api.keys import organisation_of
from moulin.api.parameters import ProjectPath
from moulin.api.state import state_of
from moulin.controlplane.commands import DeleteSecret, SetSecret
from moulin.domain.errors import BodyTooLarge, InvalidRequest, NotFound, QuotaExceeded
from moulin.domain.ids import OrganisationId, ProjectId, make_id
from moulin.domain.principal import Principal
from moulin.domain.secrets import (
    SECRET_BYTES_MAX,
    SECRET_NAME,
    MasterRotated,
    SealedSecret,
    SecretInfo,
    SecretPage,
    SecretWanted,
    info_of,
)
from moulin.identity import Action

router = APIRouter(tags=["secrets"])
Reader = Annotated[Principal, Depends(Allow(Action.SECRET_READ))]
Writer = Annotated[Principal, Depends(Allow(Action.SECRET_WRITE))]
Rotator = Annotated[Principal, Depends(Allow(Action.SECRET_ROTATE))]
NamePath = Annotated[str, Path(pattern=f"^{SECRET_NAME}$", description="A secret's name.")]


@router.get("/projects/{project}/secrets", **described(SecretPage))
async def list_secrets(request: Request, project: ProjectPath, principal: Reader) -> Response:
    """Return the names of the project's secrets, with who set each and when; never a value."""
    found = state_of(request).services.secrets().of_project(project)
    return respond(SecretPage(items=tuple(info_of(each) for each in found)))


@router.put("/projects/{project}/secrets/{name}", **described(SecretInfo, body=SecretWanted))
async def set_secret(
    request: Request, project: ProjectPath, name: NamePath, principal: Writer
) -> Response:
    """Set a secret; its value cannot be read again but by the project's tasks."""
    state = state_of(request)
    services = state.services
    value = (await read_value(request, SecretWanted)).value.encode()
    _check(value)
    now_ns = services.clock.now_ns()
    organisation = await in_thread(organisation_of, services, principal, project)
    secret = SealedSecret(
        id=make_id("sec", now_ns, services.ids.entropy()),
        organisation=OrganisationId(organisation),
        project=ProjectId(project),
        name=name,
        ciphertext=b"",
        set_by=principal.name,
        set_at_ns=now_ns,
    )
    sealed = await in_thread(services.vault.seal, secret, value)
    command = SetSecret(principal=principal, secret=sealed)
    try:
        return respond(await state.bridge.ask(command, SecretInfo))
    except (NotFound, QuotaExceeded):
        # Any other error leaves open whether it was recorded; a key of nothing does no harm.
        await in_thread(services.vault.shred, (secret.id,))
        raise


@router.delete("/projects/{project}/secrets/{name}", **described(SecretInfo))
async def delete_secret(
    request: Request, project: ProjectPath, name: NamePath, principal: Writer
) -> Response:
    """Delete a secret: its key is destroyed, so that no copy of the log can be read for it."""
    command = DeleteSecret(principal=principal, project=ProjectId(project), name=name)
    return respond(await state_of(request).bridge.ask(command, SecretInfo))


@router.post("/secrets/rotate", **described(MasterRotated))
async def rotate_master(request: Request, principal: Rotator) -> Response:
    """Make a new master key, wrap every secret's key with it, and destroy the former one."""
    count = await in_thread(state_of(request).services.vault.rotate)
    return respond(MasterRotated(secrets=count))


def _check(value: bytes) -> None:
    if len(value) > SECRET_BYTES_MAX:
        raise BodyTooLarge(f"set a secret: it is larger than {SECRET_BYTES_MAX} bytes")
    if not value or b"\0" in value:
        raise InvalidRequest("set a secret: it is empty, or holds a NUL byte")

"""Keys of a project: issue (the secret is shown once), list, rotate, restrict, limit, revoke."""

import asyncio
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from moulin.api.access import Allow, missing, require_owner
from moulin.api.describe import described
from moulin.api.exchange import in_thread, read_value, respond
from moulin.api.parameters import KeyPath, ProjectPath
from moulin.api.services import ApiServices
from moulin.api.state import ApiState, state_of
from moulin.controlplane.commands import (
    CreateKey,
    ReadAllowances,
    RevokeKey,
    RotateKey,
    UpdateKey,
)
from moulin.controlplane.snapshot import may_infer
from moulin.domain.control import (
    AllowancePage,
    KeyChange,
    KeyInfo,
    KeyIssued,
    KeyPage,
    KeyRotation,
    KeyWanted,
    WebhookInfo,
)
from moulin.domain.errors import Forbidden
from moulin.domain.factory import ObjectKind, Organisation, Project, webhook_of
from moulin.domain.ids import KeyId, OrganisationId, ProjectId, make_id
from moulin.domain.limits import USER_CHARACTERS_MAX
from moulin.domain.principal import ApiKey, Principal, Role
from moulin.domain.wire import decode
from moulin.identity import (
    Action,
    Reach,
    digest,
    make_key,
    names_of_user,
    reach,
    webhook_secret,
)

router = APIRouter(tags=["keys"])
Creator = Annotated[Principal, Depends(Allow(Action.KEY_CREATE))]
Reader = Annotated[Principal, Depends(Allow(Action.KEY_READ))]
UsageReader = Annotated[Principal, Depends(Allow(Action.USAGE_READ))]
Revoker = Annotated[Principal, Depends(Allow(Action.KEY_REVOKE))]

PROJECT_ROLES: Final = (Role.ADMIN, Role.MEMBER, Role.VIEWER, Role.INFERENCE)
ENTROPY_DRAWS: Final = 3  # of 80 bits each


@router.post("/projects/{project}/keys", **described(KeyIssued, body=KeyWanted, status=201))
async def create_key(request: Request, project: ProjectPath, principal: Creator) -> Response:
    """Issue a key; its secret is in this answer and nowhere else, ever.

    A key that may call models is answered when every connected gateway knows it, at the latest
    after two seconds; `is_in_force` says which it was.
    """
    state = state_of(request)
    wanted = await read_value(request, KeyWanted)
    if wanted.role not in PROJECT_ROLES:
        raise Forbidden(
            f"issue a key of role {wanted.role} in a project: the role belongs to the factory",
            hint=f"roles of a project: {', '.join(PROJECT_ROLES)}",
        )
    organisation = await in_thread(organisation_of, state.services, principal, project)
    services = state.services
    secret = _secret(services)
    now_ns = services.clock.now_ns()
    key = ApiKey(
        id=KeyId(make_id("key", now_ns, services.ids.entropy())),
        name=wanted.name,
        role=wanted.role,
        organisation=OrganisationId(organisation),
        project=ProjectId(project),
        digest=digest(services.pepper, secret),
        models=wanted.models,
        countries=wanted.countries,
        created_at_ns=now_ns,
        expires_at_ns=wanted.expires_at_ns,
        labels=wanted.labels,
        rate=wanted.rate,
        allowance=wanted.allowance,
        per_user=wanted.per_user,
    )
    issued = await state.bridge.ask(CreateKey(principal=principal, key=key), ApiKey)
    return await _hand_over(state, issued, secret)


@router.get("/projects/{project}/keys", **described(KeyPage))
async def list_keys(request: Request, project: ProjectPath, principal: Reader) -> Response:
    """Return the project's keys, revoked ones too."""
    found = await in_thread(state_of(request).services.store.keys, project)
    return respond(KeyPage(items=tuple(info(key) for key in found)))


@router.get("/keys/{key}", **described(KeyInfo))
async def read_key(request: Request, key: KeyPath, principal: Reader) -> Response:
    """Return one key with its restrictions and limits."""
    return respond(info(_owned(state_of(request), principal, Action.KEY_READ, key)))


@router.patch("/keys/{key}", **described(KeyInfo, body=KeyChange))
async def change_key(request: Request, key: KeyPath, principal: Creator) -> Response:
    """Restrict a key, limit it, label it or let it expire; what is not given stays.

    Answered when every connected gateway knows, at the latest after two seconds.
    """
    state = state_of(request)
    _owned(state, principal, Action.KEY_CREATE, key)
    change = await read_value(request, KeyChange)
    changed = await state.bridge.ask(UpdateKey(principal=principal, key=key, change=change), ApiKey)
    await _reached_gateways(state)
    return respond(info(changed))


@router.post("/keys/{key}/rotate", **described(KeyIssued, body=KeyRotation, status=201))
async def rotate_key(request: Request, key: KeyPath, principal: Creator) -> Response:
    """Issue a key that may do what this one may, and let this one end at a stated time.

    Limits, and what was used of them, belong to both together: a rotation renews nothing.
    """
    state = state_of(request)
    _owned(state, principal, Action.KEY_CREATE, key)
    wanted = await read_value(request, KeyRotation)
    services = state.services
    secret = _secret(services)
    command = RotateKey(
        principal=principal,
        key=key,
        id=KeyId(make_id("key", services.clock.now_ns(), services.ids.entropy())),
        digest=digest(services.pepper, secret),
        old_until_ns=wanted.old_until_at_ns,
        expires_at_ns=wanted.expires_at_ns,
    )
    issued = await state.bridge.ask(command, ApiKey)
    return await _hand_over(state, issued, secret)


@router.get("/projects/{project}/allowances", **described(AllowancePage))
async def list_allowances(
    request: Request,
    project: ProjectPath,
    principal: UsageReader,
    user: Annotated[str, Query(max_length=USER_CHARACTERS_MAX)] = "",
) -> Response:
    """Return how the allowances stand that bind the project: its keys', its own, its organisation's.

    With `user`, as requests name it or as it is recorded, those of that one user.
    """
    state = state_of(request)
    users = names_of_user(state.services.pepper, project, user) if user else ()
    command = ReadAllowances(project=project, users=users)
    return respond(await state.bridge.ask(command, AllowancePage))


@router.get("/projects/{project}/webhook", **described(WebhookInfo))
async def read_webhook(request: Request, project: ProjectPath, principal: Creator) -> Response:
    """Return where the project's alerts go, and the secret that proves they come from here."""
    services = state_of(request).services
    url = await in_thread(_webhook, services, project)
    answer = WebhookInfo(url=url, secret=webhook_secret(services.pepper, url) if url else "")
    return respond(answer, 200, {"cache-control": "no-store"})


@router.delete("/keys/{key}", **described(KeyInfo))
async def revoke_key(request: Request, key: KeyPath, principal: Revoker) -> Response:
    """Stop a key from working: at once here and at gateways that are connected.

    A gateway that cannot be reached within two seconds follows within its snapshot's staleness.
    """
    state = state_of(request)
    _owned(state, principal, Action.KEY_REVOKE, key)
    revoked = await state.bridge.ask(RevokeKey(principal=principal, key=key), ApiKey)
    await _reached_gateways(state)
    return respond(info(revoked))


def info(key: ApiKey) -> KeyInfo:
    """Return what owners may see of a key."""
    return KeyInfo(
        id=key.id,
        name=key.name,
        role=key.role,
        organisation=key.organisation,
        project=key.project,
        models=key.models,
        countries=key.countries,
        created_at_ns=key.created_at_ns,
        expires_at_ns=key.expires_at_ns,
        revoked_at_ns=key.revoked_at_ns,
        origin=key.origin,
        labels=key.labels,
        rate=key.rate,
        allowance=key.allowance,
        per_user=key.per_user,
    )


async def _hand_over(state: ApiState, issued: ApiKey, secret: str) -> Response:
    """Answer with a new key, once gateways know one that may call models."""
    is_in_force = not may_infer(issued) or await _reached_gateways(state)
    answer = KeyIssued(key=info(issued), secret=secret, is_in_force=is_in_force)
    return respond(answer, 201, {"cache-control": "no-store"})


def _secret(services: ApiServices) -> str:
    return make_key(b"".join(services.ids.entropy().to_bytes(10) for _ in range(ENTROPY_DRAWS)))


def _owned(state: ApiState, principal: Principal, action: Action, key: str) -> ApiKey:
    """Return a key the caller may do this to; raises `NotFound` for every other."""
    found = state.services.keyring().by_id.get(key)
    if found is None:
        raise missing(f"key {key}")
    require_owner(principal, action, (found.project, found.organisation), f"key {key}")
    return found


async def _reached_gateways(state: ApiState) -> bool:
    """Return whether what is durable now has reached every connected gateway; wait a little."""
    since_s = asyncio.get_running_loop().time()
    await state.news.latest()
    return await state.gateways.caught_up(since_s, state.services.limits.gateways_wait_s)


def _webhook(services: ApiServices, project: str) -> str:
    """Return the address the operator declared for a project's alerts."""
    declared = {(each.kind, each.name): each.body for each in services.store.declared()}
    body = declared.get((ObjectKind.PROJECT.value, project))
    found = decode(Project, body) if body is not None else None
    name = found.organisation if found is not None else ""
    owner = declared.get((ObjectKind.ORGANISATION.value, name))
    return webhook_of(found, decode(Organisation, owner) if owner is not None else None)


def organisation_of(services: ApiServices, principal: Principal, project: str) -> str:
    """Return the organisation a project belongs to; raises `NotFound`."""
    if reach(principal.role, Action.KEY_CREATE) is Reach.PROJECT:
        return principal.organisation
    for declared in services.store.declared():
        if declared.kind == ObjectKind.PROJECT and declared.name == project:
            return declared.organisation
    raise missing(f"project {project}")

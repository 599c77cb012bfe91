"""Replicas elsewhere say here that they serve: each with the key of its own attempt, and no other.

What they say is kept in memory for half a minute; nothing of it goes through the control plane's cycle.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from moulin.api.access import Allow
from moulin.api.describe import described
from moulin.api.exchange import read_value, respond
from moulin.api.state import state_of
from moulin.domain.ids import AttemptId
from moulin.domain.principal import Principal
from moulin.domain.registration import Registration, RegistrationPage, RegistrationWanted
from moulin.identity import Action
from moulin.identity.keys import unauthenticated
from moulin.identity.registrations import may_register

router = APIRouter(tags=["replicas"])
AttemptPath = Annotated[str, Path(max_length=200)]
Operator = Annotated[Principal, Depends(Allow(Action.REPLICA_READ))]
_SCHEME = "bearer "


@router.get("/registrations", **described(RegistrationPage))
async def list_registrations(request: Request, principal: Operator) -> Response:
    """Return the replicas that registered: where each answers, and until when that is believed."""
    found = state_of(request).services.registrations.every()
    return respond(RegistrationPage(items=tuple(found)))


@router.put("/registrations/{attempt}", **described(Registration, body=RegistrationWanted))
async def hold_registration(request: Request, attempt: AttemptPath) -> Response:
    """Say that a replica serves at an address, to be said again before `expires_at`.

    Needs the key of this very attempt, which is in a file beside the replica; no other key will do.
    """
    replica = _identify(request, attempt)
    wanted = await read_value(request, RegistrationWanted)
    return respond(state_of(request).services.registrations.hold(replica, wanted))


@router.delete("/registrations/{attempt}", **described(dict))
async def let_registration_go(request: Request, attempt: AttemptPath) -> Response:
    """Say that a replica serves no more; needs the key of this very attempt."""
    state_of(request).services.registrations.let_go(_identify(request, attempt))
    return respond({})


def _identify(request: Request, attempt: str) -> AttemptId:
    """Return the attempt whose own key the request shows; raises `Unauthenticated` for any other."""
    shown = request.headers.get("authorization", "")
    credential = shown[len(_SCHEME) :].strip() if shown[: len(_SCHEME)].lower() == _SCHEME else ""
    if not may_register(state_of(request).services.pepper, AttemptId(attempt), credential):
        raise unauthenticated()
    return AttemptId(attempt)

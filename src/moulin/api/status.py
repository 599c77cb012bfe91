"""Health, counters, the factory at a glance, and the document that describes all of this."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from moulin.api import metrics
from moulin.api.access import Allow
from moulin.api.describe import described
from moulin.api.exchange import json_response, respond
from moulin.api.state import state_of
from moulin.controlplane.commands import ReadStatus
from moulin.domain.control import FactoryStatus, Health
from moulin.domain.principal import Principal
from moulin.identity import Action, Reach, reach

open_router = APIRouter(tags=["open"])
router = APIRouter(tags=["factory"])


@open_router.get("/healthz", **described(Health))
async def healthz(request: Request) -> Response:
    """Say that the API answers; needs no key."""
    return respond(Health(status="ok", version=state_of(request).services.version))


@open_router.get("/metrics", **described("text/plain"))
async def read_metrics(request: Request) -> Response:
    """Return the API's counters for Prometheus; needs no key and names no tenant."""
    return Response(state_of(request).metrics.text(), media_type=metrics.MEDIA_TYPE)


@router.get("/openapi.json", **described(dict))
async def openapi(
    request: Request, principal: Annotated[Principal, Depends(Allow(Action.API_READ))]
) -> Response:
    """Return this API's OpenAPI document."""
    return json_response(request.app.openapi())


@router.get("/status", **described(FactoryStatus))
async def read_status(
    request: Request, principal: Annotated[Principal, Depends(Allow(Action.STATUS_READ))]
) -> Response:
    """Return zones, nodes and balances; a tenant sees its own balance only."""
    return respond(await status_for(request, principal))


async def status_for(request: Request, principal: Principal) -> FactoryStatus:
    """Return the status as far as the caller may see it."""
    found = await state_of(request).bridge.ask(ReadStatus(), FactoryStatus)
    if reach(principal.role, Action.STATUS_READ) is Reach.FACTORY:
        return found
    own = tuple(
        balance
        for balance in found.balances
        if balance.project == principal.project and balance.organisation == principal.organisation
    )
    return replace(found, balances=own, counts={})

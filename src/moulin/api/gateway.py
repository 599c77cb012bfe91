"""The exchange with inference gateways (DESIGN rule 8): answered when there is something to say.

Waiting happens here, on the event loop; the control plane's cycle is asked shortly each time.
"""

import asyncio
from dataclasses import replace
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from moulin.api.access import Allow
from moulin.api.describe import described
from moulin.api.exchange import read_value, respond
from moulin.api.state import ApiState, state_of
from moulin.controlplane.commands import SyncGateway
from moulin.domain.principal import Principal
from moulin.domain.snapshot import SyncReply, SyncRequest
from moulin.identity import Action

router = APIRouter(tags=["gateway"])
Gateway = Annotated[Principal, Depends(Allow(Action.GATEWAY_SYNC))]
LOOK_AGAIN_S: Final = 5.0


@router.post("/gateway/sync", **described(SyncReply, body=SyncRequest))
async def sync_gateway(request: Request, principal: Gateway) -> Response:
    """Take journal records and wishes, answer grants and a newer snapshot.

    Without anything to report or to ask for, waits up to `wait_s` for a newer snapshot.
    """
    state = state_of(request)
    wanted = await read_value(request, SyncRequest)
    seen = await state.news.latest()
    reply = await _ask(state, principal, replace(wanted, wait_s=0))
    if reply.snapshot is None and not _is_report(wanted):
        reply = await _wait(state, principal, wanted, seen, reply)
    return respond(reply)


async def _wait(
    state: ApiState, principal: Principal, wanted: SyncRequest, seen: int, reply: SyncReply
) -> SyncReply:
    """Ask again each time the log grew, until there is a snapshot or the wait is over."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + min(wanted.wait_s, state.services.limits.sync_wait_s_max)
    while not state.news.is_closed and (left_s := deadline - loop.time()) > 0:
        latest = await state.news.after(seen, min(left_s, LOOK_AGAIN_S))
        if latest <= seen and loop.time() < deadline:
            continue
        seen = latest
        reply = await _ask(state, principal, replace(wanted, wait_s=0))
        if reply.snapshot is not None or reply.grants:
            break
    return reply


async def _ask(state: ApiState, principal: Principal, wanted: SyncRequest) -> SyncReply:
    asked_at_s = asyncio.get_running_loop().time()
    reply = await state.bridge.ask(SyncGateway(principal=principal, request=wanted), SyncReply)
    await state.gateways.hear(wanted.gateway, asked_at_s, is_current=reply.snapshot is None)
    return reply


def _is_report(wanted: SyncRequest) -> bool:
    return bool(wanted.records or wanted.wants or wanted.returns or wanted.is_epoch_complete)

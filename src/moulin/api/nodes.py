"""Nodes: which there are, and what an operator says of their health."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from moulin.api.access import Allow
from moulin.api.describe import described
from moulin.api.exchange import read_value, respond
from moulin.api.state import state_of
from moulin.controlplane.commands import CheckNode, JudgeNode, ReadStatus
from moulin.domain.control import FactoryStatus, JudgementWanted, NodePage
from moulin.domain.health import Verdict
from moulin.domain.ids import NodeId
from moulin.domain.principal import Principal
from moulin.domain.views import NodeView
from moulin.identity import Action

router = APIRouter(tags=["factory"])
Reader = Annotated[Principal, Depends(Allow(Action.NODE_READ))]
Keeper = Annotated[Principal, Depends(Allow(Action.NODE_JUDGE))]
NodePath = Annotated[str, Path(max_length=200)]


@router.get("/nodes", **described(NodePage))
async def list_nodes(request: Request, principal: Reader) -> Response:
    """Return the nodes with what is held on them and how well they are."""
    found = await state_of(request).bridge.ask(ReadStatus(), FactoryStatus)
    return respond(NodePage(items=tuple(sorted(found.nodes, key=lambda node: node.node))))


@router.post("/nodes/{node}/quarantine", **described(NodeView, body=JudgementWanted))
async def quarantine_node(request: Request, node: NodePath, principal: Keeper) -> Response:
    """Place nothing more on a node until somebody releases it; what runs there goes on."""
    return await _judge(request, node, principal, Verdict.QUARANTINED)


@router.post("/nodes/{node}/release", **described(NodeView, body=JudgementWanted))
async def release_node(request: Request, node: NodePath, principal: Keeper) -> Response:
    """Say that a node is well, whatever was known against it."""
    return await _judge(request, node, principal, Verdict.HEALTHY)


@router.post("/nodes/{node}/check", **described(NodeView))
async def check_node(request: Request, node: NodePath, principal: Keeper) -> Response:
    """Read a node now and put on record whether it shows anything."""
    command = CheckNode(principal=principal, node=NodeId(node))
    return respond(await state_of(request).bridge.ask(command, NodeView))


async def _judge(request: Request, node: str, principal: Principal, verdict: Verdict) -> Response:
    wanted = await read_value(request, JudgementWanted)
    command = JudgeNode(principal=principal, node=NodeId(node), verdict=verdict, words=wanted.words)
    return respond(await state_of(request).bridge.ask(command, NodeView))

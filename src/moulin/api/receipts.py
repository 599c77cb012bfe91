"""Receipts, usage, metered intervals and the evidence that proves them."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from moulin.api.access import Allow, missing, own_project, require_owner
from moulin.api.describe import described
from moulin.api.exchange import in_thread, respond
from moulin.api.parameters import (
    CursorQuery,
    LimitQuery,
    ProjectQuery,
    ReceiptPath,
    SequenceQuery,
    WorkloadQuery,
)
from moulin.api.state import ApiState, state_of
from moulin.api.status import status_for
from moulin.domain.control import (
    CheckpointInfo,
    IntervalPage,
    ReceiptPage,
    SpendReport,
    UsageReport,
)
from moulin.domain.principal import Principal, Role
from moulin.domain.usage import WITHHELD_NEUR
from moulin.domain.views import ReceiptView
from moulin.identity import Action

router = APIRouter(tags=["receipts"])
Reader = Annotated[Principal, Depends(Allow(Action.RECEIPT_READ))]
UsageReader = Annotated[Principal, Depends(Allow(Action.USAGE_READ))]
IntervalReader = Annotated[Principal, Depends(Allow(Action.INTERVAL_READ))]
EvidenceReader = Annotated[Principal, Depends(Allow(Action.EVIDENCE_READ))]
BINARY = "application/octet-stream"
TEXT = "text/plain"


@router.get("/receipts", **described(ReceiptPage))
async def list_receipts(
    request: Request,
    principal: Reader,
    *,
    project: ProjectQuery = "",
    workload: WorkloadQuery = "",
    cursor: CursorQuery = "",
    limit: LimitQuery = 100,
) -> Response:
    """Return receipts in order of issue."""
    store = state_of(request).services.store
    own = own_project(principal, Action.RECEIPT_READ, project)
    found = await in_thread(store.receipts, own, workload, cursor, limit)
    items = tuple(_as_seen_by(principal, each) for each in found)
    return respond(ReceiptPage(items=items, next=items[-1].id if len(items) == limit else ""))


@router.get("/receipts/{receipt}", **described(ReceiptView))
async def read_receipt(request: Request, receipt: ReceiptPath, principal: Reader) -> Response:
    """Return one receipt."""
    return respond(_as_seen_by(principal, await _owned(state_of(request), principal, receipt)))


@router.get("/receipts/{receipt}/file", **described(BINARY))
async def read_receipt_file(request: Request, receipt: ReceiptPath, principal: Reader) -> Response:
    """Return the receipt as the file that verifies offline with the public key alone."""
    state = state_of(request)
    view = await _owned(state, principal, receipt)
    content = await in_thread(state.services.evidence.receipt_file, view.id)
    named = f'attachment; filename="{view.id}.receipt"'
    return Response(content, media_type=BINARY, headers={"content-disposition": named})


@router.get("/usage", **described(UsageReport))
async def read_usage(
    request: Request, principal: UsageReader, project: ProjectQuery = ""
) -> Response:
    """Return exact sums per workload over all receipts, and balances."""
    own = own_project(principal, Action.USAGE_READ, project)
    items, through = await in_thread(state_of(request).sums.read, own)
    status = await status_for(request, principal)
    return respond(
        UsageReport(
            items=items,
            balances=tuple(each for each in status.balances if own in ("", each.project)),
            through_receipt=through if not own else "",
        )
    )


@router.get("/spend", **described(SpendReport))
async def read_spend(
    request: Request,
    principal: UsageReader,
    by: Annotated[str, Query(pattern="^(?:key|model|user|label)$")] = "key",
    project: ProjectQuery = "",
) -> Response:
    """Return exact sums by key, model, user or label over all receipts."""
    own = own_project(principal, Action.USAGE_READ, project)
    items = await in_thread(state_of(request).sums.spent, by, own)
    return respond(SpendReport(by=by, items=items))


@router.get("/intervals", **described(IntervalPage))
async def list_intervals(
    request: Request,
    principal: IntervalReader,
    node: Annotated[str, Query(max_length=200, pattern=r"^[^\x00-\x1f]*$")] = "",
    start_ns: SequenceQuery = 0,
    limit: LimitQuery = 1000,
) -> Response:
    """Return where each node's reading went: tasks, idle, unattributed, overhead."""
    store = state_of(request).services.store
    found = await in_thread(store.intervals, node, start_ns, limit)
    return respond(IntervalPage(items=tuple(found)))


@router.get("/evidence/checkpoint", **described(CheckpointInfo))
async def read_checkpoint(
    request: Request,
    principal: EvidenceReader,
    origin: Annotated[str, Query(max_length=200, pattern=r"^[!-~]*$")] = "",
) -> Response:
    """Return the newest signed tree head of a shard; keep it to prove later that it only grew."""
    services = state_of(request).services
    shard = origin or await in_thread(services.evidence.origin)
    found = await in_thread(services.store.checkpoint, shard)
    if found is None:
        return respond(CheckpointInfo(origin=shard, tree_size=0, note="", at_ns=0))
    return respond(
        CheckpointInfo(
            origin=found.origin, tree_size=found.tree_size, note=found.note, at_ns=found.at_ns
        )
    )


@router.get("/evidence/public-key", **described(TEXT))
async def read_public_key(request: Request, principal: EvidenceReader) -> Response:
    """Return the public key that checkpoints are signed with."""
    content = await in_thread(state_of(request).services.evidence.public_key)
    return Response(content, media_type=TEXT)


def _as_seen_by(principal: Principal, view: ReceiptView) -> ReceiptView:
    """Return a receipt without the operator's own cost, unless the operator reads it."""
    if principal.role is Role.OPERATOR:
        return view
    return replace(view, charge=replace(view.charge, operator_cost_neur=WITHHELD_NEUR))


async def _owned(state: ApiState, principal: Principal, receipt: str) -> ReceiptView:
    view = await in_thread(state.services.store.receipt, receipt)
    if view is None:
        raise missing(f"receipt {receipt}")
    owner = (view.project, view.organisation)
    require_owner(principal, Action.RECEIPT_READ, owner, f"receipt {receipt}")
    return view

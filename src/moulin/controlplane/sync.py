"""Answers a gateway: takes its journal, moves escrow, and hands out the snapshot it serves from."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from moulin.controlplane.allowances import (
    gateways_of,
    grant_allowance,
    is_refused,
    portion,
    take_back,
    take_closed,
)
from moulin.controlplane.commands import Answer, SyncGateway
from moulin.controlplane.draft import Draft
from moulin.controlplane.endpoints import take_load
from moulin.controlplane.gateways import EpochBook, cut_records, new_records
from moulin.controlplane.plane import Plane
from moulin.controlplane.snapshot import build_snapshot
from moulin.domain.errors import InvalidRequest, StaleGeneration
from moulin.domain.gateway_events import (
    GatewayEpochClosed,
    GatewayEpochOpened,
    GrantIssued,
    GrantReturned,
    JournalRecorded,
)
from moulin.domain.ids import ProjectId
from moulin.domain.limits import GatewayShare, is_allowance
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.snapshot import (
    GatewaySnapshot,
    Grant,
    JournalRecord,
    SyncReply,
    SyncRequest,
    Want,
)
from moulin.domain.units import NS_PER_S, format_euros
from moulin.routing.shares import QUARANTINE_NS, known_after


def sync_gateway(plane: Plane, draft: Draft, command: SyncGateway) -> Callable[[], Answer]:
    """Draft what a gateway reports and what it is given; the reply waits for the commit.

    Raises `StaleGeneration` when a newer process of the same gateway has taken over, and
    `InvalidRequest` for a journal that counts below zero.
    """
    request = command.request
    check_records(request.records)
    newest = draft.books.gateways.newest.get(request.gateway, 0)
    if request.epoch < newest:
        raise StaleGeneration(
            f"sync gateway {request.gateway} epoch {request.epoch}: epoch {newest} has taken over",
            hint="stop this process; the newer one serves",
        )
    gateways = draft.books.gateways
    is_left_behind = gateways.is_unheard(request.gateway, request.records_epoch)
    if request.records and request.records_epoch < request.epoch and is_left_behind:
        _open_epoch(draft, command, request.records_epoch)
    share = _share(plane, draft, request)
    if request.epoch > newest:
        _open_epoch(draft, command, request.epoch)
    acknowledged = _take_records(draft, request)
    _take_returns(draft, request)
    take_closed(draft, request)
    _take_lost(draft, request)
    _close_epochs(draft, request)
    grants = tuple(_grant(draft, request, want) for want in request.wants)
    key = (request.gateway, request.epoch)
    snapshot = current_snapshot(plane, draft)
    plane.heard_ns[key] = draft.now_ns
    take_load(draft, request, snapshot)

    def finish() -> SyncReply:
        # What the gateway said of its own clock: between its words and now it served others.
        told_ns = max(plane.journal_until_ns.get(key, 0), request.journal_until_ns)
        told = {**plane.journal_until_ns, key: told_ns}
        plane.journal_until_ns = {k: ns for k, ns in told.items() if k in gateways.epochs}
        plane.heard_ns = {k: ns for k, ns in plane.heard_ns.items() if k in gateways.epochs}
        return SyncReply(
            acknowledged_sequence=acknowledged,
            now_ns=draft.now_ns,
            snapshot=snapshot if snapshot.version != request.snapshot_version else None,
            grants=grants,
            share=share,
        )

    return finish


def _share(plane: Plane, draft: Draft, request: SyncRequest) -> GatewayShare:
    """Return the part of rate limits that the gateway may use from now on."""
    if plane.shares is None:
        silent_ns = plane.settings.snapshot_staleness_s * NS_PER_S + QUARANTINE_NS
        known = [gateway for gateway, _ in draft.books.gateways.epochs]
        plane.shares = known_after(known, silent_ns, draft.now_ns)
    return plane.shares.tell(request.gateway, request.share, request.limited_ago_s, draft.now_ns)


def check_records(records: Sequence[JournalRecord]) -> None:
    """Raise `InvalidRequest` for amounts that no request can have."""
    for record in records:
        counted = (
            record.tokens_input,
            record.tokens_output,
            record.audio_ms,
            record.characters_input,
        )
        if min(*counted, record.amount_neur, record.at_ns) < 0:
            raise InvalidRequest(
                f"take journal record {record.sequence} of {record.request}: it is below zero",
                hint="the gateway's journal is damaged; nothing of this sync was recorded",
            )


def _open_epoch(draft: Draft, command: SyncGateway, epoch: int) -> None:
    draft.append(
        GatewayEpochOpened(gateway=command.request.gateway, gateway_epoch=epoch),
        actor=command.principal.key,
    )


def current_snapshot(plane: Plane, draft: Draft) -> GatewaySnapshot:
    """Return the snapshot of the drafted books; its version changes only with its contents."""
    last = plane.snapshot
    if last is not None and plane.snapshot_sequence == draft.books.sequence:
        return last
    built = build_snapshot(plane, draft.books, draft.now_ns)
    if last is None or replace(last, version=0, issued_at_ns=0) != replace(
        built, version=0, issued_at_ns=0
    ):
        plane.snapshot = last = built
    plane.snapshot_sequence = draft.books.sequence
    return last


def _take_records(draft: Draft, request: SyncRequest) -> int:
    """Draft the records that continue an epoch's journal; return how far it is known."""
    book = draft.books.gateways.epochs.get((request.gateway, request.records_epoch))
    if book is None:
        # The epoch is closed: whatever is still sent of it has been settled.
        return max((record.sequence for record in request.records), default=0)
    fresh = new_records(book, request.records)
    if fresh:
        _record(draft, request.gateway, request.records_epoch, fresh)
    return book.through_sequence


def _close_epochs(draft: Draft, request: SyncRequest) -> None:
    """End epochs of this gateway: any whose journal is complete, all former ones that are lost."""
    for gateway, epoch in sorted(draft.books.gateways.epochs):
        if gateway != request.gateway or epoch > request.epoch:
            continue
        is_complete = request.is_epoch_complete and epoch == request.records_epoch
        is_lost = request.records_epoch == request.epoch > epoch
        if is_complete or is_lost:
            _close_epoch(draft, gateway, epoch, is_journal_lost=not is_complete)


def _close_epoch(draft: Draft, gateway: str, epoch: int, *, is_journal_lost: bool) -> None:
    book: EpochBook = draft.books.gateways.epochs[(gateway, epoch)]
    cut = cut_records(book, draft.now_ns)
    if cut:
        _record(draft, gateway, epoch, cut)
    draft.append(
        GatewayEpochClosed(gateway=gateway, gateway_epoch=epoch, is_journal_lost=is_journal_lost)
    )


def _record(draft: Draft, gateway: str, epoch: int, records: tuple[JournalRecord, ...]) -> None:
    draft.append(
        JournalRecorded(
            gateway=gateway,
            gateway_epoch=epoch,
            through_sequence=records[-1].sequence,
            records=records,
        )
    )


def _take_returns(draft: Draft, request: SyncRequest) -> None:
    for project, amount_neur in sorted(request.returns.items()):
        books = draft.books
        escrow = books.allowances.escrow if is_allowance(project) else books.balances.escrow
        held = escrow.get((request.gateway, request.epoch, project), 0)
        _give_back(draft, request, project, min(held, amount_neur))


def _take_lost(draft: Draft, request: SyncRequest) -> None:
    """Take back escrow whose grant, or whose return, was lost with a reply or a request."""
    book = draft.books.gateways.epochs.get((request.gateway, request.epoch))
    for project, kept_neur in sorted(request.kept.items()):
        known_neur = book.kept.get(project, 0) if book else 0
        if known_neur > kept_neur >= 0:
            _give_back(draft, request, project, known_neur - kept_neur)


def _give_back(draft: Draft, request: SyncRequest, account: str, amount: int) -> None:
    if amount <= 0:
        return
    if is_allowance(account):
        take_back(draft, request, account, amount)
        return
    draft.append(
        GrantReturned(
            gateway=request.gateway,
            gateway_epoch=request.epoch,
            project=ProjectId(account),
            amount_neur=amount,
        ),
        project=account,
    )


def _grant(draft: Draft, request: SyncRequest, want: Want) -> Grant:
    """Escrow what is wanted, or near exhaustion a part of what is left, with the numbers."""
    if is_allowance(want.project):
        return grant_allowance(draft, request, want)
    available = draft.books.balances.available_neur(want.project)
    gateways = gateways_of(draft.books)
    amount = want.amount_neur if available is None else portion(want, available, gateways)
    if draft.books.project(want.project) is None:
        amount = 0
    if (request.gateway, request.epoch) not in draft.books.gateways.epochs:
        amount = 0  # it said that it was done: nobody would ever give this back
    if amount > 0:
        draft.append(
            GrantIssued(
                gateway=request.gateway,
                gateway_epoch=request.epoch,
                project=ProjectId(want.project),
                amount_neur=amount,
            ),
            project=want.project,
        )
    refusal = _exhausted(draft, want, available or 0) if is_refused(want, amount) else None
    return Grant(project=want.project, amount_neur=amount, refusal=refusal)


def _exhausted(draft: Draft, want: Want, available_neur: int) -> Reason:
    project = draft.books.project(want.project)
    return Reason(
        code=ReasonCode.BUDGET_EXCEEDED,
        parameters={
            "project": want.project,
            "left_eur": format_euros(available_neur),
            "limit_eur": format_euros(project.budget_neur if project else 0),
            "wanted_eur": format_euros(want.amount_neur),
        },
    )

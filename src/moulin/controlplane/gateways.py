"""What gateways were given and what they reported, folded from the log, and how to answer a sync.

A gateway epoch ends only with a complete journal or a declared loss; until then every begun
request keeps its reservation (DESIGN rule 8).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from moulin.domain.events import Event
from moulin.domain.gateway_events import (
    AllowanceGranted,
    AllowanceReturned,
    GatewayEpochClosed,
    GatewayEpochOpened,
    GrantIssued,
    GrantReturned,
    JournalRecorded,
)
from moulin.domain.snapshot import JournalKind, JournalRecord

CUT: Final = "cut"
Escrow = GrantIssued | GrantReturned | AllowanceGranted | AllowanceReturned


@dataclass(slots=True)
class EpochBook:
    """One gateway epoch: how far its journal is known and which requests are begun, not ended.

    `kept` maps a project or an allowance to the escrow granted less the escrow given back.
    """

    through_sequence: int = 0
    begun: dict[str, JournalRecord] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Gateways:
    """All open gateway epochs, by (gateway, epoch), and each gateway's newest and last ended one.

    A process may have served from its cache without ever being heard; journals come oldest first,
    so an epoch that is neither open nor before the last ended one was never known.
    """

    epochs: dict[tuple[str, int], EpochBook] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)

    def is_unheard(self, gateway: str, epoch: int) -> bool:
        """Say whether nothing of an epoch is known yet."""
        return (gateway, epoch) not in self.epochs and epoch > self.ended.get(gateway, 0)


def fold_gateways(gateways: Gateways, event: Event) -> None:
    """Apply one event in place."""
    match event.payload:
        case GatewayEpochOpened() as opened:
            gateways.epochs.setdefault((opened.gateway, opened.gateway_epoch), EpochBook())
            newest = gateways.newest.get(opened.gateway, 0)
            gateways.newest[opened.gateway] = max(newest, opened.gateway_epoch)
        case JournalRecorded() as recorded:
            book = gateways.epochs[(recorded.gateway, recorded.gateway_epoch)]
            book.through_sequence = recorded.through_sequence
            for record in recorded.records:
                if record.kind is JournalKind.BEGIN:
                    book.begun[record.request] = record
                else:
                    book.begun.pop(record.request, None)
        case GrantIssued() as grant:
            _keep(gateways, grant, grant.project, grant.amount_neur)
        case GrantReturned() as grant:
            _keep(gateways, grant, grant.project, -grant.amount_neur)
        case AllowanceGranted() as grant:
            _keep(gateways, grant, grant.allowance, grant.amount)
        case AllowanceReturned() as grant:
            _keep(gateways, grant, grant.allowance, -grant.amount)
        case GatewayEpochClosed() as closed:
            gateways.epochs.pop((closed.gateway, closed.gateway_epoch), None)
            ended = gateways.ended.get(closed.gateway, 0)
            gateways.ended[closed.gateway] = max(ended, closed.gateway_epoch)
        case _:
            pass


def _keep(gateways: Gateways, escrow: Escrow, account: str, change: int) -> None:
    book = gateways.epochs.get((escrow.gateway, escrow.gateway_epoch))
    if book is None:
        return
    book.kept[account] = book.kept.get(account, 0) + change
    if isinstance(escrow, AllowanceReturned) and escrow.is_closed:
        del book.kept[account]


def new_records(book: EpochBook, records: Sequence[JournalRecord]) -> tuple[JournalRecord, ...]:
    """Return the records that continue the book, gapless; repeats and what follows a gap are left."""
    expected = book.through_sequence + 1
    fresh = []
    for record in sorted(records, key=lambda r: r.sequence):
        if record.sequence == expected:
            fresh.append(record)
            expected += 1
    return tuple(fresh)


def _reserved(begun: JournalRecord) -> dict[str, int]:
    return {
        "tokens_input": begun.tokens_input,
        "tokens_output": begun.tokens_output,
        "audio_ms": begun.audio_ms,
        "characters_input": begun.characters_input,
        "amount_neur": begun.amount_neur,
    }


def cut_records(book: EpochBook, at_ns: int) -> tuple[JournalRecord, ...]:
    """End every begun request of a finished epoch from its reservation, marked as estimated.

    The line of a batch ends for nothing: nobody got its answer, so it is carried out again.
    """
    sequence = book.through_sequence
    ends = []
    for request in sorted(book.begun):
        begun = book.begun[request]
        sequence += 1
        ends.append(
            JournalRecord(
                sequence=sequence,
                kind=JournalKind.END,
                request=request,
                at_ns=max(at_ns, begun.at_ns),
                organisation=begun.organisation,
                project=begun.project,
                key=begun.key,
                model=begun.model,
                endpoint=begun.endpoint,
                replica=begun.replica,
                zone=begun.zone,
                outcome=CUT,
                is_estimated=True,
                line=begun.line,
                user=begun.user,
                **({} if begun.line else _reserved(begun)),
            )
        )
    return tuple(ends)

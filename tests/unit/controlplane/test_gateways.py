"""Which journal records continue an epoch, how a journal is ended, and which epochs are news."""

from dataclasses import replace
from typing import Any

import pytest

from moulin.controlplane.gateways import (
    EpochBook,
    Gateways,
    cut_records,
    fold_gateways,
    new_records,
)
from moulin.domain.events import Event, Payload
from moulin.domain.gateway_events import GatewayEpochClosed, GatewayEpochOpened, JournalRecorded
from moulin.domain.snapshot import JournalKind, JournalRecord

BEGIN = JournalRecord(
    sequence=1,
    kind=JournalKind.BEGIN,
    request="q1",
    at_ns=50,
    organisation="lab",
    project="atelier",
    key="key",
    model="chat",
    endpoint="end",
    replica="end.u0.g1",
    zone="east",
    tokens_input=10,
    tokens_output=20,
    amount_neur=300,
)


def records(*sequences):
    return tuple(
        replace(BEGIN, sequence=sequence, request=f"q{sequence}") for sequence in sequences
    )


@pytest.mark.parametrize(
    ("through", "sent", "taken"),
    [
        (0, [], []),
        (0, [1, 2, 3], [1, 2, 3]),
        (0, [3, 1, 2], [1, 2, 3]),
        (0, [1, 1, 2, 2], [1, 2]),
        (0, [1, 3, 4], [1]),
        (0, [2, 3], []),
        (2, [1, 2], []),
        (2, [1, 2, 3, 4], [3, 4]),
        (2, [4, 5], []),
        (0, [0, -1, 1], [1]),
    ],
)
def test_only_what_continues_the_journal_is_taken(through, sent, taken):
    book = EpochBook(through_sequence=through)
    assert [r.sequence for r in new_records(book, records(*sent))] == taken


def test_a_cut_ends_each_begun_request_from_its_reservation():
    book = EpochBook(through_sequence=7, begun={"q2": replace(BEGIN, request="q2"), "q1": BEGIN})
    first, second = cut_records(book, 90)
    assert (first.sequence, first.request) == (8, "q1")
    assert (second.sequence, second.request) == (9, "q2")
    assert first == replace(
        BEGIN,
        sequence=8,
        kind=JournalKind.END,
        at_ns=90,
        outcome="cut",
        is_estimated=True,
    )


def test_a_cut_never_ends_before_it_began():
    book = EpochBook(begun={"q1": BEGIN})
    [end] = cut_records(book, 10)
    assert end.at_ns == 50


def folded(*payloads: Payload) -> Gateways:
    gateways = Gateways()
    for sequence, payload in enumerate(payloads, 1):
        event = Event(sequence=sequence, epoch=1, at_ns=sequence, actor="test", payload=payload)
        fold_gateways(gateways, event)
    return gateways


def opened(epoch):
    return GatewayEpochOpened(gateway="g", gateway_epoch=epoch)


def closed(epoch):
    return GatewayEpochClosed(gateway="g", gateway_epoch=epoch)


def test_begun_requests_are_those_without_an_end():
    end = replace(BEGIN, sequence=3, kind=JournalKind.END)
    other = replace(BEGIN, sequence=2, request="q2")
    recorded = JournalRecorded(
        gateway="g", gateway_epoch=1, through_sequence=3, records=(BEGIN, other, end)
    )
    book = folded(opened(1), recorded).epochs[("g", 1)]
    assert book == EpochBook(through_sequence=3, begun={"q2": other})


@pytest.mark.parametrize(
    ("payloads", "unheard"),
    [
        ([], [1, 2, 3]),
        ([opened(2)], [1, 3]),
        ([opened(2), closed(2)], [3]),
        ([opened(3), opened(1), closed(1)], [2]),
        ([opened(3), opened(1), closed(1), opened(2), closed(2)], []),
        ([opened(1), opened(3), closed(3)], []),
    ],
)
def test_an_epoch_is_unheard_until_it_or_a_later_one_ended(payloads, unheard):
    gateways = folded(*payloads)
    assert [epoch for epoch in (1, 2, 3) if gateways.is_unheard("g", epoch)] == unheard
    assert gateways.is_unheard("another", 1)


@pytest.mark.parametrize("unit", ["audio_ms", "characters_input"])
def test_what_is_no_token_is_cut_at_its_reservation_too(unit):
    counted: Any = {unit: 4_000}
    begun = replace(BEGIN, tokens_input=0, tokens_output=0, **counted)
    (end,) = cut_records(EpochBook(through_sequence=1, begun={"q1": begun}), 60)
    assert (getattr(end, unit), end.amount_neur, end.is_estimated) == (4_000, 300, True)

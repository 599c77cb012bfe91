"""Server-sent events back into events of the log."""

import pytest

from moulin.api.events import frame
from moulin.domain.errors import InvalidSpec
from moulin.domain.events import (
    EpochOpened,
    Event,
    FactoryApplied,
    KeyRevoked,
    ObjectChange,
    Payload,
)
from moulin.domain.factory import ObjectKind, PriceBook
from moulin.sdk._stream import EventReader, event_of


def event(sequence: int, payload: Payload) -> Event:
    return Event(
        sequence=sequence,
        epoch=3,
        at_ns=1_790_000_000_000_000_001,
        actor="key_1",
        payload=payload,
        organisation="acme",
        project="alpha",
        site="s",
        causation=1,
        labels={"a": "b"},
    )


BOOK = ObjectChange(
    kind=ObjectKind.PRICE_BOOK, name="b", value=PriceBook(name="b", effective_from_ns=7)
)
EVENTS = [
    event(4, EpochOpened(epoch=3, boot_id="boot", version="1")),
    event(5, KeyRevoked(key="key_2")),
    event(7, FactoryApplied(managed_by="f", changes=(BOOK,))),
]


def lines_of(*frames: bytes) -> list[str]:
    return b"".join(frames).decode().split("\n")


def test_events_survive_the_stream():
    reader = EventReader(0)
    found = [each for line in lines_of(*map(frame, EVENTS)) for each in reader.feed(line)]
    assert found == EVENTS
    assert reader.after == 7


def test_beats_and_unknown_fields_are_passed_over():
    reader = EventReader(0)
    lines = [": beat", "", "retry: 5", "", *lines_of(frame(EVENTS[0]))]
    assert [each for line in lines for each in reader.feed(line)] == EVENTS[:1]


def test_half_a_frame_is_no_event():
    reader = EventReader(2)
    for line in lines_of(frame(EVENTS[0]))[:3]:
        assert list(reader.feed(line)) == []
    assert reader.after == 2


def test_an_event_of_a_newer_version_is_said_to_be_one():
    with pytest.raises(InvalidSpec, match=r"moon\.landed"):
        event_of(
            {
                "sequence": 1,
                "schema": 1,
                "epoch": 1,
                "at": "2026-01-01T00:00:00Z",
                "kind": "moon.landed",
                "actor": "a",
                "payload": {},
            }
        )

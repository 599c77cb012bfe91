"""The fast journal lines are exactly the records of the contract; ids have the form of all ids."""

import json
import re

import pytest

from moulin.domain.ids import make_id
from moulin.domain.snapshot import JournalKind, JournalRecord
from moulin.domain.wire import decode
from moulin.gateway.identifiers import RequestIds
from moulin.gateway.media import Speech, Transcription
from moulin.gateway.records import BEGIN, END

ROUTE = b'"organisation":"u","project":"p","key":"k","model":"m\\"\\u00e9","endpoint":"e"'
REPLICA = b'"replica":"r","zone":"z"'


def read(line: bytes) -> JournalRecord:
    return decode(JournalRecord, json.loads(b'{"sequence":7,' + line))


def test_lines_are_records() -> None:
    begin = read(BEGIN % (b"ID", 2**62, ROUTE, REPLICA, 1, 2, 2**70))
    assert begin == JournalRecord(
        sequence=7, kind=JournalKind.BEGIN, request="req_ID", at_ns=2**62, organisation="u",
        project="p", key="k", model='m"é', endpoint="e", replica="r", zone="z", tokens_input=1,
        tokens_output=2, amount_neur=2**70,
    )  # fmt: skip
    end = read(END % (b"ID", 5, ROUTE, REPLICA, 1, 2, 3, b"cut", b"true"))
    assert (end.kind, end.outcome, end.is_estimated) == (JournalKind.END, "cut", True)
    assert (end.tokens_input, end.tokens_output, end.amount_neur) == (1, 2, 3)


@pytest.mark.parametrize(
    ("kind", "field"), [(Transcription, "audio_ms"), (Speech, "characters_input")]
)
def test_what_is_no_token_has_a_field_of_its_own(kind, field) -> None:
    begin = read(kind.begin_form % (b"ID", 1, ROUTE, REPLICA, 5, 0, 7))
    end = read(kind.end_form % (b"ID", 2, ROUTE, REPLICA, 4, 0, 6, b"completed", b"false"))
    assert (getattr(begin, field), getattr(end, field)) == (5, 4)
    assert (begin.tokens_input, begin.tokens_output, end.tokens_input) == (0, 0, 0)
    assert (begin.amount_neur, end.amount_neur) == (7, 6)


def test_ids_sort_by_time_and_do_not_repeat() -> None:
    ids = RequestIds()
    drawn = [ids.draw(ms * 1_000_000) for ms in range(1_700_000_000_000, 1_700_000_002_000)]
    assert all(re.fullmatch(rb"[0-9A-HJKMNP-TV-Z]{26}", each) for each in drawn)
    assert drawn == sorted(drawn)
    assert len({each[10:] for each in drawn}) == len(drawn)
    assert drawn[-1][:10].decode() == make_id("req", 1_700_000_001_999 * 1_000_000, 0)[4:14]

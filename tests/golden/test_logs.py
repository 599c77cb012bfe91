"""Old logs still decode to the same events and still fold, and they cover every kind of event."""

from pathlib import Path

import orjson
import pytest

from moulin.controlplane.books import read_books
from moulin.domain.event_wire import decode_event, encode_event
from moulin.domain.events import TYPE_BY_KIND
from moulin.scheduler import empty_state, fold
from tests.golden.story import ENDS, HELD, LOGS, logs

PATHS = sorted(LOGS.glob("*.jsonl"))


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def test_every_kind_of_event_is_in_a_log():
    found = {orjson.loads(line)["kind"] for path in PATHS for line in lines(path)}
    assert sorted(TYPE_BY_KIND.keys() - found) == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_line_loses_nothing_and_gains_nothing_but_fields_that_came_later(path):
    for line in lines(path):
        event = decode_event(orjson.loads(line))
        written = orjson.loads(orjson.dumps(encode_event(event)))
        assert orjson.dumps(common(written, orjson.loads(line))) == line
        assert decode_event(written) == event


def common(new, old):
    """Return of `new` what `old` has as well, in the order of `old`."""
    if isinstance(old, dict):
        return {key: common(new[key], value) for key, value in old.items()}
    if isinstance(old, list):
        return [common(one, other) for one, other in zip(new, old, strict=True)]
    return new


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_log_is_what_its_events_were(path):
    assert [decode_event(orjson.loads(line)) for line in lines(path)] == logs()[path.stem]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_log_folds_to_the_ends_its_workloads_had(path):
    state = empty_state()
    for line in lines(path):
        fold(state, decode_event(orjson.loads(line)))
    assert {row.submission.id: row.state for row in state.workloads.values()} == ENDS.get(
        path.stem, {}
    )


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_log_folds_into_every_book(path):
    books = read_books(decode_event(orjson.loads(line)) for line in lines(path))
    assert books.sequence == len(lines(path))
    assert books.balances.reserved_by_workload == HELD.get(path.stem, {})

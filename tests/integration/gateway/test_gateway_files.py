"""The gateway's files: a journal that is gapless and survives damage, a cache that is never younger."""

import asyncio
import errno
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import moulin.gateway.journal as journal_module
from moulin.domain.wire import encode
from moulin.gateway.cache import CONFIRMED, SNAPSHOT, SnapshotCache
from moulin.gateway.journal import Journal, JournalReader, predecessors
from tests.integration.gateway.plant import snapshot


class Request:
    def __init__(self) -> None:
        self.is_written = False
        self.cause: OSError | None = None

    def written(self) -> None:
        self.is_written = True

    def not_written(self, cause: OSError) -> None:
        self.cause = cause


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    loop = asyncio.new_event_loop()
    made = Journal(tmp_path, 5, loop)
    yield made
    made.close()
    loop.close()


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a few lines a long journal, and old at once."""
    monkeypatch.setattr("moulin.gateway.journal.DROPPED_BYTES_MIN", 100)
    monkeypatch.setattr("moulin.gateway.journal.KEPT_S", 0.0)
    monkeypatch.setattr("moulin.gateway.journal.MARK_EVERY_S", 0.0)


def begin(journal: Journal, text: str = "") -> Request:
    request = Request()
    journal.append(b'"kind":"begin","x":"%b"}' % text.encode(), request)
    return request


def test_lines_of_a_tick_share_a_write_and_are_gapless(journal: Journal) -> None:
    requests = [begin(journal) for _ in range(3)]
    assert journal.path.read_bytes() == b""
    journal.flush()
    assert all(request.is_written for request in requests)
    begin(journal)
    journal.flush()
    lines = [json.loads(line) for line in journal.path.read_bytes().splitlines()]
    assert [line["sequence"] for line in lines] == [1, 2, 3, 4]


def test_a_full_disk_refuses_begins_keeps_ends_and_leaves_no_half_line(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(journal)
    journal.flush()
    whole = journal.path.read_bytes()
    refused = begin(journal, "a" * 100)
    journal.append(b'"kind":"end"}', None)

    import os

    real = os.write
    room = [40]

    def write(descriptor: int, data: bytes) -> int:
        taken = min(room[0], len(data))
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= taken
        return real(descriptor, data[:taken])

    monkeypatch.setattr(os, "write", write)
    journal.flush()
    assert refused.cause is not None
    assert not refused.is_written
    assert journal.path.read_bytes() == whole
    assert journal.is_behind
    room[0] = 10_000
    journal.flush()
    lines = [json.loads(line) for line in journal.path.read_bytes().splitlines()]
    assert [(line["sequence"], line["kind"]) for line in lines] == [(1, "begin"), (2, "end")]


def test_a_reader_sends_again_what_was_not_acknowledged(journal: Journal) -> None:
    for _ in range(5):
        begin(journal)
    journal.flush()
    reader = JournalReader(journal.path, is_finished=False)
    shipment = reader.next_shipment()
    assert (len(shipment.lines), shipment.last, shipment.is_end) == (5, 5, True)
    reader.acknowledge(shipment, 3)
    shipment = reader.next_shipment()
    assert [json.loads(line)["sequence"] for line in shipment.lines] == [4, 5]
    reader.acknowledge(shipment, 5)
    assert reader.next_shipment().lines == ()
    assert reader.acknowledged == 5


def test_a_leader_restored_from_a_backup_is_told_again(journal: Journal) -> None:
    for _ in range(5):
        begin(journal)
    journal.flush()
    reader = JournalReader(journal.path, is_finished=False)
    reader.acknowledge(reader.next_shipment(), 5)
    begin(journal)
    journal.flush()
    reader.acknowledge(reader.next_shipment(), 2)
    assert len(reader.next_shipment().lines) == 6


def test_what_the_leader_has_is_dropped_from_a_long_journal(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch)
    reader = JournalReader(journal.path, is_finished=False)
    sequences = []
    for count in (1, 20, 3):
        for _ in range(count):
            begin(journal)
        journal.flush()
        shipment = reader.next_shipment()
        begin(journal)
        journal.flush()
        sequences += [json.loads(line)["sequence"] for line in shipment.lines]
        reader.acknowledge(shipment, shipment.last)
        reader.offset -= asyncio.run(journal.drop_before(reader.offset))
    assert sequences == list(range(1, 27))
    kept = [json.loads(line)["sequence"] for line in journal.path.read_bytes().splitlines()]
    assert kept == [27]
    assert journal.path.stat().st_mode & 0o077 == 0


def test_the_last_minute_stays_in_a_long_journal(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moulin.gateway.journal.DROPPED_BYTES_MIN", 100)
    for _ in range(20):
        begin(journal)
    journal.flush()
    whole = journal.path.read_bytes()
    assert asyncio.run(journal.drop_before(len(whole))) == 0
    assert journal.path.read_bytes() == whole


def test_lines_that_come_while_a_journal_is_copied_stay_in_it(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch)
    copies: list[int] = []

    def slow(path: Path, beside: Path, first: int, end: int) -> int:
        descriptor = begin_copy(path, beside, first, end)
        begin(journal)
        journal.flush()
        copies.append(first)
        return descriptor

    begin_copy = journal_module._begin_copy
    monkeypatch.setattr(journal_module, "_begin_copy", slow)
    for _ in range(10):
        begin(journal)
        journal.flush()
    old = journal.path.stat().st_size
    assert 0 < asyncio.run(journal.drop_before(old)) <= old
    begin(journal)
    journal.flush()
    kept = [json.loads(line)["sequence"] for line in journal.path.read_bytes().splitlines()]
    assert kept[-2:] == [11, 12]
    # Less than what stays would be no gain.
    little = journal.path.stat().st_size // 3
    monkeypatch.setattr("moulin.gateway.journal.DROPPED_BYTES_MIN", 1)
    assert asyncio.run(journal.drop_before(little)) == 0
    assert len(copies) == 1
    # Nor is anything dropped once the gateway has closed its books.
    journal.close()
    assert asyncio.run(journal.drop_before(10**9)) == 0


def test_large_journals_come_in_parts(journal: Journal) -> None:
    for _ in range(3000):
        begin(journal, "a" * 500)
    journal.flush()
    reader = JournalReader(journal.path, is_finished=True)
    sequences = []
    while True:
        shipment = reader.next_shipment()
        sequences += [json.loads(line)["sequence"] for line in shipment.lines]
        reader.acknowledge(shipment, shipment.last)
        if shipment.is_end:
            break
    assert sequences == list(range(1, 3001))


@pytest.mark.parametrize(
    "damage", [b'{"sequence":3,"ki', b"\0" * 4096 + b"\n", b'{"sequence":"x"}\n', b"[]\n", b"\n"]
)
def test_a_damaged_end_is_the_end(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "10.journal").write_bytes(b'{"sequence":1}\n{"sequence":2}\n' + damage)
    (tmp_path / "9.journal").write_bytes(b"")
    (tmp_path / "other.journal").write_bytes(b"")
    empty, damaged = predecessors(tmp_path)
    assert (empty.epoch, damaged.epoch) == (9, 10)
    assert empty.next_shipment().is_end
    shipment = damaged.next_shipment()
    assert (len(shipment.lines), shipment.last, shipment.is_end) == (2, 2, True)
    damaged.acknowledge(shipment, 2)
    shipment = damaged.next_shipment()
    assert (shipment.lines, shipment.is_end) == ((), True)


def test_the_cache_gives_back_what_it_was_given(tmp_path: Path) -> None:
    cache = SnapshotCache(tmp_path)
    assert cache.load() is None
    value = snapshot()
    cache.keep(encode(value), 123)
    assert cache.load() == (value, 123)
    cache.confirm(456)
    assert cache.load() == (value, 456)
    assert (tmp_path / SNAPSHOT).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", [SNAPSHOT, CONFIRMED])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"at_ns":null}', b'{"version":1}'])
def test_a_damaged_cache_is_not_trusted(tmp_path: Path, name: str, content: bytes) -> None:
    cache = SnapshotCache(tmp_path)
    cache.keep(encode(snapshot()), 123)
    (tmp_path / name).write_bytes(content)
    assert cache.load() is None

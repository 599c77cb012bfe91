"""A damaged store stops with a hint instead of guessing."""

import sqlite3
from pathlib import Path

import pytest

from moulin.domain.errors import InvalidRequest, StoreCorrupt, StoreUnavailable
from moulin.ports.store import Batch
from moulin.store.opening import open_store
from tests.conformance import store_samples as sample


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "log.db"
    with open_store(made) as store:
        epoch = store.open_epoch()
        store.commit(sample.job_batch(epoch, 1, 9))
    return made


def damage(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM events WHERE sequence = 4",
        "DELETE FROM events WHERE sequence = 9",
        "UPDATE events SET sequence = 11 WHERE sequence = 9",
        "UPDATE meta SET last_sequence = 12",
        "DELETE FROM meta",
        "UPDATE accounts SET total_neur = '1.5e3'",
    ],
)
def test_nobody_leads_on_a_damaged_log(path, statement):
    damage(path, statement)
    with open_store(path) as store:
        with pytest.raises(StoreCorrupt) as caught:
            store.open_epoch()
        assert "restore" in caught.value.hint


def test_reading_stops_at_a_gap(path):
    damage(path, "DELETE FROM events WHERE sequence = 4")
    with open_store(path) as store:
        read: list[int] = []
        with pytest.raises(StoreCorrupt, match="event 4 was expected next and 5 was found"):
            read.extend(event.sequence for event in store.events(0))
        assert read == [1, 2, 3]


@pytest.mark.parametrize(
    "change",
    [
        "payload = '{'",
        "payload = '{}'",
        "payload = '[]'",
        "payload = replace(payload, 'lab', 7)",
        "labels = 'x'",
        "kind = 'workload.unheard'",
        "schema = 99",
    ],
)
def test_an_unreadable_event_is_named(path, change):
    damage(path, f"UPDATE events SET {change} WHERE sequence = 6")
    with open_store(path) as store, pytest.raises(StoreCorrupt, match="6") as caught:
        list(store.events(5))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("statement", "read"),
    [
        ("UPDATE workloads SET body = '{}'", lambda store: store.workload(sample.job_id(1))),
        ("UPDATE receipts SET body = 'x'", lambda store: store.receipts()),
        ("UPDATE postings SET debit_neur = '1.0'", lambda store: store.entries()),
        ("UPDATE accounts SET total_neur = '1e3'", lambda store: store.account_totals()),
        (
            "DELETE FROM leaves WHERE leaf_index = 3",
            lambda store: store.leaves("factory/1", 0, 9),
        ),
    ],
    ids=["workload", "receipt", "posting", "account", "leaf"],
)
def test_an_unreadable_row_is_not_guessed(path, statement, read):
    damage(path, statement)
    with open_store(path) as store, pytest.raises(StoreCorrupt) as caught:
        read(store)
    assert caught.value.hint


def test_a_file_that_is_no_database_is_told(tmp_path):
    (tmp_path / "log.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreCorrupt, match="not a database"):
        open_store(tmp_path / "log.db")


def test_a_page_overwritten_is_told(path):
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(StoreCorrupt) as caught:
        open_store(path).open_epoch()
    assert "restore" in caught.value.hint


def test_a_schema_of_a_newer_release_is_left_alone(path):
    damage(path, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreUnavailable, match="9999") as caught:
        open_store(path)
    assert "newer" in caught.value.hint


@pytest.mark.parametrize("text", ["\ud800", "\x00\udfff"], ids=["surrogate", "with NUL"])
def test_text_without_a_form_on_disk_is_refused_and_nothing_is_written(path, text):
    with open_store(path) as store:
        epoch = store.open_epoch()
        events = (sample.opened(10, epoch),)
        for wrong in (
            Batch(epoch=epoch, events=events, declared=(sample.declared(text),)),
            Batch(epoch=epoch, events=events, workloads=(sample.workload(1, name=text),)),
        ):
            with pytest.raises(InvalidRequest) as caught:
                store.commit(wrong)
            assert caught.value.hint
        assert store.last_sequence() == 9
        store.commit(Batch(epoch=epoch, events=events))


def test_a_time_beyond_64_bits_is_refused_and_nothing_is_written(path):
    with open_store(path) as store:
        epoch = store.open_epoch()
        with pytest.raises(InvalidRequest):
            store.commit(
                Batch(epoch=epoch, workloads=(sample.workload(77, submitted_at_ns=2**64),))
            )
        assert store.workload(sample.job_id(77)) is None
        store.commit(Batch(epoch=epoch, events=(sample.opened(10, epoch),)))

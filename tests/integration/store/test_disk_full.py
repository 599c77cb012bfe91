"""A full disk: a clear error, nothing half written, and the store goes on when there is room."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from moulin.domain.errors import DiskFull
from moulin.ports.store import Batch
from moulin.store.opening import open_store
from moulin.store.sql import SqlStore
from tests.conformance import store_samples as sample

JOBS = 20


def commit_until_full(store: SqlStore, epoch: int) -> int:
    """Commit batches until one fails; return how many events were written."""
    first = store.last_sequence() + 1
    for _ in range(1_000):
        try:
            store.commit(sample.job_batch(epoch, first, JOBS))
        except DiskFull:
            return first - 1
        first += JOBS
    raise AssertionError("the disk never filled")


def assert_whole(store: SqlStore, events: int) -> None:
    """Everything of the batches that were written is there, and nothing of another."""
    assert store.last_sequence() == events
    assert [event.sequence for event in store.events(0)] == list(range(1, events + 1))
    assert len(store.receipts(limit=10**6)) == events
    assert len(store.entries(limit=10**6)) == events
    assert len(store.leaves("factory/1", 0, 10**6)) == events
    assert store.account_totals()["tenant:receivable"] == events * (events + 1) // 2


def test_a_full_database_file_writes_nothing_and_recovers(tmp_path):
    with open_store(tmp_path / "log.db") as store:
        epoch = store.open_epoch()
        pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
        store._writer.execute(f"PRAGMA max_page_count = {pages + 200}")
        events = commit_until_full(store, epoch)
        assert_whole(store, events)
        with pytest.raises(DiskFull):
            store.commit(sample.job_batch(epoch, events + 1, 5 * JOBS))
        store._writer.execute("PRAGMA max_page_count = 1000000")
        store.commit(sample.job_batch(epoch, events + 1, 5 * JOBS))
        assert_whole(store, events + 5 * JOBS)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_file_system_writes_nothing_and_recovers(small_disk):
    ballast, more_ballast = small_disk / "ballast", small_disk / "more_ballast"
    ballast.write_bytes(bytes(1 << 20))
    more_ballast.write_bytes(bytes(1 << 20))
    with open_store(small_disk / "log.db") as store:
        epoch = store.open_epoch()
        events = commit_until_full(store, epoch)
        assert_whole(store, events)
        ballast.unlink()
        store.commit(sample.job_batch(epoch, events + 1, JOBS))
        assert_whole(store, events + JOBS)
    more_ballast.unlink()
    with open_store(small_disk / "log.db") as store:
        store.open_epoch()
        assert_whole(store, events + JOBS)


def test_a_full_file_system_cannot_be_opened_on_and_says_so(small_disk):
    (small_disk / "ballast").write_bytes(bytes(4 << 20))
    with pytest.raises(DiskFull):
        open_store(small_disk / "log.db")
    (small_disk / "ballast").unlink()
    with open_store(small_disk / "log.db") as store:
        epoch = store.open_epoch()
        store.commit(Batch(epoch=epoch, events=(sample.opened(1, epoch),)))

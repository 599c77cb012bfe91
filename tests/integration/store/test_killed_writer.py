"""A writer killed at any moment: what it acknowledged is there, and every batch is whole or absent."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moulin.domain.errors import StoreUnavailable
from moulin.domain.events import WorkloadSubmitted
from moulin.ports.store import Store, WorkloadFilter
from moulin.store.opening import open_store
from tests.conformance import store_samples as sample
from tests.integration.store.writer_process import JOBS

KILLS = 6
ROOT = Path(__file__).parents[3]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/log.db"
    return str(request.getfixturevalue("postgres_server").new_schema_url())


def write_and_die(url: str, after_s: float) -> int:
    """Run a writer, kill it, and return the end of the log it last acknowledged."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.integration.store.writer_process", url],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "src"},
    ) as writer:
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(after_s)
        writer.send_signal(signal.SIGKILL)
        told = (first + writer.stdout.read()).split(b"\n")
    return int(told[-2])


def open_leading(url: str) -> tuple[Store, int]:
    """Take the lead; a server may need a moment to see that the killed one is gone."""
    store = open_store(url)
    for _ in range(200):
        try:
            return store, store.open_epoch()
        except StoreUnavailable:
            time.sleep(0.05)
    raise AssertionError("the killed writer still leads")


def test_a_killed_writer_leaves_whole_batches(url):
    dice = random.Random(7)
    epoch_before = 0
    for _ in range(KILLS):
        acknowledged = write_and_die(url, dice.uniform(0, 0.03))
        store, epoch = open_leading(url)
        last = store.last_sequence()
        assert last in (acknowledged, acknowledged + JOBS)  # the last one may be unacknowledged
        assert [event.sequence for event in store.events(0)] == list(range(1, last + 1))
        everything = WorkloadFilter(limit=10**6)
        jobs = {
            event.payload.submission.id
            for event in store.events(0)
            if isinstance(event.payload, WorkloadSubmitted)
        }
        assert {row.id for row in store.workloads(everything)} == jobs
        assert len(store.receipts(limit=10**6)) == len(store.entries(limit=10**6)) == last
        assert len(store.leaves("factory/1", 0, 10**6)) == last
        assert store.account_totals().get("tenant:receivable", 0) == last * (last + 1) // 2
        assert epoch > epoch_before
        epoch_before = epoch
        store.commit(sample.job_batch(epoch, last + 1, JOBS))
        store.close()

"""The faults a MemoryStore can be told to have, and what is true after each."""

import pytest

from moulin.domain.errors import DiskFull, StaleGeneration
from moulin.store.memory import MemoryDisk, MemoryStore, WritePoint
from tests.conformance import store_samples as sample


class Crash(BaseException):
    """The end of a process at a write."""


class FaultAt:
    """Raises once at a point, and counts how often each point was passed."""

    def __init__(self, point: WritePoint, error: BaseException) -> None:
        self.point: WritePoint | None = point
        self.error = error
        self.passed: list[WritePoint] = []

    def __call__(self, point: WritePoint) -> None:
        self.passed.append(point)
        if point is self.point:
            self.point = None
            raise self.error


@pytest.mark.parametrize(
    ("point", "written"), [(WritePoint.BEFORE_COMMIT, 0), (WritePoint.AFTER_COMMIT, 3)]
)
def test_a_crash_around_a_commit_leaves_all_or_nothing_on_the_disk(point, written):
    disk = MemoryDisk()
    store = MemoryStore(disk, fault=FaultAt(point, Crash()))
    epoch = store.open_epoch()
    with pytest.raises(Crash):
        store.commit(sample.job_batch(epoch, 1, 3))
    store.close()
    after = MemoryStore(disk)
    again = after.open_epoch()
    assert after.last_sequence() == len(after.receipts()) == len(after.entries()) == written
    after.commit(sample.job_batch(again, written + 1, 2))
    assert len(after.leaves("factory/1", 0, 99)) == written + 2


def test_a_failure_before_a_commit_leaves_the_lead():
    store = MemoryStore(fault=FaultAt(WritePoint.BEFORE_COMMIT, DiskFull("no room", hint="h")))
    epoch = store.open_epoch()
    with pytest.raises(DiskFull):
        store.commit(sample.job_batch(epoch, 1, 1))
    store.commit(sample.job_batch(epoch, 1, 1))
    assert store.last_sequence() == 1


def test_a_failure_after_a_commit_costs_the_lead():
    store = MemoryStore(fault=FaultAt(WritePoint.AFTER_COMMIT, DiskFull("told too late", hint="h")))
    epoch = store.open_epoch()
    with pytest.raises(DiskFull):
        store.commit(sample.job_batch(epoch, 1, 1))
    with pytest.raises(StaleGeneration):
        store.commit(sample.job_batch(epoch, 1, 1))
    assert store.open_epoch() == epoch + 1
    assert store.last_sequence() == 1


@pytest.mark.parametrize(
    ("point", "epoch_next"), [(WritePoint.BEFORE_EPOCH, 1), (WritePoint.AFTER_EPOCH, 2)]
)
def test_a_crash_around_taking_the_lead_frees_it(point, epoch_next):
    disk = MemoryDisk()
    store = MemoryStore(disk, fault=FaultAt(point, Crash()))
    with pytest.raises(Crash):
        store.open_epoch()
    assert MemoryStore(disk).open_epoch() == epoch_next


def test_every_write_passes_its_two_points():
    fault = FaultAt(WritePoint.AFTER_COMMIT, Crash())
    fault.point = None
    store = MemoryStore(fault=fault)
    store.commit(sample.job_batch(store.open_epoch(), 1, 1))
    assert fault.passed == list(WritePoint)

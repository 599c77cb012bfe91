"""What the leader may conclude from a sync: whose journal is whole, and until when."""

import time

import pytest

from moulin.domain.snapshot import JournalKind, SyncReply, SyncRequest
from tests.integration.gateway.control_fake import ControlFake
from tests.integration.gateway.plant import Plant, eventually


@pytest.fixture
def told(control: ControlFake, monkeypatch: pytest.MonkeyPatch) -> list[SyncRequest]:
    """Every sync that was answered, in order."""
    seen: list[SyncRequest] = []
    sync = control.sync

    def record(request: SyncRequest) -> SyncReply | None:
        reply = sync(request)
        if reply is not None:
            seen.append(request)
        return reply

    monkeypatch.setattr(control, "sync", record)
    return seen


def test_the_time_told_covers_no_request_that_is_not_told(
    told: list[SyncRequest], plant: Plant
) -> None:
    for _ in range(30):
        plant.chat()
    plant.ends(30)
    known: set[int] = set()
    last_ns = 0
    for request in told:
        for record in request.records:
            if record.sequence not in known:
                known.add(record.sequence)
                assert record.at_ns >= last_ns, "a record from a time that was said to be known"
        if request.journal_until_ns:
            last_ns = request.journal_until_ns
    assert last_ns > 0


def test_a_quiet_gateway_goes_on_telling_the_time(told: list[SyncRequest], plant: Plant) -> None:
    plant.chat()
    plant.ends(1)
    since_ns = time.time_ns()
    eventually(lambda: any(r.journal_until_ns > since_ns for r in told))


def test_a_restarted_gateway_speaks_of_its_predecessor_until_that_journal_is_whole(
    told: list[SyncRequest], plant: Plant, control: ControlFake
) -> None:
    plant.chat()
    plant.ends(1)
    control.stop()
    plant.chat()
    former = max(request.epoch for request in told)
    plant.kill()
    del told[:]
    plant.start(wait=False)
    control.start()
    eventually(lambda: any(r.records_epoch > former for r in told))
    about = [r.records_epoch for r in told]
    first_own = next(i for i, epoch in enumerate(about) if epoch > former)
    assert about[:first_own].count(former) == first_own > 0
    assert any(r.is_epoch_complete for r in told[:first_own])
    ends = [r for t in told for r in t.records if r.kind is JournalKind.END]
    assert len({r.request for r in ends}) >= 1
    assert not any(r.journal_until_ns for r in told[:first_own])

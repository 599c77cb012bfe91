"""What tenants keep: quota, batches in order, and lines that are charged once, in part."""

from dataclasses import replace
from typing import Any

import pytest

from moulin.controlplane.commands import (
    CancelBatch,
    DeleteObject,
    EndBatch,
    OpenBatch,
    StoreObject,
)
from moulin.domain.errors import AlreadyExists, Conflict, InUse, NotFound, QuotaExceeded
from moulin.domain.factory import Quota
from moulin.domain.ids import KeyId, OrganisationId, ProjectId
from moulin.domain.objects import BatchJob, BatchState, StoredKind, StoredObject
from moulin.domain.principal import Principal, Role
from moulin.domain.usage import WHOLE_PPM
from tests.integration.controlplane.bench import SECOND, Bench, endpoint, factory
from tests.integration.controlplane.serving import Gateway, cost

ADA = Principal(
    key=KeyId("key_ada"),
    name="ada",
    role=Role.MEMBER,
    organisation=OrganisationId("lab"),
    project=ProjectId("atelier"),
)
BATCH = "batch_01K7000000000000000000000C"


def stored(name: str, size_bytes: int = 10) -> StoredObject:
    return StoredObject(
        id=name,
        kind=StoredKind.FILE,
        organisation=ADA.organisation,
        project=ADA.project,
        key=ADA.key,
        name=name,
        purpose="batch",
        size_bytes=size_bytes,
        sha256="0" * 64,
        created_at_ns=1,
        expires_at_ns=2,
    )


def batch(*files: str) -> BatchJob:
    return BatchJob(
        id=BATCH,
        organisation=ADA.organisation,
        project=ADA.project,
        key=ADA.key,
        endpoint="/v1/chat/completions",
        input_files=files,
        created_at_ns=1,
        deadline_at_ns=2,
    )


def keep(bench: Bench, name: str, size_bytes: int = 10) -> StoredObject:
    found: StoredObject = bench.tell(StoreObject(principal=ADA, object=stored(name, size_bytes)))
    return found


def test_a_project_keeps_what_its_quota_allows(bench):
    bench.apply(*factory(quota=Quota(stored_bytes=100)))
    keep(bench, "file_a", 60)
    with pytest.raises(QuotaExceeded) as refused:
        keep(bench, "file_b", 41)
    assert refused.value.details == {"used_bytes": 60, "limit_bytes": 100}
    with pytest.raises(AlreadyExists):
        keep(bench, "file_a", 1)
    bench.tell(DeleteObject(principal=ADA, object="file_a"))
    keep(bench, "file_b", 100)
    with pytest.raises(NotFound):
        bench.tell(DeleteObject(principal=ADA, object="file_a"))
    bench.reopen()
    assert bench.plane.books.objects.used_bytes("atelier") == 100
    assert list(bench.plane.books.objects.stored) == ["file_b"]


def test_a_batch_goes_from_open_to_ended_with_its_files(mill):
    with pytest.raises(NotFound):
        mill.tell(OpenBatch(principal=ADA, batch=batch("file_a")))
    keep(mill, "file_a")
    mill.tell(OpenBatch(principal=ADA, batch=batch("file_a")))
    with pytest.raises(InUse):
        mill.tell(DeleteObject(principal=ADA, object="file_a"))
    with pytest.raises(Conflict):
        mill.tell(DeleteObject(principal=ADA, object=BATCH))
    assert mill.tell(CancelBatch(principal=ADA, batch=BATCH)).state is BatchState.CANCELLING
    assert mill.tell(CancelBatch(principal=ADA, batch=BATCH)).cancelled_at_ns > 0
    ended = replace(batch("file_a"), state=BatchState.CANCELLED, completed=1, output_file="file_o")
    command = EndBatch(principal=ADA, batch=ended, files=(stored("file_o"),))
    first = mill.tell(command)
    assert (first.state, first.completed) == (BatchState.CANCELLED, 1)
    assert first.cancelled_at_ns > 0
    assert first.ended_at_ns > 0
    assert mill.tell(command) == first
    with pytest.raises(Conflict):
        mill.tell(CancelBatch(principal=ADA, batch=BATCH))
    mill.reopen()
    assert mill.plane.books.objects.batches[BATCH] == first
    assert set(mill.plane.books.objects.stored) == {"file_a", "file_o"}


def test_what_a_batch_wrote_is_kept_above_the_quota(bench):
    bench.apply(*factory(quota=Quota(stored_bytes=15)))
    keep(bench, "file_a")
    bench.tell(OpenBatch(principal=ADA, batch=batch("file_a")))
    ended = replace(batch("file_a"), state=BatchState.COMPLETED, output_file="file_o")
    bench.tell(EndBatch(principal=ADA, batch=ended, files=(stored("file_o", 50),)))
    assert bench.plane.books.objects.used_bytes("atelier") == 60


@pytest.fixture
def served(mill: Bench) -> tuple[Bench, str]:
    """A mill with a replica that serves."""
    view = mill.submit(endpoint())
    mill.turns(3, 1.0)
    return mill, view.id


def name_lines(gateway: Gateway, **line_by_request: str) -> None:
    gateway.records = [
        replace(record, line=line_by_request.get(record.request, "")) for record in gateway.records
    ]


def charges(bench: Bench, *requests: str) -> list[Any]:
    bench.clock.time_ns += 30 * SECOND
    bench.turns(40, 2.0)
    found = {receipt.usage.request: receipt for receipt in bench.store.receipts(limit=1000)}
    return [found[name] for name in requests]


def test_a_line_pays_the_batch_price_and_its_receipt_says_so(served):
    bench, view = served
    gateway = Gateway(bench)
    gateway.sync(wants={"atelier": cost(5000)})
    gateway.request("req_1", view, end=True)
    gateway.request("req_2", view, end=True)
    name_lines(gateway, req_2=f"{BATCH}.0")
    bench.turns(2, 1.0)
    gateway.sync()
    bench.turns(20, 1.0)
    gateway.sync()
    whole, reduced = charges(bench, "req_1", "req_2")
    assert whole.charge.amount_neur == 2 * reduced.charge.amount_neur == cost(100)
    assert (whole.usage.line, reduced.usage.line) == ("", f"{BATCH}.0")
    assert {line.factor_ppm for line in whole.charge.lines} == {WHOLE_PPM}
    assert {line.factor_ppm for line in reduced.charge.lines} == {WHOLE_PPM // 2}


def test_a_line_that_is_carried_out_again_costs_nothing_more(served):
    bench, view = served
    first = Gateway(bench, epoch=100)
    first.sync(wants={"atelier": cost(5000)})
    first.request("req_1", view, end=True)
    name_lines(first, req_1=f"{BATCH}.7")
    first.sync(is_complete=True)
    second = Gateway(bench, epoch=200)
    second.sync(wants={"atelier": cost(5000)})
    second.request("req_2", view, end=True)
    name_lines(second, req_2=f"{BATCH}.7")
    second.sync()
    bench.turns(10, 1.0)
    second.sync()
    once, again = charges(bench, "req_1", "req_2")
    assert once.charge.amount_neur == cost(100) // 2
    assert again.charge.amount_neur == 0
    assert again.usage.is_repeated
    assert again.usage.quantities == once.usage.quantities
    bench.reopen()
    assert bench.plane.books.cursors.charged_lines == {BATCH: 1 << 7}


def test_a_line_that_was_cut_costs_nothing_and_is_charged_when_it_is_done(served):
    bench, view = served
    first = Gateway(bench, epoch=100)
    first.sync(wants={"atelier": cost(5000)})
    first.request("req_1", view)
    name_lines(first, req_1=f"{BATCH}.0")
    first.sync()
    second = Gateway(bench, epoch=200)
    second.sync()  # the first one's process was killed: its journal ends here
    second.sync(of=first, is_complete=True, is_telling=False)
    second.sync(wants={"atelier": cost(5000)})
    second.request("req_2", view, end=True)
    name_lines(second, req_2=f"{BATCH}.0")
    second.sync()
    bench.turns(10, 1.0)
    second.sync()
    cut, done = charges(bench, "req_1", "req_2")
    assert (cut.charge.amount_neur, cut.usage.quantities) == (0, {})
    assert done.charge.amount_neur == cost(100) // 2
    assert not done.usage.is_repeated

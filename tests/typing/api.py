"""How the public API is used, for the type checker: `mypy --strict` must agree with every line."""

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

from moulin.domain.control import (
    Applied,
    CheckpointInfo,
    Explanation,
    FactoryStatus,
    FetchStatus,
    KeyIssued,
    KeyWanted,
    ModelPage,
    ReceiptPage,
    Trial,
    UsageReport,
    WorkloadPage,
)
from moulin.domain.events import Event
from moulin.domain.factory import Site
from moulin.domain.objects import StoredPage
from moulin.domain.observation import LogChunk
from moulin.domain.secrets import SecretInfo, SecretPage
from moulin.domain.views import WorkloadView
from moulin.domain.workload import EndpointSpec, TaskTemplate, WorkloadKind, WorkloadSpec
from moulin.sdk import AsyncMoulin, Credentials, Moulin

SPEC = WorkloadSpec(kind=WorkloadKind.JOB, name="j", task=TaskTemplate(command=("true",)))


def plain(moulin: Moulin) -> None:
    """Every kind of answer of the plain client."""
    assert_type(moulin.status(), FactoryStatus)
    assert_type(moulin.workloads.submit(SPEC, idempotency_key="k"), WorkloadView)
    assert_type(moulin.workloads.try_out(SPEC), Trial)
    assert_type(moulin.workloads.page(states=["running"], label=("a", "b")), WorkloadPage)
    assert_type(moulin.workloads.every(), Iterator[WorkloadView])
    assert_type(moulin.workloads.why("job_1"), Explanation)
    assert_type(moulin.workloads.logs("job_1"), LogChunk)
    assert_type(moulin.workloads.follow("job_1"), Iterator[bytes])
    assert_type(moulin.workloads.wait("job_1", timeout_s=1.0), WorkloadView)
    assert_type(moulin.endpoints.deploy("e", EndpointSpec(model="m")), WorkloadView)
    assert_type(moulin.models.list(), ModelPage)
    assert_type(moulin.models.fetch("m"), Iterator[FetchStatus])
    assert_type(moulin.keys.create(KeyWanted(name="k")), KeyIssued)
    assert_type(moulin.secrets.set("T", "value"), SecretInfo)
    assert_type(moulin.secrets.list(), SecretPage)
    assert_type(moulin.bundles.sync("folder"), str)
    assert_type(moulin.bundles.list(), StoredPage)
    assert_type(moulin.factory.apply("f", [Site(name="s", country="FR")]), Applied)
    assert_type(moulin.receipts.page(), ReceiptPage)
    assert_type(moulin.receipts.file("rcp_1"), bytes)
    assert_type(moulin.receipts.checkpoint(), CheckpointInfo)
    assert_type(moulin.usage(), UsageReport)
    assert_type(moulin.events(after=1), Iterator[Event])
    with Moulin(credentials=Credentials(api_key="k")) as other:
        assert_type(other, Moulin)


async def asynchronous(moulin: AsyncMoulin) -> None:
    """The same of the asyncio client."""
    assert_type(await moulin.status(), FactoryStatus)
    assert_type(await moulin.workloads.submit(SPEC), WorkloadView)
    assert_type(await moulin.workloads.wait("job_1"), WorkloadView)
    assert_type(await moulin.secrets.set("T", "value"), SecretInfo)
    assert_type(await moulin.bundles.sync("folder"), str)
    assert_type(moulin.workloads.every(), AsyncIterator[WorkloadView])
    assert_type(moulin.workloads.follow("job_1"), AsyncIterator[bytes])
    assert_type(await moulin.models.list(), ModelPage)
    assert_type(moulin.events(), AsyncIterator[Event])
    async with AsyncMoulin(control_url="http://127.0.0.1:8700") as other:
        assert_type(other, AsyncMoulin)

"""The SDK against a running API: values come back as they went, errors as their classes."""

import asyncio
import inspect
import threading

import httpx
import pytest

from moulin.domain.control import KeyWanted, RolloutWanted
from moulin.domain.errors import (
    BudgetExceeded,
    DigestMismatch,
    Forbidden,
    IdempotencyMismatch,
    InvalidRequest,
    InvalidSpec,
    NotFound,
    Unauthenticated,
    Unavailable,
    UnknownName,
)
from moulin.domain.events import WorkloadStopRequested
from moulin.domain.factory import Site, Zone
from moulin.domain.ids import WorkloadId
from moulin.domain.principal import Role
from moulin.domain.workload import EndpointSpec, WorkloadKind
from moulin.sdk import AsyncMoulin, Moulin, _kept, asynchronous, synchronous
from tests.integration.api.world import World, job_spec, running_world


def connect(world: World, role: Role = Role.ADMIN, project: str = "alpha") -> Moulin:
    return Moulin(control_url=world.url, api_key=world.secret(role, project), project=project)


def test_a_workload_from_submit_to_its_end(world):
    spec = job_spec("sdk", labels={"a": "é"})
    with connect(world) as moulin:
        made = moulin.workloads.submit(spec)
        assert made.spec == spec
        assert moulin.workloads.get(made.id) == made
        assert moulin.workloads.why(made.id).workload == made
        assert b"".join(moulin.workloads.follow(made.id)) == b"hello \xff world\n"
        threading.Timer(0.1, lambda: moulin.workloads.stop(made.id)).start()
        assert moulin.workloads.wait(made.id, timeout_s=20).state == "cancelled"
        assert moulin.workloads.try_out(spec).is_possible
        assert made.id in {view.id for view in moulin.workloads.every(kind="job", limit=50)}


def test_the_rest_of_the_resources(world):
    with connect(world, Role.OPERATOR) as operator, connect(world) as moulin:
        assert moulin.status().balances[0].spent_neur == 2**70
        assert moulin.usage().items[0].energy_mj == 2**65
        assert moulin.receipts.page().items[0].id == world.receipts["alpha"]
        assert moulin.receipts.get(world.receipts["alpha"]).charge.amount_neur == 2**64
        assert moulin.receipts.file(world.receipts["alpha"]).startswith(b"file of rcp_")
        assert moulin.receipts.checkpoint().tree_size == 2
        assert moulin.receipts.public_key() == b"factory+key"
        assert moulin.factory.nodes().items[0].memory_bytes == 2**34
        assert moulin.factory.get().items
        assert operator.factory.intervals().items == ()
        issued = moulin.keys.create(KeyWanted(name="robot", role=Role.VIEWER))
        assert issued.secret not in repr(issued)
        assert issued.key.id in {key.id for key in moulin.keys.list().items}
        assert moulin.keys.revoke(issued.key.id).revoked_at_ns > 0
        made = moulin.endpoints.deploy("chat", EndpointSpec(model="tiny"))
        assert made.kind == WorkloadKind.ENDPOINT
        assert moulin.endpoints.scale(made.id, 2).id == made.id
        assert moulin.endpoints.rollout(made.id, RolloutWanted(is_back=True)).id == made.id
        assert [view.id for view in moulin.endpoints.every()] == [made.id]


def test_apply_sends_declared_values(world):
    objects = (Site(name="paris", country="FR"), Zone(name="paris-1", site="paris"))
    with connect(world, Role.OPERATOR) as operator:
        applied = operator.factory.apply("factory.yaml", objects, is_dry_run=True)
        with pytest.raises(InvalidSpec, match=r"objects\.0"):
            operator.factory.apply("factory.yaml", (Site(name="x", country="France"),))
    assert [diff.name for diff in applied.diffs] == ["paris", "paris-1"]


def test_a_fetch_reports_progress_and_its_failure():
    with running_world() as world, connect(world) as moulin:
        states = [status.state for status in moulin.models.fetch("tiny", timeout_s=30)]
        assert states[0] == "fetching"
        assert states[-1] == "ready"
        assert moulin.models.list().items[0].fetch.state == "ready"
        world.shelf.states["tiny"] = moulin.models.start_fetch("tiny", variant="broken")
        with pytest.raises(DigestMismatch, match="fetch tiny"):
            list(moulin.models.fetch("tiny", variant="broken"))
        with pytest.raises(UnknownName) as raised:
            moulin.models.get("giant")
        assert raised.value.hint == "did you mean tiny?"


def test_only_an_operator_adds_files_of_the_machine():
    with (
        running_world() as world,
        connect(world) as moulin,
        connect(world, Role.OPERATOR) as operator,
    ):
        with pytest.raises(Forbidden, match="only an operator"):
            moulin.models.start_fetch("tiny", source="file:/srv/tiny.gguf")
        operator.models.start_fetch("tiny", source="file:/srv/tiny.gguf")
        for source in ("file:tiny.gguf", "ftp", "file:/a\nb"):
            with pytest.raises(InvalidSpec):
                operator.models.start_fetch("tiny", source=source)


def test_errors_are_the_servers_classes(world):
    with connect(world) as moulin:
        with pytest.raises(BudgetExceeded) as raised:
            moulin.workloads.submit(job_spec(labels={"test": "poor"}))
        assert raised.value.hint == "earn some"
        assert raised.value.details["left_eur"] == "0"
        moulin.workloads.submit(job_spec("a"), idempotency_key="sdk-1")
        with pytest.raises(IdempotencyMismatch):
            moulin.workloads.submit(job_spec("b"), idempotency_key="sdk-1")
        with pytest.raises(NotFound):
            moulin.workloads.get(world.workloads["beta"])
        with pytest.raises(NotFound):
            moulin.workloads.get("../../status")
        with pytest.raises(Forbidden):
            moulin.factory.intervals()
    with Moulin(control_url=world.url, api_key="mk_nothing") as nobody:
        with pytest.raises(Unauthenticated):
            nobody.status()
        with pytest.raises(InvalidRequest, match="project"):
            nobody.workloads.submit(job_spec())


def test_an_address_where_nobody_listens():
    with (
        Moulin(control_url="http://127.0.0.1:9", api_key="mk_x") as moulin,
        pytest.raises(Unavailable, match="ConnectError"),
    ):
        moulin.status()


def test_events_follow_the_log_over_reconnections(world):
    with connect(world, Role.OPERATOR) as operator:
        seen = list(operator.events(is_following=False))
        last = world.standin.store.last_sequence()
        assert [event.sequence for event in seen] == list(range(1, last + 1))
        payload = WorkloadStopRequested(
            workload=WorkloadId(world.workloads["alpha"]), by="somebody"
        )
        stream = operator.events(after=last)
        threading.Timer(0.1, lambda: world.standin.record(payload, "alpha")).start()
        assert next(stream).payload == payload
        stream.close()  # type: ignore[attr-defined]


def test_a_submission_whose_answer_was_lost_is_sent_again_and_made_once(world):
    real = httpx.HTTPTransport()
    lost: list[bytes] = []

    class Lossy(httpx.BaseTransport):
        def handle_request(self, request):
            answer = real.handle_request(request)
            if not lost:
                lost.append(answer.read())
                raise httpx.ReadError("the answer was lost", request=request)
            return answer

    with Moulin(
        control_url=world.url,
        api_key=world.secret(Role.MEMBER),
        project="alpha",
        transport=Lossy(),
    ) as moulin:
        made = moulin.workloads.submit(job_spec("once"))
        found = [view.id for view in moulin.workloads.every() if view.name == "once"]
    assert lost
    assert found == [made.id]
    real.close()


def test_the_async_client_does_the_same(world):
    async def story() -> None:
        async with AsyncMoulin(
            control_url=world.url, api_key=world.secret(Role.ADMIN), project="alpha"
        ) as moulin:
            made = await moulin.workloads.submit(job_spec("async"))
            assert await moulin.workloads.get(made.id) == made
            chunks = [chunk async for chunk in moulin.workloads.follow(made.id)]
            assert b"".join(chunks) == b"hello \xff world\n"
            await moulin.workloads.stop(made.id)
            assert (await moulin.workloads.wait(made.id)).state == "cancelled"
            events = [event async for event in moulin.events(is_following=False)]
            assert events[-1].project == "alpha"
            with pytest.raises(NotFound):
                await moulin.workloads.get(world.workloads["beta"])
            many = await asyncio.gather(*(moulin.status() for _ in range(8)))
            assert len(many) == 8

    asyncio.run(story())


def test_both_clients_have_the_same_methods():
    names = {each: f"Async{each}" for each in ("Moulin", "Files", "Batches", "Aliases")}
    homes = (synchronous.__name__, _kept.__name__)
    for name, plain in vars(synchronous).items():
        if not inspect.isclass(plain) or plain.__module__ not in homes:
            continue
        twin = getattr(asynchronous, names.get(name, name))
        for method, function in vars(plain).items():
            if method.startswith("_") or not inspect.isfunction(function):
                continue
            other = getattr(twin, method)
            mine, theirs = (
                [str(each) for each in inspect.signature(one).parameters.values()]
                for one in (function, other)
            )
            assert mine == theirs, method
            assert inspect.getdoc(function) == inspect.getdoc(other), method

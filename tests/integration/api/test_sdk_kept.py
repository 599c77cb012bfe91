"""Files, batches and aliases through both clients, against a running API."""

import asyncio
import io
from dataclasses import replace
from pathlib import Path

import pytest

from moulin.domain.errors import InvalidRequest, NotFound
from moulin.domain.factory import Alias
from moulin.domain.objects import BatchState
from moulin.domain.principal import Role
from moulin.sdk import AsyncMoulin, Moulin
from tests.integration.api.objects_world import CONTENT
from tests.integration.api.world import World


def connect(world: World, role: Role = Role.ADMIN) -> Moulin:
    return Moulin(control_url=world.url, api_key=world.secret(role), project="alpha")


def test_files_go_up_and_come_down(world: World, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(CONTENT * 50_000)
    with connect(world) as moulin:
        stored = moulin.files.upload(path, kept_s=7200)
        assert (stored.name, stored.purpose) == ("questions.jsonl", "batch")
        assert stored.size_bytes == path.stat().st_size
        assert stored.expires_at_ns - stored.created_at_ns == 7200 * 10**9
        assert b"".join(moulin.files.content(stored.id)) == path.read_bytes()
        assert moulin.files.get(stored.id) == stored
        named = moulin.files.upload(io.BytesIO(b"x"), name="a.bin", purpose="user_data")
        assert [each.id for each in moulin.files.every(purpose="user_data")] == [named.id]
        assert {each.id for each in moulin.files.every(limit=2)} <= {
            each.id for each in moulin.files.every()
        }
        assert moulin.files.delete(named.id).id == named.id
        with pytest.raises(NotFound):
            list(moulin.files.content("file_0000000000000000000000000A"))
        with pytest.raises(InvalidRequest, match="No such file"):
            moulin.files.upload(tmp_path / "nothing")
        with pytest.raises(InvalidRequest, match="no purpose"):
            moulin.files.upload(b"x", purpose="nothing")


def test_batches_are_opened_followed_and_read(world: World) -> None:
    with connect(world) as moulin:
        known = world.objects["alpha"]
        opened = moulin.batches.create((known["file"],), metadata={"for": "me"}, window_s=3600)
        assert opened.input_files == (known["file"],)
        assert opened.metadata == {"for": "me"}
        assert opened.deadline_at_ns - opened.created_at_ns == 3600 * 10**9
        sent_along = moulin.batches.create(lines=[{"custom_id": "1", "body": {}}], model="m")
        assert moulin.files.get(sent_along.input_files[0]).purpose == "batch"
        batch = known["batch"]
        assert batch in [each.id for each in moulin.batches.every()]
        assert moulin.batches.cancel(batch).id == batch
        end_batch(world, batch, is_ended=False)
        with pytest.raises(NotFound, match="the batch is running"):
            list(moulin.batches.results(batch))
        end_batch(world, batch)
        assert [each.state for each in moulin.batches.follow(batch, timeout_s=20)] == ["completed"]
        assert b"".join(moulin.batches.results(batch)) == CONTENT
        with pytest.raises(NotFound, match="no such file"):
            list(moulin.batches.errors(batch))
        assert moulin.batches.delete(batch).id == batch


def test_the_async_client_does_the_same(world: World) -> None:
    async def story() -> None:
        async with AsyncMoulin(
            control_url=world.url, api_key=world.secret(Role.ADMIN), project="alpha"
        ) as moulin:
            stored = await moulin.files.upload(io.BytesIO(CONTENT), name="q.jsonl")
            pieces = [piece async for piece in moulin.files.content(stored.id)]
            assert b"".join(pieces) == CONTENT
            with pytest.raises(NotFound):
                [_ async for _ in moulin.files.content("file_0000000000000000000000000A")]
            batch = await moulin.batches.create((stored.id,))
            assert batch.state is BatchState.RUNNING
            known = world.objects["alpha"]["batch"]
            end_batch(world, known)
            ends = [each async for each in moulin.batches.follow(known)]
            assert ends[-1].state is BatchState.COMPLETED
            found = [piece async for piece in moulin.batches.results(known)]
            assert b"".join(found) == CONTENT
            assert known in [each.id async for each in moulin.batches.every()]

    asyncio.run(story())


def test_operators_set_list_and_remove_names(world: World) -> None:
    alias = Alias(name="chat", targets={"chat-v1": 95, "chat-v2": 5})
    with connect(world, Role.OPERATOR) as operator:
        diffs = operator.aliases.set(alias).diffs
        assert [(diff.kind, diff.name) for diff in diffs] == [("alias", "chat")]
        assert operator.aliases.list() == ()
        with pytest.raises(NotFound, match="none of that name"):
            operator.aliases.remove("chat")


def end_batch(world: World, name: str, *, is_ended: bool = True) -> None:
    """Let a batch of the stand-in have ended, with its input as its results, or run again."""
    batches = world.standin.keeping.shelf.batches
    batches[name] = replace(
        batches[name],
        state=BatchState.COMPLETED if is_ended else BatchState.RUNNING,
        lines=1,
        completed=int(is_ended),
        output_file=world.objects["alpha"]["file"] if is_ended else "",
    )

"""Bundles and secrets through both clients, against a running API."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from moulin.domain.errors import InvalidRequest, InvalidSpec, NotFound
from moulin.domain.principal import Role
from moulin.domain.wire import encode_public
from moulin.domain.workload import TaskTemplate
from moulin.sdk import AsyncMoulin, Moulin
from moulin.sdk._core import Upload
from moulin.sdk._requests import store_bundle
from tests.integration.api.world import World, job_spec


def connect(world: World, role: Role = Role.ADMIN) -> Moulin:
    return Moulin(control_url=world.url, api_key=world.secret(role), project="alpha")


def bundles(moulin: Moulin) -> list[str]:
    return [each.sha256 for each in moulin.bundles.list().items]


def test_a_folder_is_sent_once(world: World, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("print(1)")
    # More than any other body may have.
    (tmp_path / "code" / "weights").write_bytes(os.urandom(3_000_000))
    monkeypatch.chdir(tmp_path)
    spec = job_spec(task=TaskTemplate(command=("true",), workdir="code"))
    with connect(world) as moulin:
        before = len(bundles(moulin))
        first = moulin.workloads.submit(spec).spec
        again = moulin.workloads.submit(spec).spec
        assert first == again
        assert first.task is not None
        assert (first.task.workdir, len(first.task.bundle)) == ("", 64)
        assert bundles(moulin).count(first.task.bundle) == 1
        assert len(bundles(moulin)) == before + 1
        assert moulin.workloads.try_out(spec).is_possible
        with pytest.raises(NotFound, match="no folder"):
            moulin.bundles.sync("nothing")
        assert moulin.bundles.delete(first.task.bundle).sha256 == first.task.bundle


def test_the_api_takes_no_relative_workdir_and_no_false_digest(world: World) -> None:
    spec = job_spec(task=TaskTemplate(command=("true",), workdir="code"))
    with world.client() as client:
        answer = client.post("/api/v1/projects/alpha/workloads", json=encode_public(spec))
        assert answer.status_code == 400
    with connect(world) as moulin, pytest.raises(InvalidRequest, match="another digest"):
        moulin.send(store_bundle("alpha", "0" * 64, Upload(name="b", content=b"x")))


def test_secrets_are_set_and_never_shown(world: World) -> None:
    with connect(world) as moulin:
        info = moulin.secrets.set("HF_TOKEN", "canary-of-a-test")
        assert (info.name, info.project, info.set_by) == ("HF_TOKEN", "alpha", "admin of alpha")
        assert "HF_TOKEN" in [each.name for each in moulin.secrets.list().items]
        assert "canary" not in repr(moulin.secrets.list())
        assert moulin.secrets.delete("HF_TOKEN").name == "HF_TOKEN"
        for name, value in (("a b", "x"), ("HF_TOKEN", ""), ("HF_TOKEN", "a\0b")):
            with pytest.raises(InvalidRequest):
                moulin.secrets.set(name, value)
        with pytest.raises(InvalidSpec) as caught:
            moulin.secrets.set("HF_TOKEN", "canary" * 20_000)
        assert "canary" not in str(caught.value.details) + caught.value.message
    with connect(world, Role.OPERATOR) as moulin:
        assert moulin.secrets.rotate().secrets >= 2


def test_the_other_client_does_the_same(world: World, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")

    async def main() -> None:
        key = world.secret(Role.MEMBER)
        async with AsyncMoulin(control_url=world.url, api_key=key, project="alpha") as moulin:
            digest = await moulin.bundles.sync(tmp_path)
            assert await moulin.bundles.sync(tmp_path) == digest
            listed = await moulin.bundles.list()
            assert [each.sha256 for each in listed.items].count(digest) == 1
            spec = job_spec(task=TaskTemplate(command=("true",), bundle=digest))
            view = await moulin.workloads.submit(spec)
            assert view.spec == replace(spec, managed_by=view.spec.managed_by)
            assert (await moulin.bundles.delete(digest)).sha256 == digest
            info = await moulin.secrets.set("OTHER", "x")
            assert info.name in [each.name for each in (await moulin.secrets.list()).items]
            assert (await moulin.secrets.delete("OTHER")).name == "OTHER"

    asyncio.run(main())

"""Folders of tasks on a real Ray cluster: sent to the node, once, and unpacked for each task."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from moulin.domain.errors import EngineRefused, EngineUnavailable
from moulin.domain.observation import TaskPhase
from moulin.domain.workload import TaskTemplate
from moulin.engines.ray import sending
from moulin.engines.task.bundle_shelf import BundleShelf
from moulin.sdk._bundle import packed
from tests.conformance.engine_bench import RayBench, make_step, wait_for, wait_until
from tests.ray_cluster import RayCluster


@pytest.fixture
def bench(ray_cluster: RayCluster, tmp_path: Path) -> Iterator[RayBench]:
    made = RayBench(tmp_path, ray_cluster)
    yield made
    made.close()


@pytest.mark.ray
@pytest.mark.slow
def test_a_folder_is_sent_to_its_node(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(sending, "PIECE_BYTES", 1000)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "word").write_text("grain\n")
    (tmp_path / "code" / "noise").write_bytes(os.urandom(5000))
    (tmp_path / "in").write_text("flour\n")
    with packed(tmp_path / "code") as found:
        (tmp_path / "bundle").write_bytes(found.stream.read())
        digest = found.sha256
    task = TaskTemplate(command=("sh", "-c", "cat word; echo more >> word"), bundle=digest)
    steps = [replace(make_step(name, task), bundle_path=str(tmp_path / "bundle")) for name in "ab"]
    for step in steps:
        wait_until(partial(is_started, bench, step))
        assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 0
        log = bench.engine.logs(step.step, 0, 1 << 20).data.decode()
        assert log.startswith("moulin: unpacked 2 files, 5,006 bytes, in ")
        assert log.endswith("\ngrain\n")
    # Ray's own environment has no fsspec, and the task says so.
    copying = make_step("d", replace(task, bundle="", inputs={"in": f"{tmp_path}/in"}))
    bench.engine.start(copying)
    assert wait_for(bench, copying.step, TaskPhase.EXITED).exit_code == 125
    log = bench.engine.logs(copying.step, 0, 1 << 20).data.decode()
    assert "pip install 'moulin[s3]'" in log
    secretive = replace(make_step("c", replace(task, bundle="")), secrets={"T": "x"})
    with pytest.raises(EngineRefused, match="not encrypted on its way"):
        bench.engine.start(secretive)


def is_started(bench, step) -> bool:
    try:
        bench.engine.start(step)
    except EngineUnavailable as unavailable:
        assert "is on its way to node" in unavailable.message  # noqa: PT017 - tried again, as the cycle does
        return False
    return True


def test_pieces_become_a_bundle_only_when_they_are_the_one_meant(tmp_path):
    shelf = BundleShelf(tmp_path)
    digest = hashlib.sha256(b"onetwo").hexdigest()
    assert shelf.take(digest, 0, b"", is_last=False) == 0
    assert shelf.take(digest, 0, b"one", is_last=False) == 3
    assert shelf.take(digest, 0, b"one", is_last=False) == 3  # sent again: not added twice
    assert shelf.take(digest, 3, b"two", is_last=True) == -1
    assert shelf.take(digest, 0, b"", is_last=False) == -1
    other = "0" * 64
    with pytest.raises(EngineRefused, match="other bytes"):
        shelf.take(other, 0, b"x", is_last=True)
    assert shelf.take(other, 0, b"", is_last=False) == 0
    with pytest.raises(EngineRefused, match="no digest"):
        shelf.take("../x", 0, b"x", is_last=True)
    assert [path.name for path in (tmp_path / ".bundles").iterdir()] == [digest]

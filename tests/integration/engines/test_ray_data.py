"""Folders and copies of tasks on a real Ray cluster: sent to the node, once, and copied by the task."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from moulin.domain.errors import EngineRefused, EngineUnavailable
from moulin.domain.needs import Need
from moulin.domain.observation import TaskPhase
from moulin.domain.workload import TaskTemplate
from moulin.engines.ray import sending
from moulin.engines.task.bundle_shelf import BundleShelf
from moulin.engines.task.containers import find_tools, images_lacking
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
    secretive = replace(make_step("c", replace(task, bundle="")), secrets={"T": "x"})
    with pytest.raises(EngineRefused, match="not encrypted on its way"):
        bench.engine.start(secretive)


def ended(bench, steps) -> list[tuple[int | None, str]]:
    """Start steps, and return how each ended and what it said."""
    for step in steps:
        wait_until(partial(is_started, bench, step))
    codes = [wait_for(bench, step.step, TaskPhase.EXITED).exit_code for step in steps]
    logs = [bench.engine.logs(step.step, 0, 1 << 20).data.decode() for step in steps]
    return list(zip(codes, logs, strict=True))


@pytest.mark.ray
@pytest.mark.slow
def test_a_gang_copies_files_to_its_nodes_and_back(bench, tmp_path):
    (tmp_path / "grain" / "sub").mkdir(parents=True)
    (tmp_path / "grain" / "sub" / "rye").write_text("rye\n")
    (tmp_path / "one").write_text("one\n")
    task = TaskTemplate(
        command=("sh", "-c", "cat in/sub/rye deep/one > made; echo $RANK > own"),
        inputs={"in": f"file://{tmp_path}/grain", "deep/one": f"{tmp_path}/one"},
        outputs={"made": f"{tmp_path}/made", "own": f"{tmp_path}/own-{{rank}}"},
    )
    nodes = ("node-0", "node-1")
    steps = [make_step("g", task, rank=rank, nodes=nodes) for rank in (0, 1)]
    for code, log in ended(bench, steps):
        assert code == 0, log
        assert "input in: 1 file(s), 4 bytes" in log
    assert (tmp_path / "made").read_text() == "rye\none\n"
    assert [(tmp_path / f"own-{rank}").read_text() for rank in (0, 1)] == ["0\n", "1\n"]
    absent = make_step("a", replace(task, inputs={"in": f"{tmp_path}/none"}))
    [(code, log)] = ended(bench, [absent])
    assert (code, log) == (125, f"moulin: {tmp_path}/none: there is no such file or object\n")


@pytest.mark.ray
@pytest.mark.slow
def test_objects_come_once_to_a_node_and_results_go_to_the_store(bench, store, tmp_path):
    env = {
        "AWS_ENDPOINT_URL": store,
        "AWS_DEFAULT_REGION": "us-east-1",
        "MOULIN_INPUT_CACHE": str(tmp_path / "cache"),
    }
    task = TaskTemplate(
        command=("sh", "-c", "wc -c < set/a; cat set/deep/b > flour"),
        env=env,
        inputs={"set": "s3://market/set"},
        outputs={"flour": "s3://market/ray/{id}"},
    )
    [(code, log)] = ended(bench, [make_step("a", task)])
    assert code == 0, log
    assert "\n6000\n" in log
    assert "input set: 2 file(s), 6,004 bytes" in log
    assert "cache" not in log
    read = replace(task, command=("cat", "back"), outputs={})
    address = f"s3://market/ray/{make_step('a', task).workload}"
    read = replace(read, inputs={"back": address, "set": "s3://market/set"})
    [(code, log)] = ended(bench, [make_step("b", read)])
    assert (code, log.endswith("\nrye\n")) == (0, True), log
    assert "2 from this node's cache" in log
    private = replace(read, inputs={"x": "s3://grain/set"})
    [(code, log)] = ended(bench, [make_step("p", private)])
    words = "access is refused; are the keys among `secrets`?"
    assert (code, log) == (125, f"moulin: s3://grain/set: {words}\n")
    none = replace(read, inputs={"x": "s3://market/none"})
    [(code, log)] = ended(bench, [make_step("c", none)])
    assert (code, log) == (125, "moulin: s3://market/none: there is no such file or object\n")


@pytest.mark.ray
@pytest.mark.slow
def test_nodes_say_what_they_cannot_carry(bench):
    lacks = [node.lacks for node in bench.engine.capacity()]
    assert len(lacks) == 2
    for each in lacks:
        assert each[:2] == (Need.ENDPOINT, Need.SECRETS)
        assert Need.OBJECTS not in each  # the lock that servers install has what copies
        assert each[2:] == images_lacking(find_tools(os.environ["PATH"]))


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

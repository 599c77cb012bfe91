"""Folders and secrets of tasks on a real Slurm: a copy for each, and nothing left when a job never ran."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from moulin.domain.errors import EngineUnavailable
from moulin.domain.observation import TaskPhase
from moulin.domain.workload import TaskTemplate
from moulin.engines.task import bundle_shelf
from moulin.engines.task.spool import step_files
from moulin.sdk._bundle import packed
from tests.conformance.engine_bench import SlurmBench, make_step, wait_for, wait_until

pytestmark = pytest.mark.slurm
VALUE = "canary-of-slurm"


@pytest.fixture
def bench(tmp_path, slurm_cluster):
    made = SlurmBench(tmp_path, slurm_cluster)
    yield made
    made.close()


def holding(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.name for path in paths if VALUE.encode() in path.read_bytes())


def test_a_gang_starts_in_copies_with_its_secrets(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_shelf, "SMALL_BYTES", 0)  # however small, beside the cycle
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "word").write_text("grain\n")
    with packed(tmp_path / "code") as found:
        (tmp_path / "bundle").write_bytes(found.stream.read())
        digest = found.sha256
    script = (
        'cat word; echo $RANK >> word; wc -l < word; printf %s "$TOKEN" | wc -c; wc -c < "$KEY"'
    )
    task = TaskTemplate(command=("sh", "-c", script), bundle=digest)
    nodes = ("node-0", "node-1")
    steps = [
        replace(
            make_step("g", task, rank=rank, nodes=nodes),
            bundle_path=str(tmp_path / "bundle"),
            secrets={"TOKEN": VALUE},
            secret_files={"KEY": VALUE},
        )
        for rank in (0, 1)
    ]
    for step in steps:
        wait_until(partial(is_started, bench, step))
    for step in steps:
        assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 0
        log = bench.engine.logs(step.step, 0, 1 << 20).data.decode()
        assert log.splitlines()[1:] == ["grain", "2", "15", "15"], log
    files = step_files(bench.engine._spool, steps[0].step)
    assert Path(f"{files.attempt_directory}/bundle").stat().st_nlink == 2
    assert holding(Path(bench.engine._spool)) == []


def is_started(bench, step) -> bool:
    try:
        bench.engine.start(step)
    except EngineUnavailable as unavailable:
        assert "is being copied" in unavailable.message  # noqa: PT017 - tried again, as the cycle does
        return False
    return True


def test_what_never_begins_leaves_no_secret(bench, tmp_path):
    task = TaskTemplate(command=("true",))
    first, second = (
        replace(make_step("h", task, rank=rank, nodes=("node-0", "node-1")), secrets={"T": VALUE})
        for rank in (0, 1)
    )
    bench.engine.start(first)  # its gang is not complete, so nothing is submitted
    assert holding(Path(bench.engine._spool)) == ["secrets"]
    for step in (first, second):
        bench.engine.stop(step.step, 0)
    assert holding(Path(bench.engine._spool)) == []

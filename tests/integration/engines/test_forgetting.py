"""What the local engine leaves of a task it forgot: nothing, whatever the task had left."""

import fcntl
import os
import signal
from pathlib import Path

import pytest

from moulin.domain.errors import InUse
from moulin.domain.ids import StepId
from moulin.domain.observation import TaskPhase
from moulin.domain.workload import TaskTemplate
from moulin.engines.task.dropped import NAME, Dropped, remove_tree
from moulin.engines.task.spool import CHECKPOINTS, step_files
from tests.conformance.engine_bench import LocalBench, make_step, phase, wait_for, wait_until

DEPTH = 1200


def ended(bench: LocalBench, script: str, *, rank: int = 0) -> StepId:
    task = TaskTemplate(command=("sh", "-c", script))
    step = make_step("a", task, rank=rank, nodes=("node-0", "node-0"))
    bench.engine.start(step)
    wait_for(bench, step.step, TaskPhase.EXITED)
    return step.step


def is_empty(spool: Path) -> bool:
    return kept_places(spool) == [CHECKPOINTS, NAME] and not any(spool.glob(".*/*"))


def kept_places(spool: Path) -> list[str]:
    return sorted(path.name for path in spool.iterdir())


def test_the_last_task_of_an_attempt_takes_what_they_shared_along(bench):
    spool = bench.directory / "spool"
    steps = [ended(bench, f"echo {rank} > result-{rank}", rank=rank) for rank in (0, 1)]
    shared = Path(step_files(spool, steps[0]).shared)
    bench.engine.forget(steps[0])
    assert sorted(path.name for path in shared.iterdir()) == ["result-0", "result-1"]
    assert bench.engine.observe([steps[1]])[0].phase is TaskPhase.EXITED
    bench.engine.forget(steps[1])
    assert kept_places(spool) == [CHECKPOINTS, NAME]
    wait_until(lambda: is_empty(spool))


def test_what_a_task_made_read_only_is_removed(bench):
    step = ended(bench, "mkdir -p a/b && echo 1 > a/b/c && ln -s / a/root && chmod -R a-w,o-x a")
    bench.engine.forget(step)
    wait_until(lambda: is_empty(bench.directory / "spool"))
    assert Path("/etc").is_dir()


def test_a_deep_tree_is_removed(tmp_path):
    path = tmp_path / "top"
    for _ in range(DEPTH):
        path.mkdir()
        path /= "d"
    remove_tree(str(tmp_path / "top"))
    assert not (tmp_path / "top").exists()


def test_what_is_not_there_is_taken_without_complaint(tmp_path):
    dropped = Dropped(tmp_path)
    dropped.take(str(tmp_path / "nothing"))
    remove_tree(str(tmp_path / "nothing"))
    assert list((tmp_path / NAME).iterdir()) == []


def test_what_a_crash_left_is_removed_after_the_next_start(tmp_path):
    left = tmp_path / NAME / "x" / "taken"
    left.mkdir(parents=True)
    (left / "log").write_text("secret")
    Dropped(tmp_path)
    wait_until(lambda: not (tmp_path / NAME / "x").exists())


def test_what_cannot_be_removed_is_said_and_holds_up_nothing(tmp_path, caplog):
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "stray").write_text("no directory")
    (tmp_path / "good").mkdir()
    Dropped(tmp_path).take(str(tmp_path / "good"))
    wait_until(lambda: [path.name for path in (tmp_path / NAME).iterdir()] == ["stray"])
    assert "stray cannot be removed" in caplog.text


def test_a_task_that_died_without_a_record_is_forgotten(bench):
    step = make_step("a", TaskTemplate(command=("sleep", "1000")))
    claim = bench.engine.start(step)
    os.kill(claim.pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{claim.pid}/stat").exists())
    bench.engine.forget(step.step)
    assert phase(bench, step.step) is TaskPhase.ABSENT


def test_a_start_under_way_is_not_forgotten(bench):
    step = make_step("a", bench.program())
    directory = step_files(bench.directory / "spool", step.step).directory
    Path(directory).mkdir(parents=True)
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(InUse, match="under way"):
            bench.engine.forget(step.step)
    finally:
        os.close(fd)
    bench.engine.forget(step.step)
    assert not Path(directory).exists()

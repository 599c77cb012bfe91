"""Secrets of a task: in its environment or as files, nowhere else, and gone with it."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from moulin.domain.errors import EngineRefused
from moulin.domain.observation import TaskPhase
from moulin.domain.workload import TaskTemplate
from moulin.engines.local.engine import LocalEngine
from moulin.engines.task.spool import step_files
from tests.conformance.engine_bench import (
    RealClock,
    make_step,
    nodes_of_this_machine,
    wait_until,
)

VALUE = "canary-0f3c with 'quotes' and\nlines"


@pytest.fixture
def engine(tmp_path):
    return LocalEngine(tmp_path, clock=RealClock(), nodes=nodes_of_this_machine())


def step_of(script, name="a", **handed):
    return replace(make_step(name, TaskTemplate(command=("sh", "-c", script))), **handed)


def ended(engine, step):
    wait_until(lambda: engine.observe([step])[0].phase in (TaskPhase.EXITED, TaskPhase.GONE))
    return engine.observe([step])[0]


def places(folder: Path, word: str = VALUE) -> list[str]:
    """Return every file that holds the word, or a command line or another's environment does."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    lines = sorted(Path("/proc").glob("[0-9]*/cmdline"))
    found = []
    for path in (*files, *lines):
        try:
            data = path.read_bytes()
        except OSError:
            continue
        if word.encode() in data:
            found.append(str(path))
    return found


def test_a_task_has_them_and_nothing_else_does(engine, tmp_path):
    gate = tmp_path / "gate"
    script = (
        f'printf %s "$TOKEN" | sha256sum; sha256sum < "$KEY"; stat -c %a "$KEY" "${{KEY%/*}}";'
        f" while [ ! -e {gate} ]; do sleep 0.01; done"
    )
    step = step_of(script, secrets={"TOKEN": VALUE}, secret_files={"KEY": VALUE})
    engine.start(step)
    log = step_files(tmp_path / "spool", step.step).log
    wait_until(lambda: Path(log).read_text().count("\n") == 4)
    first, second, file_mode, folder_mode = Path(log).read_text().split("\n")[:4]
    assert first == second
    assert (file_mode, folder_mode) == ("600", "700")
    files = step_files(tmp_path / "spool", step.step)
    assert places(tmp_path) == [f"{files.secret}/KEY"]
    shim = engine.start(step).pid
    assert VALUE.encode() not in Path(f"/proc/{shim}/environ").read_bytes()
    assert not Path(files.secrets).exists()
    gate.touch()
    assert ended(engine, step.step).exit_code == 0
    assert places(tmp_path) == []
    assert not Path(files.secret).exists()


def test_a_step_that_is_fenced_or_whose_shim_dies_leaves_nothing(engine, tmp_path):
    never = step_of("true", "never", secrets={"TOKEN": VALUE})
    engine.stop(never.step, 0)
    with pytest.raises(EngineRefused):
        engine.start(never)
    step = step_of("sleep 60", "killed", secret_files={"KEY": VALUE})
    claim = engine.start(step)
    files = step_files(tmp_path / "spool", step.step)
    wait_until(lambda: Path(f"{files.secret}/KEY").exists())
    os.kill(claim.pid, signal.SIGKILL)
    assert ended(engine, step.step).phase is TaskPhase.GONE
    assert places(tmp_path) == []


def test_what_cannot_be_handed_over_is_refused(engine):
    with pytest.raises(EngineRefused, match="NUL"):
        engine.start(step_of("true", secrets={"TOKEN": "a\0b"}))
    with pytest.raises(EngineRefused, match="too large"):
        engine.start(step_of("true", "b", secret_files={"TOKEN": "a" * (2 << 20)}))


def test_secrets_are_in_no_representation_of_a_step():
    assert VALUE not in repr(step_of("true", secrets={"TOKEN": VALUE}))

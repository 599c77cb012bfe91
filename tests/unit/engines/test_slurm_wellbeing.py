"""What readers left behind in a folder, and for how long it counts."""

import json
import os
import time
from pathlib import Path

import pytest

from moulin.domain.errors import EngineError
from moulin.engines.slurm.wellbeing import GONE_S, OLD_S, ToldFiles
from tests.conformance.engine_bench import RealClock

WORD = {
    "at_ns": 5,
    "memory_bytes": 9,
    "disk_free_bytes": -1,
    "devices": [{"index": 0, "uuid": "a"}],
}


@pytest.fixture
def files(tmp_path) -> ToldFiles:
    return ToldFiles(tmp_path / "health", RealClock())


def write(files: ToldFiles, name: str, age_s: float, **more: object) -> Path:
    path = Path(files.folder) / "n1" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**WORD, **more}))
    at_s = time.time() - age_s
    os.utime(path, (at_s, at_s))
    return path


def told(files: ToldFiles) -> list[str]:
    return [each.step for each in files._look().get("n1", ())]


def test_a_last_word_that_nobody_was_there_to_read_counts_for_a_moment(files, monkeypatch):
    path = write(files, "job_a.u0.g1.t0", OLD_S + 600)
    assert told(files) == ["job_a.u0.g1.t0"]
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s + 60)
    assert told(files) == []
    assert path.exists()  # others may not have read it yet


def test_what_was_read_of_a_machine_long_ago_is_not_so_any_more(files):
    write(files, "job_a.u0.g1.t0", OLD_S + 600, disk_free_bytes=5)
    write(files, "job_b.u0.g1.t0", OLD_S + 600, devices=None)
    write(files, "job_c.u0.g1.t0", 1, disk_free_bytes=5)
    assert told(files) == ["job_c.u0.g1.t0"]


def test_old_words_drafts_and_foreign_files_are_nothing(files):
    gone = write(files, "job_a.u0.g1.t0", GONE_S + 1)
    write(files, "job_b.u0.g1.t0.4711", 1)
    write(files, "job_c.u0.g1.t0", 1, devices=[7])
    (Path(files.folder) / ".drained" / "n1").mkdir(parents=True)
    assert told(files) == []
    assert not gone.exists()


def test_a_folder_that_cannot_be_read_is_said_to_be(files):
    Path(files.folder).rmdir()
    with pytest.raises(EngineError, match="health"):
        files._look()

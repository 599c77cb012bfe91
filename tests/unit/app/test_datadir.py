"""The data directory: one Moulin at a time, private files, and processes that are who they were."""

import os
import stat

import pytest

from moulin.app.datadir import (
    lock,
    make_directory,
    read_json,
    read_run,
    running_supervisor,
    write_json,
)
from moulin.app.processes import ProcessMark, is_alive, mark_from, mark_of
from moulin.domain.errors import DataDirectoryBusy, LocalError


def test_a_second_one_is_told_who_is_there(tmp_path):
    held = lock(tmp_path, 4242)
    with pytest.raises(DataDirectoryBusy, match="pid 4242") as caught:
        lock(tmp_path, 1)
    assert "moulin down" in caught.value.hint
    os.close(held)
    os.close(lock(tmp_path, 1))


def test_files_are_for_this_user_alone(tmp_path):
    data = tmp_path / "new" / "data"
    make_directory(data)
    write_json(data / "x.json", {"a": 1})
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert stat.S_IMODE((data / "x.json").stat().st_mode) == 0o600
    assert read_json(data / "x.json") == {"a": 1}
    assert [path.name for path in data.glob(".*.part")] == []


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(LocalError, match="make the data directory"):
        make_directory(tmp_path / "file" / "data")


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_damaged_files_are_said_to_be(tmp_path, text):
    (tmp_path / "run.json").write_text(text, "utf-8")
    with pytest.raises(LocalError, match=r"run\.json"):
        read_run(tmp_path)


def test_nobody_ran_here(tmp_path):
    assert running_supervisor(tmp_path) is None
    assert read_run(tmp_path).children == ()


def test_a_pid_alone_names_nobody(tmp_path):
    own = mark_of(os.getpid())
    assert own is not None
    assert is_alive(own)
    assert not is_alive(ProcessMark(own.pid, own.started_ticks + 1, own.boot_id))
    assert not is_alive(ProcessMark(own.pid, own.started_ticks, "another boot"))
    write_json(tmp_path / "run.json", {"supervisor": own.as_json(), "control": None})
    assert running_supervisor(tmp_path) == own


@pytest.mark.parametrize(
    "data", [None, 7, {}, {"pid": 1, "started_ticks": 1, "boot_id": ""}, {"pid": "2"}]
)
def test_marks_that_are_none(data):
    assert mark_from(data) is None

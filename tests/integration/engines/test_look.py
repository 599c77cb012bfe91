"""The bare reader over a driver library that replays: what is written is what it says."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moulin.domain.health import DeviceReading
from moulin.domain.ids import NodeId
from moulin.domain.told import joined, read_told, reading_of, skew_ns
from moulin.engines.slurm.wellbeing import LOOK
from moulin.engines.task import look
from tests import nvml

WELL = """\
device 0 GPU-a
ecc 0 18446744073709551615
remap 0 0 0
reasons 0 0
links 0 1 1
device 1 GPU-b
"""
READ = f"""
import json, runpy, sys
names = runpy.run_path({LOOK!r})
driver = names["Nvml"]()
for line in sys.stdin:
    print(json.dumps(names["machine"]("/", driver)), flush=True)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    return nvml.build(tmp_path_factory.mktemp("nvml"))


class Reader:
    """One process that reads when it is told."""

    def __init__(self, library: Path, script: Path) -> None:
        self.script = script
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-E", "-c", READ],
            env=nvml.environment(library, script),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def devices(self, text: str) -> tuple[DeviceReading, ...] | None:
        self.script.write_text(text, "ascii")
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        told = read_told(self.process.stdout.readline().encode())
        assert told is not None
        return reading_of(NodeId("n"), told).devices


@pytest.fixture
def reader(library, tmp_path):
    script = tmp_path / "script"
    script.write_text(WELL, "ascii")
    made = Reader(library, script)
    yield made
    made.process.communicate(timeout=30)


def test_what_the_driver_says_is_what_is_told(reader):
    first, second = reader.devices(WELL)
    assert (first.index, first.uuid, first.ecc_uncorrected) == (0, "GPU-a", 2**64 - 1)
    assert (first.is_remap_pending, first.is_remap_failed, first.links_down) == (False, False, 0)
    assert (first.is_hot, first.is_braked, dict(first.xids)) == (False, False, {})
    assert second.ecc_uncorrected == -1
    assert (second.is_hot, second.is_remap_failed, second.links_down) == (None, None, -1)
    [now, _] = reader.devices(
        WELL + "remap 0 1 1\nreasons 0 224\nlinks 0 1 0\nxid 0 79\nxid 0 79\nxid 0 31\n"
    )
    assert (now.is_remap_pending, now.is_remap_failed, now.links_down) == (True, True, 1)
    assert (now.is_hot, now.is_braked, dict(now.xids)) == (True, True, {"79": 2, "31": 1})
    assert now.xids_since_ns == first.xids_since_ns > 0


def test_a_device_that_is_lost_is_said_to_be_and_its_last_xid_is_its_own(reader):
    reader.devices(WELL)
    first, second = reader.devices(WELL.replace("device 1 GPU-b\n", "") + "xid 1 79\necc 1 0\n")
    assert first == reader.devices(WELL)[0]
    assert (second.uuid, second.is_lost) == ("GPU-b", True)
    [_, back] = reader.devices(WELL + "xid 1 79\n")
    assert (back.is_lost, dict(back.xids)) == (False, {"79": 1})


def test_a_driver_that_goes_says_nothing(reader):
    reader.devices(WELL)
    assert reader.devices("gone\n") is None
    assert len(reader.devices(WELL)) == 2


def test_without_a_driver_the_machine_is_read_all_the_same(tmp_path):
    found = look.machine(str(tmp_path), look.Nvml("libnothing-like-it.so"))
    reading = reading_of(NodeId("n"), found)
    assert reading.devices is None
    assert reading.memory_bytes > 2**28
    assert reading.disk_free_bytes == -1 or reading.disk_free_bytes > 0
    assert look.disk_free_bytes("/nothing/like/it") == -1


def test_uncorrected_errors_of_memory_are_summed(tmp_path):
    assert look.memory_errors(str(tmp_path / "none")) == -1
    for index, text in enumerate(("2\n", "3", "x")):
        (tmp_path / f"mc{index}").mkdir()
        (tmp_path / f"mc{index}" / "ue_count").write_text(text)
    assert look.memory_errors(str(tmp_path)) == 5


@pytest.mark.parametrize(
    ("environment", "plan", "expected"),
    [
        ({}, [], []),
        ({}, [2, 3], [2, 3]),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, [2, 3], [0, 1]),
        ({"CUDA_VISIBLE_DEVICES": ""}, [2], []),
        ({"CUDA_VISIBLE_DEVICES": "MIG-1"}, [2], None),
    ],
)
def test_a_task_sees_what_its_launcher_says_before_what_was_planned(environment, plan, expected):
    assert look.visible(environment, plan) == expected


def test_devices_are_called_as_the_plan_calls_them(tmp_path):
    (tmp_path / "spec").write_bytes(b"argv\0true\0default_env\0CUDA_VISIBLE_DEVICES=5,4\0")
    plan = look.planned(str(tmp_path))
    assert plan == [5, 4]
    found = look.renamed([{"index": 1}, {"index": 0}], [0, 1], plan)
    assert [each["index"] for each in found or ()] == [4, 5]
    assert look.renamed([{"index": 1}], [0, 1], []) == [{"index": 1}]
    assert look.planned(str(tmp_path / "none")) == []


def test_a_reader_ends_with_its_task_and_takes_its_word_along(tmp_path):
    step = tmp_path / "wl.u0.g1" / "0"
    step.mkdir(parents=True)
    task = subprocess.Popen(["sleep", "60"])
    words = [sys.executable, "-I", "-S", "-E", LOOK, str(tmp_path / "h"), str(step), str(task.pid)]
    reader = subprocess.Popen(words, env={"SLURMD_NODENAME": "n1"})
    written = tmp_path / "h" / "n1" / "wl.u0.g1.t0"
    deadline_s = time.monotonic() + 30
    while not written.exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    assert json.loads(written.read_text())["devices"] is None
    # A second one for a task without devices is not needed on the same machine.
    assert subprocess.run(words, env={"SLURMD_NODENAME": "n1"}, check=False).returncode == 0
    task.kill()
    task.wait()
    assert reader.wait(timeout=30) == 0
    assert not written.exists()
    assert subprocess.run(words, check=False, timeout=30).returncode == 1


class Beside:
    """A reader beside a task of one device, that has read once."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.script = folder / "script"
        self.script.write_text(WELL, "ascii")
        self.step = folder / "wl.u0.g1" / "0"
        self.step.mkdir(parents=True)
        (self.step / "spec").write_bytes(b"default_env\0CUDA_VISIBLE_DEVICES=0\0")
        self.task = subprocess.Popen(["sleep", "60"])
        words = (LOOK, str(folder / "h"), str(self.step), str(self.task.pid))
        replayed = {"SLURMD_NODENAME": "n1", **nvml.environment(library, self.script)}
        self.reader = subprocess.Popen([sys.executable, "-I", "-S", "-E", *words], env=replayed)
        self.written = folder / "h" / "n1" / "wl.u0.g1.t0"
        self.until(lambda: bool(self.devices()))

    def devices(self) -> tuple[DeviceReading, ...]:
        told = read_told(self.written.read_bytes()) if self.written.exists() else None
        return reading_of(NodeId("n1"), told).devices or () if told is not None else ()

    def until(self, is_true: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + 30
        while not is_true():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)

    def say(self, text: str) -> None:
        new = self.script.with_suffix(".new")
        new.write_text(text, "ascii")
        new.replace(self.script)

    def end(self, text: str) -> None:
        """Let the driver say something and the task end at once."""
        self.say(text)
        self.task.kill()
        self.task.wait()
        assert self.reader.wait(timeout=30) == 0


@pytest.fixture
def beside(library, tmp_path):
    made = Beside(library, tmp_path)
    yield made
    made.task.kill()
    made.task.wait()
    made.reader.wait(timeout=30)


@pytest.mark.parametrize(
    ("text", "xids", "is_lost"),
    [(f"{WELL}xid 0 79\nreasons 0 64\n", {"79": 1}, False), ("device 1 GPU-b\n", {}, True)],
)
def test_what_a_task_may_have_ended_of_is_left_behind(beside, text, xids, is_lost):
    beside.end(text)
    [found] = beside.devices()
    assert (found.uuid, dict(found.xids), found.is_lost) == ("GPU-a", xids, is_lost)
    # What may pass is not believed for so long.
    assert found.is_hot is None


@pytest.mark.parametrize("text", [WELL, f"{WELL}reasons 0 64\n"])
def test_a_task_whose_devices_did_not_break_leaves_nothing(beside, text):
    beside.end(text)
    assert not beside.written.exists()


def test_a_task_that_was_asked_to_end_leaves_nothing(beside):
    (beside.step / "stop").write_bytes(b"0")
    beside.end(f"{WELL}xid 0 79\n")
    assert not beside.written.exists()


def test_an_xid_is_heard_before_the_next_reading_is_due(library, tmp_path, monkeypatch):
    text = Path(LOOK).read_text("utf-8")
    rarely = tmp_path / "rarely.py"
    rarely.write_text(text.replace("PERIOD_S = 3.0", "PERIOD_S = 600.0"), "utf-8")
    monkeypatch.setitem(globals(), "LOOK", str(rarely))
    beside = Beside(library, tmp_path)
    beside.say(f"{WELL}xid 0 79\n")
    beside.until(lambda: bool(beside.devices() and beside.devices()[0].xids))
    beside.end(WELL)


def test_what_several_readers_say_is_joined():
    told: list[dict[str, Any]] = [
        {"at_ns": 5, "devices": [{"index": 1, "uuid": "b"}], "memory_bytes": 9},
        {"at_ns": 6, "devices": None, "disk_free_bytes": 7},
    ]
    readings = [reading_of(NodeId("n"), told[0], skew_ns=-4), reading_of(NodeId("n"), told[1])]
    found = joined(NodeId("n"), readings)
    assert [each.uuid for each in found.devices or ()] == ["b"]
    assert (found.at_ns, found.disk_free_bytes, found.clock_skew_ns) == (6, 7, -4)
    assert found.is_partial


def test_an_xid_that_one_reader_heard_is_not_taken_back_by_one_that_came_later():
    heard: dict[str, Any] = {"index": 0, "uuid": "a", "xids": {"79": 1}, "xids_since_ns": 3}
    later = {"index": 0, "uuid": "a", "xids": {}, "xids_since_ns": 6, "ecc_uncorrected": 2}
    readings = [
        reading_of(NodeId("n"), {"at_ns": at_ns, "devices": [device]})
        for at_ns, device in ((5, heard), (7, later))
    ]
    [found] = joined(NodeId("n"), readings).devices or ()
    assert (dict(found.xids), found.xids_since_ns, found.ecc_uncorrected) == ({"79": 1}, 3, 2)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"at_ns": "x"}'])
def test_what_is_no_word_of_a_reader(data):
    assert read_told(data) is None


@pytest.mark.parametrize(
    ("at_s", "after_s", "before_s", "expected_s"),
    [(5, 4, 6, 0), (8, 4, 6, 0), (10, 4, 6, 4), (2, 4, 6, 0), (0, 4, 6, -4)],
)
def test_a_clock_is_wrong_only_by_what_is_certain(at_s, after_s, before_s, expected_s):
    times = [each * 10**9 for each in (at_s, after_s, before_s)]
    assert skew_ns(*times) == expected_s * 10**9

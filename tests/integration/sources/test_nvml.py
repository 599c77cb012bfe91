"""The real `pynvml` over a driver library of our own: what was written is what is read."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from moulin.domain.health import DeviceReading, NodeReading
from moulin.domain.ids import NodeId
from moulin.domain.wire import decode
from moulin.scheduler.health import HealthRow, is_news, observe_health, symptoms_of
from moulin.sources.wellbeing import MachineHealth, uncorrected_errors
from tests import nvml

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
READER = """
import json, sys
from moulin.domain.wire import encode
from moulin.sources.nvml import NvmlHealth
from moulin.sources.machine import read_gpus

source = NvmlHealth()
for line in sys.stdin:
    if line == "gpus\\n":
        print(json.dumps(encode(read_gpus())), flush=True)
    else:
        print(json.dumps(encode(source.read())), flush=True)
"""


@dataclass
class Driver:
    """One process that reads, over a driver that answers as the test writes."""

    script: Path
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Let the driver answer like this from now on."""
        new = self.script.with_suffix(".new")
        new.write_text(text, "utf-8")
        new.replace(self.script)

    def read(self, what: str = "") -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def devices(self) -> tuple[DeviceReading, ...] | None:
        found = self.read()
        if found is None:
            return None
        # When a reader began to count is another time in every run.
        return tuple(replace(decode(DeviceReading, each), xids_since_ns=0) for each in found)

    def reading(self) -> NodeReading:
        return NodeReading(node=NodeId("n"), at_ns=0, devices=self.devices())


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    return nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(library, tmp_path) -> Iterator[Driver]:
    script = tmp_path / "script"
    script.write_text(TWO, "utf-8")
    process = subprocess.Popen(
        [sys.executable, "-c", READER],
        env=nvml.environment(library, script),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield Driver(script, process)
    process.communicate(timeout=30)


TWO = """
device 0 GPU-a
ecc 0 5
remap 0 0 0
reasons 0 0
links 0 1 1 1
device 1 GPU-b
ecc 1 0
remap 1 0 0
reasons 1 4
"""


def told(driver: Driver, row: HealthRow) -> list[tuple[str, int, int]]:
    """Read once more, as the control plane does, and return what is wrong."""
    found = driver.reading()
    if not is_news(row, found):
        return []
    symptoms = symptoms_of(row.reading, found)
    observe_health(row, found, 1)
    return [(each.signal.value, each.device, each.value) for each in symptoms]


def test_what_the_driver_says_is_what_is_read(driver):
    first, second = driver.devices()
    assert first == DeviceReading(
        index=0,
        uuid="GPU-a",
        ecc_uncorrected=5,
        is_remap_pending=False,
        is_remap_failed=False,
        is_hot=False,
        is_braked=False,
        links_down=0,
    )
    assert (second.uuid, second.links_down, second.is_hot) == ("GPU-b", -1, False)
    assert [gpu["name"] for gpu in driver.read("gpus")] == ["Replayed", "Replayed"]


def test_xids_are_counted_once_each_and_a_missed_reading_misses_none(driver):
    row = HealthRow()
    assert told(driver, row) == []
    driver.say(TWO + "xid 1 79\nxid 1 13\n")
    driver.devices()  # a reading that nobody took over
    assert told(driver, row) == [("xid", 1, 79)]
    assert told(driver, row) == []
    driver.say(TWO + "xid 1 79\nxid 1 13\nxid 1 79\n")
    assert told(driver, row) == [("xid", 1, 79)]
    assert dict(driver.devices()[1].xids) == {"13": 1, "79": 2}


def test_errors_count_over_a_wrap_and_over_a_gap(driver):
    row = HealthRow()
    driver.say(TWO.replace("ecc 0 5", f"ecc 0 {2**64 - 1}"))
    assert told(driver, row) == []
    driver.say(TWO.replace("ecc 0 5", "ecc 0 2"))
    assert told(driver, row) == [("ecc_uncorrected", 0, 2)]
    driver.say(TWO.replace("ecc 0 5\n", "").replace("reasons 1 4", "reasons 1 64"))
    assert told(driver, row) == [("thermal", 1, 0)]
    driver.say(TWO)
    assert told(driver, row) == [("ecc_uncorrected", 0, 3)]


def test_under_mig_much_is_unknown_and_nothing_of_it_a_symptom(driver):
    driver.say("device 0 GPU-a\ndevice 1 GPU-b\n")
    first, _ = driver.devices()
    assert first == DeviceReading(index=0, uuid="GPU-a")
    assert told(driver, HealthRow()) == []


@pytest.mark.parametrize(
    ("before", "now", "symptoms"),
    [
        ("reasons 0 0", "reasons 0 64", [("thermal", 0, 0)]),
        ("reasons 0 0", "reasons 0 32", [("thermal", 0, 0)]),
        ("reasons 0 0", "reasons 0 128", [("power_brake", 0, 0)]),
        ("remap 0 0 0", "remap 0 1 0", [("row_remap_pending", 0, 0)]),
        ("remap 0 0 0", "remap 0 0 1", [("row_remap_failed", 0, 0)]),
        ("links 0 1 1 1", "links 0 1 0 0", [("nvlink_down", 0, 2)]),
        ("device 0 GPU-a\n", "", [("device_missing", 0, 0)]),
    ],
)
def test_what_goes_wrong_is_seen(driver, before, now, symptoms):
    row = HealthRow()
    assert told(driver, row) == []
    driver.say(TWO.replace(before, now))
    assert told(driver, row) == symptoms


def test_a_driver_that_is_taken_away_says_nothing_and_is_found_again(driver):
    row = HealthRow()
    assert told(driver, row) == []
    driver.say("gone\n")
    assert driver.devices() is None
    assert told(driver, row) == []
    driver.say(TWO)
    assert len(driver.devices()) == 2
    driver.say(TWO.replace("device 1 GPU-b", ""))
    assert told(driver, row) == [("device_missing", 1, 0)]


class Clock:
    def now_ns(self) -> int:
        return 7


def test_a_machine_is_read_whole(tmp_path):
    for controller, count in (("mc0", "2"), ("mc1", "3")):
        (tmp_path / controller).mkdir()
        (tmp_path / controller / "ue_count").write_text(f"{count}\n")
    found = MachineHealth(tmp_path, Clock(), edac=tmp_path)()
    assert (found.at_ns, found.memory_errors) == (7, 5)
    assert found.disk_free_bytes > 0
    assert uncorrected_errors(tmp_path / "none") == -1
    assert MachineHealth(tmp_path / "none", Clock(), edac=tmp_path)().disk_free_bytes == -1

"""How well the nodes of a real Slurm are: its own word, and what readers beside tasks see through NVML."""

import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from moulin.domain.health import NodeReading, Signal
from moulin.domain.ids import NodeId
from moulin.domain.told import read_told, reading_of
from moulin.domain.workload import Resources, TaskTemplate
from moulin.engines.slurm.commands import Commands
from moulin.engines.slurm.engine import SlurmEngine
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.slurm.transport import LocalTransport
from moulin.engines.slurm.wellbeing import LOOK
from moulin.scheduler.health import HealthRow, observe_health, symptoms_of
from tests import nvml
from tests.conformance.engine_bench import RealClock, SlurmBench, make_step, phase, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(not shutil.which("cc"), reason="needs cc")]
WELL = "device 0 GPU-a\ndevice 1 GPU-b\necc 3 7\ndevice 2 GPU-c\ndevice 3 GPU-d\n"


class Bench(SlurmBench):
    """An engine whose jobs find a driver library that replays what a test writes."""

    def renew(self) -> None:
        self.script = self.directory / "nvml"
        self.say(WELL)
        library = self.directory / "library"
        if not library.exists():
            library.mkdir()
            nvml.build(library)
        found = {"LD_LIBRARY_PATH": str(library), nvml.SCRIPT_VARIABLE: str(self.script)}
        self.replayed = found
        settings = SlurmSettings(directory=self.directory, machine_class="here", poll_s=0.2)
        driver = Commands(LocalTransport({**self.cluster.environment, **found}))
        self.engine = SlurmEngine(settings, driver, clock=RealClock())

    def say(self, text: str) -> None:
        new = self.script.with_suffix(".new")
        new.write_text(text, "ascii")
        new.replace(self.script)

    def reading(self, node: str) -> NodeReading:
        [found] = self.engine.health((NodeId(node),))
        return found


@pytest.fixture
def bench(tmp_path, slurm_cluster):
    made = Bench(tmp_path, slurm_cluster)
    yield made
    made.close()


def has_devices(bench: Bench, node: str) -> bool:
    return bench.reading(node).devices is not None


def test_a_reader_beside_a_task_sees_what_the_driver_says_of_its_devices(bench):
    assert bench.reading("node-1").devices is None
    task = TaskTemplate(command=("sleep", "60"))
    wanted = Resources(cpu_milli=1000, memory_bytes=2**28, accelerators=2)
    step = replace(make_step("s", task, nodes=("node-1",)), devices=(2, 3), resources=wanted)
    gang = [
        replace(
            make_step("g", task, rank=rank, nodes=("node-2", "node-3")),
            devices=(0, 1),
            resources=wanted,
        )
        for rank in range(2)
    ]
    for each in (step, *gang):
        bench.engine.start(each)
    for node in ("node-1", "node-2", "node-3"):
        wait_until(partial(has_devices, bench, node))
    row = HealthRow()
    observe_health(row, bench.reading("node-1"), 1)
    assert row.reading is not None
    # This Slurm names no devices to its tasks, so they are those of the plan.
    assert [(each.index, each.uuid) for each in row.reading.devices or ()] == [
        (2, "GPU-c"),
        (3, "GPU-d"),
    ]
    assert [each.ecc_uncorrected for each in row.reading.devices or ()][1] == 7
    assert row.reading.is_partial
    assert row.reading.memory_bytes > 2**28
    assert row.reading.clock_skew_ns == 0
    bench.say(f"{WELL}xid 3 79\nremap 2 0 1\n")
    wait_until(lambda: bool(symptoms_of(row.reading, bench.reading("node-1"))))
    wait_until(lambda: len(symptoms_of(row.reading, bench.reading("node-1"))) == 2)
    found = symptoms_of(row.reading, bench.reading("node-1"))
    assert [(each.signal, each.device, each.is_evidence) for each in found] == [
        (Signal.ROW_REMAP_FAILED, 2, True),
        (Signal.XID, 3, True),
    ]
    bench.say(WELL.replace("device 3 GPU-d\n", ""))
    wait_until(
        lambda: (
            Signal.DEVICE_MISSING
            in {each.signal for each in symptoms_of(row.reading, bench.reading("node-1"))}
        ),
    )
    for each in (step, *gang):
        bench.engine.stop(each.step, 0)
    wait_until(lambda: phase(bench, step.step) == "exited")
    # With the task its reader has gone, and nobody says anything of the devices.
    wait_until(lambda: bench.reading("node-1").devices is None)
    assert not symptoms_of(row.reading, bench.reading("node-1"))


def test_one_reader_on_a_node_is_enough_for_tasks_without_devices(bench):
    task = TaskTemplate(command=("sleep", "60"))
    steps = [make_step(f"s{index}", task, nodes=("node-3",)) for index in range(3)]
    for step in steps:
        bench.engine.start(step)
    wait_until(lambda: bench.reading("node-3").memory_bytes > 0)
    time.sleep(1)
    folder = bench.directory / "spool" / ".health" / "node-3"
    assert len([each for each in folder.iterdir() if each.name.endswith(".t0")]) == 1
    assert bench.reading("node-3").devices is None


def test_who_asks_for_a_node_hears_what_its_readers_say_now(bench):
    word = bench.directory / "spool" / ".health" / "node-1" / "wl.u0.g1.t0"
    word.parent.mkdir()
    for memory_bytes in (1, 2):
        word.write_text(f'{{"at_ns": {time.time_ns()}, "memory_bytes": {memory_bytes}}}')
        assert bench.reading("node-1").memory_bytes == memory_bytes


def test_only_what_slurm_calls_down_is_down(bench, slurm_cluster):
    slurm_cluster.run("scontrol", "update", "node=node-0", "state=drain", "reason=a loud fan")
    wait_until(lambda: bool(bench.engine.capacity()[0].closed_because))
    assert not symptoms_of(None, bench.reading("node-0"))
    with slurm_cluster.node_down("node-0", "no power"):
        wait_until(lambda: bool(symptoms_of(None, bench.reading("node-0"))))
        [found] = symptoms_of(None, bench.reading("node-0"))
        assert (found.signal, found.is_evidence) == (Signal.NODE_DOWN, True)
        assert found.words.startswith("Slurm says down: no power")
    slurm_cluster.run("scontrol", "update", "node=node-0", "state=resume")
    wait_until(lambda: not symptoms_of(None, bench.reading("node-0")))
    wait_until(lambda: bench.engine.capacity()[0].is_reachable)


def test_a_look_at_a_whole_node_is_a_step_like_any_other(bench):
    text = Path(LOOK).read_text("utf-8")
    task = TaskTemplate(command=("python3", "-c", text, "once"), env=bench.replayed)
    wanted = Resources(cpu_milli=1000, memory_bytes=2**28, accelerators=4)
    step = replace(
        make_step("look", task, nodes=("node-2",)), devices=(0, 1, 2, 3), resources=wanted
    )
    bench.engine.start(step)
    wait_until(lambda: phase(bench, step.step) == "exited")
    told = read_told(bench.engine.logs(step.step, 0, 1 << 16).data)
    assert told is not None
    devices = reading_of(NodeId("node-2"), told).devices or ()
    assert [each.uuid for each in devices] == ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]
    assert devices[3].ecc_uncorrected == 7
    bench.engine.forget(step.step)

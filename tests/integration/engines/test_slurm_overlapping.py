"""Two pools over one directory, whose partitions have nodes in common: apart, and of one mind about these."""

import shutil
from dataclasses import replace
from functools import partial

import pytest

from moulin.app.clock import SystemClock
from moulin.app.wiring.slurm import slurm_engine
from moulin.domain.factory import Pool
from moulin.domain.ids import NodeId
from moulin.domain.observation import TaskPhase
from moulin.domain.workload import Resources, TaskTemplate
from moulin.engines.slurm.engine import SlurmEngine
from moulin.scheduler.health import symptoms_of
from tests.conformance.engine_bench import make_step, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(not shutil.which("cc"), reason="needs cc")]


@pytest.fixture
def pools(tmp_path, driven_cluster):
    """The engines of `batch`, which has all nodes, and `short`, which has two of them."""
    made = {}
    for name in ("batch", "short"):
        settings = {
            "partition": name,
            "directory": str(tmp_path / "shared"),
            "conf": driven_cluster.environment["SLURM_CONF"],
            "poll_ms": "200",
        }
        pool = Pool(name=name, zone=name, engine="slurm", machine_class="h100", settings=settings)
        made[name] = slurm_engine(tmp_path / "data" / name, SystemClock(), pool)
    yield made
    for engine in made.values():
        for step in engine.steps():
            engine.stop(step, 0)
        wait_until(partial(is_empty, engine))
    for driver in driven_cluster.drivers.values():
        driver.heal()


def is_empty(engine: SlurmEngine) -> bool:
    return not engine.steps()


def step_on(pool: str, name: str, *command: str, generation: int = 1, devices=(), cpus: int = 8):
    task = TaskTemplate(command=command)
    step = make_step(name, task, nodes=(f"{pool}-node-0",), generation=generation)
    wanted = Resources(cpu_milli=cpus * 1000, memory_bytes=2**28, accelerators=len(devices))
    return replace(step, resources=wanted, devices=devices)


def is_in(engine: SlurmEngine, step, phase: TaskPhase) -> bool:
    return engine.observe([step.step])[0].phase is phase


def taken(engine: SlurmEngine, node: str) -> int:
    [found] = [each for each in engine.capacity() if each.node == node]
    return found.taken_cpu_milli


def test_what_one_runs_is_taken_in_the_other_and_none_of_its_steps(pools):
    step = step_on("batch", "x", "sleep", "60")
    pools["batch"].start(step)
    wait_until(partial(is_in, pools["batch"], step, TaskPhase.RUNNING))
    wait_until(lambda: taken(pools["short"], "short-node-0") == 8000)
    assert taken(pools["short"], "short-node-1") == 0
    assert taken(pools["batch"], "batch-node-0") == 0
    assert pools["batch"].steps() == (step.step,)
    assert pools["short"].steps() == ()
    assert pools["short"].changes() == ()


def test_what_goes_on_in_the_other_finds_its_checkpoint(pools):
    first = step_on("batch", "x", "sh", "-c", 'echo half > "$MOULIN_CHECKPOINT_DIR/state"')
    pools["batch"].start(first)
    wait_until(partial(is_in, pools["batch"], first, TaskPhase.EXITED))
    second = step_on(
        "short", "x", "sh", "-c", 'cat "$MOULIN_CHECKPOINT_DIR/state"', generation=2, cpus=1
    )
    pools["short"].start(second)
    wait_until(partial(is_in, pools["short"], second, TaskPhase.EXITED))
    assert pools["short"].logs(second.step, 0, 100).data == b"half\n"


def test_a_device_that_breaks_under_one_is_known_to_the_other(pools, driven_cluster):
    step = step_on("batch", "x", "sleep", "60", devices=(1,))
    pools["batch"].start(step)
    names = {"batch": NodeId("batch-node-0"), "short": NodeId("short-node-0")}
    found = {}

    def is_read(pool: str) -> bool:
        [found[pool]] = pools[pool].health((names[pool],))
        return found[pool].devices is not None

    for pool in names:
        wait_until(partial(is_read, pool))
    before = dict(found)

    def is_broken(pool: str) -> bool:
        return is_read(pool) and bool(symptoms_of(before[pool], found[pool]))

    driven_cluster.drivers["node-0"].xid(1)
    for pool in names:
        wait_until(partial(is_broken, pool))
    [own] = symptoms_of(before["batch"], found["batch"])
    [others] = symptoms_of(before["short"], found["short"])
    assert (own.uuid, own.steps) == (others.uuid, ())
    # Its numbers are those of the pool that chose: here it is the task's that told of it.
    assert others.steps == (step.step,)

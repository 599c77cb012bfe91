"""The Slurm engine through FirecREST's API, as a server of our own answers it before a real Slurm.

Not a live FirecREST: what it is not told (memory, GPUs, jobs of others) is taken from the pool's settings.
"""

from dataclasses import replace

import pytest

from moulin.app.clock import SystemClock
from moulin.app.wiring.slurm import slurm_engine
from moulin.domain.errors import EngineRefused, EngineUnavailable, InvalidSpec
from moulin.domain.factory import Pool, PoolMode
from moulin.domain.health import Quarantine
from moulin.domain.observation import Claim, TaskPhase
from moulin.domain.workload import Resources, TaskTemplate
from tests.conformance.engine_bench import make_step, wait_for
from tests.firecrest_server import SYSTEM, TOKEN, firecrest_before
from tests.integration.engines.delegated_bench import (
    DelegatedBench,
    obedient,
    places_of,
    wait_until_obedient,
)
from tests.integration.engines.test_slurm_arrays import all_ended, counted, elements

pytestmark = pytest.mark.slurm


@pytest.fixture
def address(slurm_cluster):
    with firecrest_before(slurm_cluster) as url:
        yield url


def pool_at(address, directory, **more):
    token = directory / "token"
    token.write_text(f"{TOKEN}\n")
    settings = {
        "firecrest": address,
        "firecrest_system": SYSTEM,
        "rest_token": str(token),
        "partition": "batch",
        "node_memory": "2GiB",
        "node_accelerators": "4",
        "directory": str(directory),
        "poll_ms": "200",
        **more,
    }
    return Pool(
        name="p",
        zone="z",
        engine="slurm",
        machine_class="H100",
        mode=PoolMode.DELEGATED,
        settings=settings,
    )


class FirecrestBench(DelegatedBench):
    """The engine over FirecREST's API."""

    def __init__(self, directory, address, **more):
        super().__init__(directory)
        self.pool = pool_at(address, directory, **more)
        self.renew()

    def renew(self):
        self.engine = slurm_engine(self.directory, SystemClock(), self.pool)
        self.places = places_of(self.engine)


@pytest.fixture
def bench(tmp_path, address):
    made = FirecrestBench(tmp_path, address)
    yield made
    made.close()


def test_places_have_what_the_operator_says_and_a_task_runs_once(bench):
    first = bench.engine.capacity()[0]
    assert (len(bench.places), first.cpu_milli) == (4, 8000)
    assert (first.memory_bytes, first.accelerators) == (2 << 30, 4)
    step = make_step("a", counted(bench.directory, "exit 7"), nodes=bench.places[:1])
    step = replace(step, resources=Resources(accelerators=2, accelerator_class="H100"))
    claim = bench.engine.start(step)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 7
    bench.renew()
    assert bench.engine.start(step) == claim
    assert bench.runs(step.step) == 1


def test_a_gang_has_its_ranks(bench):
    task = TaskTemplate(command=("sh", "-c", 'echo "$RANK of $WORLD_SIZE"; exit $RANK'))
    steps = [make_step("g", task, rank=rank, nodes=bench.places[:2]) for rank in range(2)]
    for step in steps:
        bench.engine.start(step)
    ends = all_ended(bench, steps, TaskPhase.EXITED)
    assert [end.exit_code for end in ends] == [0, 1]


def test_elements_are_submitted_one_by_one_and_stopped_alone(bench):
    steps = elements(3, counted(bench.directory, obedient(bench.directory)), nodes=bench.places)
    assert all(isinstance(said, Claim) for said in bench.engine.start_many(steps))
    wait_until_obedient(bench.directory, len(steps))
    all_ended(bench, steps, TaskPhase.RUNNING)
    bench.engine.stop(steps[1].step, 10)
    assert wait_for(bench, steps[1].step, TaskPhase.EXITED).exit_code == 9
    assert {seen.phase for seen in bench.engine.observe([steps[0].step, steps[2].step])} == {
        TaskPhase.RUNNING
    }


def test_a_submission_whose_number_was_lost_is_found(bench):
    step = make_step("a", counted(bench.directory, "sleep 1"), nodes=bench.places[:1])
    bench.engine.start(step)
    (bench.directory / "p" / "spool" / step.attempt / "job").unlink()
    bench.renew()
    bench.engine.start(step)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 0
    assert bench.runs(step.step) == 1


def test_what_slurm_never_takes_is_refused_in_its_words(tmp_path, address):
    bench = FirecrestBench(tmp_path, address, constraint="no-such-feature")
    step = make_step("a", counted(tmp_path), nodes=bench.places[:1])
    with pytest.raises(EngineRefused, match="Invalid feature specification"):
        bench.engine.start(step)


def test_a_token_that_is_not_known_and_nobody_there_are_no_refusals(tmp_path, address):
    pool = pool_at(address, tmp_path)
    (tmp_path / "token").write_text("another")
    with pytest.raises(EngineUnavailable, match="does not let us"):
        slurm_engine(tmp_path, SystemClock(), pool).capacity()
    gone = pool_at("http://127.0.0.1:1/v2", tmp_path)
    with pytest.raises(EngineUnavailable, match="gave no answer"):
        slurm_engine(tmp_path, SystemClock(), gone).capacity()


def test_what_firecrest_does_not_tell_has_to_be_said(tmp_path):
    pool = pool_at("http://127.0.0.1:1/v2", tmp_path, node_memory="", partition="")
    with pytest.raises(InvalidSpec, match="partition, node_memory"):
        slurm_engine(tmp_path, SystemClock(), pool)
    owned = replace(pool_at("http://127.0.0.1:1", tmp_path), mode=PoolMode.OWNED)
    with pytest.raises(InvalidSpec, match="for delegated pools"):
        slurm_engine(tmp_path, SystemClock(), owned)


def test_slurm_chooses_no_machine_in_quarantine(bench):
    machines = [node.node for node in bench.engine.capacity() if node.is_watched_only]
    bench.engine.avoid(dict.fromkeys(machines[:3], Quarantine(since_ns=1, words="a loud fan")))
    step = make_step("a", TaskTemplate(command=("sleep", "60")), nodes=bench.places[:1])
    bench.engine.start(step)
    assert wait_for(bench, step.step, TaskPhase.RUNNING).host == machines[3]

"""The Slurm engine through a real slurmrestd: the same behaviour, by another way."""

from dataclasses import replace
from pathlib import Path

import pytest

from moulin.app.clock import SystemClock
from moulin.app.wiring.slurm import slurm_engine
from moulin.domain.errors import EngineRefused, EngineUnavailable, InvalidSpec
from moulin.domain.factory import Pool, PoolMode
from moulin.domain.health import Quarantine
from moulin.domain.ids import NodeId
from moulin.domain.observation import Claim, TaskPhase
from moulin.domain.workload import Resources, TaskTemplate
from moulin.engines.slurm.engine import SlurmEngine
from moulin.engines.slurm.rest import Rest
from moulin.engines.slurm.rest_forms import FORMS, OLD
from moulin.engines.slurm.settings import SlurmSettings
from tests.conformance.engine_bench import (
    RealClock,
    make_step,
    phase,
    wait_for,
)
from tests.integration.engines.delegated_bench import (
    DelegatedBench,
    obedient,
    places_of,
    wait_until_obedient,
)
from tests.integration.engines.test_slurm_arrays import all_ended, counted, elements

pytestmark = pytest.mark.slurm


class RestBench(DelegatedBench):
    """The engine over slurmrestd; nothing else of Slurm is called."""

    def __init__(self, directory, cluster, **more):
        super().__init__(directory)
        self.cluster = cluster
        self.more = more
        self.renew()

    def renew(self):
        self.driver = Rest(
            self.cluster.url,
            user="root",
            token_file=str(self.cluster.token_file),
            folder=str(Path(self.cluster.plugins).parent) if self.cluster.plugins else "",
        )
        settings = SlurmSettings(
            directory=self.directory,
            machine_class="here",
            accelerator_class="H100",
            is_delegated=True,
            prefix="p-",
            partition="batch",  # from 23.11 to 25.11 slurmrestd does not tell which is the default
            poll_s=0.2,
            **self.more,
        )
        self.engine = SlurmEngine(settings, self.driver, clock=RealClock())
        self.places = places_of(self.engine)


@pytest.fixture
def bench(tmp_path, rest_cluster):
    made = RestBench(tmp_path, rest_cluster)
    yield made
    made.close()


def test_places_are_read_and_a_task_with_devices_runs_once(bench):
    first = bench.engine.capacity()[0]
    assert (len(bench.places), first.cpu_milli, first.accelerators) == (2, 8000, 4)
    step = make_step("a", counted(bench.directory, "exit 7"), nodes=bench.places[:1])
    step = replace(step, resources=Resources(accelerators=1, accelerator_class="H100"))
    claim = bench.engine.start(step)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 7
    bench.renew()
    assert bench.engine.start(step) == claim
    assert bench.runs(step.step) == 1


def test_elements_are_one_submission_and_one_is_stopped_alone(bench):
    task = counted(bench.directory, obedient(bench.directory))
    steps = [
        replace(each, resources=Resources(cpu_milli=8000, memory_bytes=64 << 20))
        for each in elements(3, task, nodes=bench.places)
    ]
    before = {job.array for job in bench.driver.jobs()} | {0}
    assert all(isinstance(said, Claim) for said in bench.engine.start_many(steps))
    assert len({job.array for job in bench.driver.jobs()} - before) == 1
    wait_for(bench, steps[0].step, TaskPhase.RUNNING)
    wait_for(bench, steps[1].step, TaskPhase.RUNNING)
    wait_until_obedient(bench.directory, 2)
    bench.engine.stop(steps[2].step, 5)  # it waits for a node
    wait_for(bench, steps[2].step, TaskPhase.ABSENT)
    bench.engine.stop(steps[0].step, 10)
    assert wait_for(bench, steps[0].step, TaskPhase.EXITED).exit_code == 9
    assert phase(bench, steps[1].step) is TaskPhase.RUNNING
    bench.engine.stop(steps[1].step, 10)
    all_ended(bench, steps[:2], TaskPhase.EXITED)
    assert [bench.runs(each.step) for each in steps] == [1, 1, 0]


def test_a_gang_has_its_ranks(bench):
    task = TaskTemplate(command=("sh", "-c", 'echo "$RANK of $WORLD_SIZE"; exit $RANK'))
    steps = [make_step("g", task, rank=rank, nodes=bench.places) for rank in range(2)]
    for step in steps:
        bench.engine.start(step)
    ends = all_ended(bench, steps, TaskPhase.EXITED)
    assert [end.exit_code for end in ends] == [0, 1]
    assert bench.engine.logs(steps[1].step, 0, 100).data == b"1 of 2\n"


def test_a_submission_whose_number_was_lost_is_found(bench):
    step = make_step("a", counted(bench.directory, "sleep 1"), nodes=bench.places[:1])
    bench.engine.start(step)
    (bench.directory / "spool" / step.attempt / "job").unlink()
    bench.renew()
    bench.engine.start(step)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 0
    assert bench.runs(step.step) == 1


def test_what_slurm_never_takes_is_refused_in_its_words(tmp_path, rest_cluster):
    bench = RestBench(tmp_path, rest_cluster, constraint="no-such-feature")
    step = make_step("a", counted(tmp_path), nodes=bench.places[:1])
    with pytest.raises(EngineRefused, match="Invalid feature specification"):
        bench.engine.start(step)


def test_what_has_no_limit_is_not_cut_by_a_default(bench, rest_cluster):
    update = ("scontrol", "update", "PartitionName=batch")
    rest_cluster.run(*update, "MaxTime=UNLIMITED", "DefaultTime=2")
    try:
        bench.renew()
        step = make_step("a", counted(bench.directory, "sleep 1000"), nodes=bench.places[:1])
        bench.engine.start(step)
        limit = rest_cluster.run("squeue", "-h", f"--name={step.attempt}", "-o", "%l")
        assert limit == "UNLIMITED"
    finally:
        rest_cluster.run("scontrol", "reconfigure")


def test_a_token_that_is_not_known_is_no_refusal(tmp_path, rest_cluster):
    token = tmp_path / "token"
    token.write_text("SLURM_JWT=no.such.token\n")
    driver = Rest(rest_cluster.url, user="root", token_file=str(token))
    with pytest.raises(EngineUnavailable):
        driver.jobs()


def test_nobody_there_is_unavailable(tmp_path):
    for url in ("http://127.0.0.1:1", f"unix:{tmp_path}/nothing"):
        driver = Rest(url, user="", token_file="")
        with pytest.raises(EngineUnavailable, match="gave no answer"):
            driver.nodes()


def test_a_pool_that_places_itself_is_refused(tmp_path):
    settings = {"rest": "http://127.0.0.1:1"}
    pool = Pool(name="p", zone="z", engine="slurm", machine_class="m", settings=settings)
    with pytest.raises(InvalidSpec, match="for delegated pools"):
        slurm_engine(tmp_path, SystemClock(), pool)
    delegated = replace(pool, mode=PoolMode.DELEGATED)
    assert isinstance(slurm_engine(tmp_path, SystemClock(), delegated), SlurmEngine)
    with pytest.raises(InvalidSpec, match="no address"):
        slurm_engine(tmp_path, SystemClock(), replace(delegated, settings={"rest": "ftp:x"}))


def test_slurm_chooses_no_machine_in_quarantine(bench):
    machines = [node.node for node in bench.engine.capacity() if node.is_watched_only]
    bench.engine.avoid({machines[0]: Quarantine(since_ns=1, words="a loud fan")})
    task = TaskTemplate(command=("sleep", "60"))
    steps = [make_step(name, task, nodes=bench.places[:1]) for name in ("a", "b")]
    for step in steps:
        bench.engine.start(step)
    hosts = {wait_for(bench, step.step, TaskPhase.RUNNING).host for step in steps}
    assert hosts == {machines[1]}


def test_what_waits_is_kept_away_too_and_may_get_time(bench, rest_cluster):
    rest_cluster.run("scontrol", "update", "PartitionName=batch", "State=DOWN")
    try:
        step = make_step("a", TaskTemplate(command=("sleep", "60")), nodes=bench.places[:1])
        bench.engine.start(step)
        [job] = [each for each in bench.driver.jobs() if each.name == step.attempt]
        machines = [node.node for node in bench.engine.capacity() if node.is_watched_only]
        bench.engine.avoid({machines[0]: Quarantine(since_ns=1, words="a loud fan")})
        bench.driver.extend(str(job.id), 77)
        [changed] = [each for each in bench.driver.jobs() if each.id == job.id]
        assert (changed.excluded_nodes, changed.time_limit_s) == ("r-0", 77 * 60)
        bench.engine.avoid({})
        [free] = [each for each in bench.driver.jobs() if each.id == job.id]
        assert free.excluded_nodes == ""
        bench.driver.cancel([str(job.id)])
        bench.driver.keep_away([str(job.id), "7777"], ["r-1"])  # they wait no more
        with pytest.raises(EngineRefused):
            bench.driver.extend(str(job.id), 78)
    finally:
        rest_cluster.run("scontrol", "update", "PartitionName=batch", "State=UP")


def test_a_partition_that_gives_whole_nodes_says_so_where_the_form_has_a_word_for_it(
    bench, rest_cluster
):
    def is_whole():
        [found] = [each for each in bench.driver.partitions() if each.name == "batch"]
        return found.is_exclusive

    assert not is_whole()
    rest_cluster.run("scontrol", "update", "PartitionName=batch", "OverSubscribe=EXCLUSIVE")
    try:
        assert is_whole() == (bench.driver._form != OLD)
    finally:
        rest_cluster.run("scontrol", "reconfigure")
        for word in ("OverSubscribe=NO", "Exclusive=NO"):
            rest_cluster.run("scontrol", "update", "PartitionName=batch", word)


def test_a_task_is_told_its_node_where_the_form_names_nodes(bench, rest_cluster):
    machine = NodeId("p-r-1")
    step = make_step("look", TaskTemplate(command=("sleep", "60")), nodes=(machine,))
    if not rest_cluster.plugins:
        with pytest.raises(EngineRefused, match="no nodes by name"):
            bench.engine.start(step)
        return
    bench.engine.start(step)
    assert wait_for(bench, step.step, TaskPhase.RUNNING).host == machine
    [job] = [each for each in bench.driver.jobs() if each.name == step.attempt]
    bench.driver.keep_away([str(job.id)], ["r-1"])  # it runs, and goes on
    assert phase(bench, step.step) is TaskPhase.RUNNING


def test_a_form_that_is_spoken_no_more_is_asked_for_again(bench):
    form = bench.driver._form
    assert form in FORMS
    bench.driver._form = "v0.0.1"
    with pytest.raises(EngineUnavailable, match="another form by now"):
        bench.driver.jobs()
    bench.driver.jobs()
    assert bench.driver._form == form


def test_of_an_array_what_waits_is_kept_away_and_what_runs_goes_on(bench):
    task = TaskTemplate(command=("sleep", "60"))
    steps = [
        replace(each, resources=Resources(cpu_milli=8000, memory_bytes=64 << 20))
        for each in elements(4, task, nodes=bench.places)
    ]
    assert all(isinstance(said, Claim) for said in bench.engine.start_many(steps))
    for step in steps[:2]:
        wait_for(bench, step.step, TaskPhase.RUNNING)
    machines = [node.node for node in bench.engine.capacity() if node.is_watched_only]
    bench.engine.avoid({machines[0]: Quarantine(since_ns=1, words="a loud fan")})
    [waiting] = [job for job in bench.driver.jobs() if job.waiting and not job.has_ended]
    assert waiting.excluded_nodes == "r-0"
    assert [phase(bench, each.step) for each in steps[:2]] == [TaskPhase.RUNNING] * 2
    bench.engine.avoid({})
    [waiting] = [job for job in bench.driver.jobs() if job.waiting and not job.has_ended]
    assert waiting.excluded_nodes == ""

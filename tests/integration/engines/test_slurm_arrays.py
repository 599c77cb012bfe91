"""Elements of an array on a real Slurm: few submissions, and still each of them on its own."""

import contextlib
from collections import Counter
from dataclasses import replace

import pytest

from moulin.domain.errors import EngineRefused, EngineUnavailable, NotFound
from moulin.domain.ids import attempt_id, step_id
from moulin.domain.observation import Claim, TaskPhase
from moulin.domain.workload import Resources, TaskTemplate
from moulin.engines.slurm.commands import Commands
from moulin.engines.slurm.engine import SlurmEngine
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.slurm.transport import LocalTransport
from tests.conformance.engine_bench import (
    RealClock,
    SlurmBench,
    make_step,
    phase,
    wait_for,
    wait_until,
)
from tests.integration.engines.delegated_bench import places_of

pytestmark = pytest.mark.slurm


class Counting(LocalTransport):
    """Slurm's commands, each counted by its name."""

    calls: Counter[str]

    def run(self, command, *, stdin=b""):
        self.calls[command[0]] += 1
        return super().run(command, stdin=stdin)


class ArrayBench(SlurmBench):
    """The engine with its calls counted."""

    def renew(self):
        transport = Counting(self.cluster.environment)
        self.calls = transport.calls = Counter()
        settings = SlurmSettings(
            directory=self.directory,
            machine_class="here",
            is_delegated=self.is_delegated,
            prefix="node-" if self.is_delegated else "",
            poll_s=0.2,
        )
        self.engine = SlurmEngine(settings, Commands(transport), clock=RealClock())


@pytest.fixture
def bench(tmp_path, slurm_cluster):
    made = ArrayBench(tmp_path, slurm_cluster)
    yield made
    made.close()


def elements(count, task, *, nodes=("node-0", "node-1")):
    """Return elements of one array, dealt out to nodes."""
    first = make_step("arr", task, memory_bytes=64 << 20)
    found = []
    for unit in range(count):
        attempt = attempt_id(first.workload, unit, 1)
        found.append(
            replace(
                first,
                step=step_id(attempt, 0),
                attempt=attempt,
                unit=unit,
                nodes=(nodes[unit % len(nodes)],),
                env={"MOULIN_ARRAY_INDEX": str(unit), "SLURM_ARRAY_TASK_ID": str(unit)},
            )
        )
    return found


def script(words: str) -> TaskTemplate:
    return TaskTemplate(command=("sh", "-c", words))


def all_ended(bench, steps, *phases):
    wait_until(
        lambda: all(
            seen.phase in phases for seen in bench.engine.observe([each.step for each in steps])
        ),
        bench.pause,
    )
    return bench.engine.observe([each.step for each in steps])


@contextlib.contextmanager
def waiting(cluster):
    """Have Slurm take jobs and start none until the block ends."""
    cluster.run("scontrol", "update", "PartitionName=batch", "State=DOWN")
    try:
        yield
    finally:
        cluster.run("scontrol", "update", "PartitionName=batch", "State=UP")


def counted(directory, words="exit 0"):
    """Return a program whose runs are counted in one file each, as `EffectsInFiles` does."""
    return script(f'echo ran >> {directory}/effects/"$MOULIN_STEP_ID"; {words}')


def test_elements_on_the_same_node_are_one_submission_and_end_each_on_its_own(bench):
    steps = elements(12, counted(bench.directory, 'echo "$SLURM_ARRAY_TASK_ID"; exit $MOULIN_UNIT'))
    answers = bench.engine.start_many(steps)
    assert all(isinstance(answer, Claim) for answer in answers)
    assert bench.calls["sbatch"] == 2
    ends = all_ended(bench, steps, TaskPhase.EXITED)
    assert [end.exit_code for end in ends] == list(range(12))
    assert [bench.runs(each.step) for each in steps] == [1] * 12
    assert bench.engine.logs(steps[7].step, 0, 100).data == b"7\n"
    assert bench.engine.start_many(steps) == answers
    assert bench.calls["sbatch"] == 2


def test_a_delegated_pool_has_one_submission_for_all(tmp_path, slurm_cluster):
    bench = ArrayBench(tmp_path, slurm_cluster, is_delegated=True)
    places = places_of(bench.engine)
    steps = elements(9, counted(tmp_path, "hostname"), nodes=places)
    bench.engine.start_many(steps)
    assert bench.calls["sbatch"] == 1
    assert {end.exit_code for end in all_ended(bench, steps, TaskPhase.EXITED)} == {0}
    assert [bench.runs(each.step) for each in steps] == [1] * 9


def test_one_element_is_stopped_alone_running_or_waiting(bench, slurm_cluster):
    go = bench.directory / "go"
    words = f"while [ ! -e {go} ]; do sleep 0.1; done"
    steps = [
        replace(each, resources=Resources(cpu_milli=4000, memory_bytes=64 << 20))
        for each in elements(4, counted(bench.directory, words), nodes=("node-1",))
    ]
    bench.engine.start_many(steps)
    assert bench.calls["sbatch"] == 1
    wait_for(bench, steps[0].step, TaskPhase.RUNNING)
    wait_for(bench, steps[1].step, TaskPhase.RUNNING)
    assert phase(bench, steps[3].step) is TaskPhase.STARTING  # two fit, two wait
    bench.engine.stop(steps[3].step, 5)
    wait_for(bench, steps[3].step, TaskPhase.ABSENT)
    bench.engine.stop(steps[0].step, 5)
    assert wait_for(bench, steps[0].step, TaskPhase.EXITED).exit_code == 143
    wait_for(bench, steps[2].step, TaskPhase.RUNNING)
    assert phase(bench, steps[1].step) is TaskPhase.RUNNING
    go.touch()
    ends = all_ended(bench, steps[1:3], TaskPhase.EXITED)
    assert [end.exit_code for end in ends] == [0, 0]
    assert [bench.runs(each.step) for each in steps] == [1, 1, 1, 0]
    slurm_cluster.wait_for(lambda: not slurm_cluster.run("squeue", "-h"), "an element is queued")


def test_an_array_whose_number_was_lost_is_found_by_its_name(bench):
    steps = elements(6, counted(bench.directory, "sleep 3"), nodes=("node-0",))
    bench.engine.start_many(steps)
    numbers = sorted((bench.directory / "spool" / ".arrays").glob("*/job"))
    assert len(numbers) == 1
    numbers[0].unlink()
    bench.renew()
    assert {seen.phase for seen in bench.engine.observe([each.step for each in steps])} <= {
        *(TaskPhase.UNREACHABLE, TaskPhase.RUNNING, TaskPhase.STARTING)
    }
    answers = bench.engine.start_many(steps)
    assert all(isinstance(answer, Claim) for answer in answers)
    assert bench.calls["sbatch"] == 0
    all_ended(bench, steps, TaskPhase.EXITED)
    assert [bench.runs(each.step) for each in steps] == [1] * 6


def test_an_array_that_slurm_never_saw_is_submitted_after_a_crash(bench, monkeypatch):
    steps = elements(4, counted(bench.directory), nodes=("node-0",))
    submit = Commands.submit

    def lost(self, job):
        raise EngineUnavailable("the control plane died here")

    monkeypatch.setattr(Commands, "submit", lost)
    assert {type(answer) for answer in bench.engine.start_many(steps)} == {EngineUnavailable}
    monkeypatch.setattr(Commands, "submit", submit)
    bench.renew()
    assert [bench.runs(each.step) for each in steps] == [0] * 4
    bench.engine.stop(steps[2].step, 0)
    wait_for(bench, steps[2].step, TaskPhase.ABSENT)
    answers = bench.engine.start_many(steps)
    assert isinstance(answers[2], EngineRefused)
    all_ended(bench, (steps[0], steps[1], steps[3]), TaskPhase.EXITED)
    assert [bench.runs(each.step) for each in steps] == [1, 1, 0, 1]


def test_where_slurm_takes_no_array_its_elements_are_submitted_alone(bench, monkeypatch):
    steps = elements(3, counted(bench.directory), nodes=("node-0",))
    submit = Commands.submit

    def no_arrays(self, job):
        if job.array_size:
            raise EngineRefused("Slurm refuses the job: too many at once")
        return submit(self, job)

    monkeypatch.setattr(Commands, "submit", no_arrays)
    answers = bench.engine.start_many(steps)
    assert [type(answer) for answer in answers] == [Claim, EngineUnavailable, EngineUnavailable]
    assert all(isinstance(answer, Claim) for answer in bench.engine.start_many(steps))
    all_ended(bench, steps, TaskPhase.EXITED)
    assert [bench.runs(each.step) for each in steps] == [1] * 3


def test_what_slurm_refuses_of_one_it_refuses_of_all(tmp_path, slurm_cluster):
    bench = SlurmBench(tmp_path, slurm_cluster, constraint="no-such-feature")
    steps = elements(3, counted(tmp_path), nodes=("node-0",))
    answers = bench.engine.start_many(steps)
    assert all("Invalid feature" in str(answer) for answer in answers)
    assert {type(answer) for answer in answers} == {EngineRefused}
    bench.renew()
    assert {phase(bench, each.step) for each in steps} == {TaskPhase.ABSENT}


def test_an_array_is_forgotten_with_its_last_element(bench):
    steps = elements(3, counted(bench.directory), nodes=("node-0",))
    bench.engine.start_many(steps)
    all_ended(bench, steps, TaskPhase.EXITED)
    arrays = bench.directory / "spool" / ".arrays"
    for each in steps[:2]:
        bench.engine.forget(each.step)
    assert len(list(arrays.iterdir())) == 1
    bench.renew()
    bench.engine.forget(steps[2].step)
    assert list(arrays.iterdir()) == []


def test_elements_that_wait_have_no_directory_and_are_adopted(bench, slurm_cluster):
    words = f'umask; stat -c %a "$MOULIN_STEP_DIR" {bench.directory}/spool/"$MOULIN_ATTEMPT_ID"'
    steps = elements(6, counted(bench.directory, words), nodes=("node-0",))
    names = [each.step for each in steps]
    spool = bench.directory / "spool"
    with waiting(slurm_cluster):
        answers = bench.engine.start_many(steps)
        assert not list(spool.glob("[!.]*"))
        bench.renew()
        assert list(bench.engine.steps()) == sorted(names)
        assert {seen.phase for seen in bench.engine.changes()} == {TaskPhase.STARTING}
        assert bench.engine.start_many(steps) == answers
        assert bench.engine.logs(names[0], 0, 100).data == b""
        bench.engine.stop(names[1], 0)
        wait_for(bench, names[1], TaskPhase.ABSENT)
        with pytest.raises(NotFound):
            bench.engine.logs(names[1], 0, 100)
        array = next((spool / ".arrays").glob("*/job")).read_text().strip()
        slurm_cluster.run("scancel", f"{array}_2")
        wait_for(bench, names[2], TaskPhase.GONE)
        bench.renew()
        assert list(bench.engine.steps()) == sorted([names[0], *names[3:]])
    run = [steps[0], *steps[3:]]
    assert {end.exit_code for end in all_ended(bench, run, TaskPhase.EXITED)} == {0}
    umask, *modes = bench.engine.logs(names[4], 0, 100).data.split()
    assert umask != b"0077"
    assert modes == [b"700", b"700"]
    assert [bench.runs(name) for name in names] == [1, 0, 0, 1, 1, 1]
    for name in names:
        bench.engine.forget(name)
    assert not list(spool.glob("[!.]*"))
    assert not list((spool / ".arrays").iterdir())


def test_an_element_never_starts_with_half_of_what_it_needs(bench, slurm_cluster):
    steps = elements(2, counted(bench.directory), nodes=("node-0",))
    with waiting(slurm_cluster):
        bench.engine.start_many(steps)
        specs = next((bench.directory / "spool" / ".arrays").glob("*/specs"))
        specs.write_bytes(specs.read_bytes()[:-1])
    all_ended(bench, steps[:1], TaskPhase.EXITED)
    assert all_ended(bench, steps[1:], TaskPhase.GONE)[0].phase is TaskPhase.GONE
    assert [bench.runs(each.step) for each in steps] == [1, 0]


def test_a_forgotten_element_stays_forgotten(bench):
    steps = elements(3, counted(bench.directory), nodes=("node-0",))
    bench.engine.start_many(steps)
    all_ended(bench, steps, TaskPhase.EXITED)
    bench.engine.forget(steps[1].step)
    bench.renew()
    assert phase(bench, steps[1].step) is TaskPhase.ABSENT
    assert {seen.step for seen in bench.engine.changes()} == {steps[0].step, steps[2].step}


def test_many_stops_are_told_in_few_commands(bench):
    steps = elements(16, counted(bench.directory, "exec sleep 1000"))
    bench.engine.start_many(steps)
    all_ended(bench, steps, TaskPhase.RUNNING)
    bench.calls.clear()
    for each in steps:
        bench.engine.stop(each.step, 5)
    ends = all_ended(bench, steps, TaskPhase.EXITED)
    assert {end.exit_code for end in ends} == {143}
    assert bench.calls["scancel"] <= 4


class Losing(Commands):
    """Slurm takes what is submitted, and its answer is lost."""

    def submit(self, job):
        super().submit(job)
        raise EngineUnavailable("no answer in 20 s")


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("is_renewed", [False, True])
def test_what_was_stopped_before_slurm_s_answer_came_is_found_and_cancelled(
    bench, slurm_cluster, count, is_renewed
):
    steps = elements(count, counted(bench.directory), nodes=("node-0",))
    settings = SlurmSettings(directory=bench.directory, machine_class="here", poll_s=0.2)
    driver = Losing(LocalTransport(slurm_cluster.environment))
    bench.engine = SlurmEngine(settings, driver, clock=RealClock())

    def listed():
        found = slurm_cluster.run("squeue", "-h", "-r", "--states=PD", "-o", "%k").splitlines()
        return [each for each in found if any(step.attempt in each for step in steps)]

    with waiting(slurm_cluster):
        answers = bench.engine.start_many(steps)
        assert all(isinstance(answer, EngineUnavailable) for answer in answers)
        assert len(listed()) == count
        for each in steps:
            bench.engine.stop(each.step, 0)
        if is_renewed:
            bench.renew()
        wait_until(lambda: not listed(), lambda: bench.engine.changes() and bench.pause())
        assert {seen.phase for seen in bench.engine.observe([s.step for s in steps])} == {
            TaskPhase.ABSENT
        }
    assert [bench.runs(each.step) for each in steps] == [0] * count


def test_of_an_array_whose_number_was_lost_only_what_was_stopped_is_cancelled(bench, slurm_cluster):
    steps = elements(3, counted(bench.directory), nodes=("node-0",))
    settings = SlurmSettings(directory=bench.directory, machine_class="here", poll_s=0.2)
    driver = Losing(LocalTransport(slurm_cluster.environment))
    bench.engine = SlurmEngine(settings, driver, clock=RealClock())
    with waiting(slurm_cluster):
        bench.engine.start_many(steps)
        bench.engine.stop(steps[1].step, 0)

        def left():
            listed = slurm_cluster.run("squeue", "-h", "-r", "--states=PD", "-o", "%K %k")
            return sorted(
                line.split()[0] for line in listed.splitlines() if steps[0].attempt in line
            )

        wait_until(lambda: left() == ["0", "2"], lambda: bench.engine.changes() and bench.pause())
    all_ended(bench, [steps[0], steps[2]], TaskPhase.EXITED)

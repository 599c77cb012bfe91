"""Ten thousand tasks are watched in a question or two: a scripted Slurm counts what it is asked."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from moulin.domain.ids import StepId
from moulin.domain.observation import Claim, TaskPhase
from moulin.domain.workload import TaskTemplate
from moulin.engines.slurm import watched
from moulin.engines.slurm.engine import SlurmEngine
from moulin.engines.slurm.formats import SlurmJob, SlurmNode, SlurmPartition
from moulin.engines.slurm.readings import Readings
from moulin.engines.slurm.settings import SlurmSettings
from tests.conformance.engine_bench import RealClock, make_step, wait_until
from tests.integration.engines.test_slurm_arrays import elements

TASKS = 10_000


class ScriptedSlurm:
    """A driver that lists the arrays it was given in one state, and counts its calls."""

    def __init__(self):
        self.calls = []
        self.arrays = []
        self.state = "PENDING"
        self.reason = "Priority"

    def jobs(self):
        self.calls.append("jobs")
        if self.state == "PENDING":
            return tuple(
                SlurmJob(
                    id=n,
                    name=name,
                    state="PENDING",
                    array=n,
                    waiting=f"0-{size - 1}",
                    reason_word=self.reason,
                )
                for n, size, name in self.arrays
            )
        return tuple(
            SlurmJob(id=n + k, name=name, state=self.state, array=n, element=k, nodes="n1")
            for n, size, name in self.arrays
            for k in range(size)
            if self.state != "DROPPED"
        )

    def nodes(self):
        self.calls.append("nodes")
        return (SlurmNode(name="n1", cpus=TASKS, memory_bytes=1 << 50, partitions=("p",)),)

    def partitions(self):
        return (SlurmPartition(name="p", is_default=True),)

    def array_size_max(self):
        return 1000

    def submit(self, job):
        self.calls.append("submit")
        self.arrays.append((100_000 * (len(self.arrays) + 1), job.array_size, job.name))
        return self.arrays[-1][0]

    def find(self, name):
        self.calls.append("find")
        return ()

    def cancel(self, jobs):
        self.calls.append("cancel")

    def ring(self, jobs, *, is_gang):
        self.calls.append("ring")

    def recall(self, jobs):
        self.calls.append("recall")
        return {each: SlurmJob(id=1, name="", state="COMPLETED") for each in jobs}


@pytest.fixture
def slurm():
    return ScriptedSlurm()


@pytest.fixture
def quick(tmp_path):
    """Return a directory in memory where there is one: these are tens of thousands of files."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def engine_over(slurm, directory, poll_s, readings=None):
    settings = SlurmSettings(directory=directory, poll_s=poll_s)
    return SlurmEngine(settings, slurm, clock=RealClock(), readings=readings)


def test_ten_thousand_tasks_take_two_questions_a_cycle(quick, slurm, monkeypatch):
    monkeypatch.setattr(watched, "HURRY_S", 0.0)
    engine = engine_over(slurm, quick, 60.0)  # no cycle here is slower than what is believed
    engine.capacity()
    engine.changes()
    steps = elements(TASKS, TaskTemplate(command=("true",)), nodes=("n1",))
    left = steps
    while left:  # what takes longer than a cycle may is left to the next
        answers = engine.start_many(left)
        left = [s for s, said in zip(left, answers, strict=True) if not isinstance(said, Claim)]
    assert slurm.calls.count("submit") == TASKS // 1000
    slurm.calls.clear()
    found = engine.standings([step.step for step in steps])
    assert len({each.job for each in found.values()}) == TASKS
    assert {each.word for each in found.values()} == {"None"}  # nobody has asked since
    assert slurm.calls == []
    slurm.state = "RUNNING"
    renewed = engine_over(slurm, quick, 60.0)  # a control plane that takes over knows nothing
    renewed.capacity()
    for _ in range(2):
        slurm.calls.clear()
        renewed.changes()
        seen = renewed.observe([step.step for step in steps])
        renewed.capacity()
        assert {each.phase for each in seen} == {TaskPhase.STARTING}
        assert len(seen) == TASKS
        assert len(slurm.calls) <= 2, slurm.calls


def test_ten_thousand_tasks_of_five_pools_take_no_more_questions_than_those_of_one(
    quick, slurm, monkeypatch
):
    monkeypatch.setattr(watched, "HURRY_S", 0.0)
    shared = Readings(slurm)
    engines = [engine_over(slurm, quick / str(index), 60.0, shared) for index in range(5)]
    each = TASKS // len(engines)
    begun = []
    for engine in engines:
        engine.capacity()
        engine.changes()
        steps = elements(each, TaskTemplate(command=("true",)), nodes=("n1",))
        left = steps
        while left:
            answers = engine.start_many(left)
            left = [s for s, said in zip(left, answers, strict=True) if not isinstance(said, Claim)]
        begun.append([step.step for step in steps])
    slurm.state = "RUNNING"
    shared = Readings(slurm)
    engines = [engine_over(slurm, quick / str(index), 60.0, shared) for index in range(5)]
    for _ in range(2):
        slurm.calls.clear()
        for engine, names in zip(engines, begun, strict=True):
            engine.changes()
            seen = engine.observe(names)
            engine.capacity()
            assert {each.phase for each in seen} == {TaskPhase.STARTING}
        assert len(slurm.calls) <= 2, slurm.calls


def test_a_waiting_array_is_known_element_by_element_from_one_reading(tmp_path, slurm):
    engine = engine_over(slurm, tmp_path, 0.01)
    engine.capacity()
    steps = elements(200, TaskTemplate(command=("true",)), nodes=("n1",))
    engine.start_many(steps)
    names = [step.step for step in steps]
    slurm.reason = "Licenses"

    def words():
        engine.changes()
        return {each.word for each in engine.standings(names).values()}

    wait_until(lambda: words() == {"Licenses"})
    slurm.state = "RUNNING"
    wait_until(lambda: words() == {""})
    assert engine.standings(names)[names[7]].job == "100000_7"


def test_jobs_that_slurm_dropped_are_asked_after_at_once(tmp_path, slurm):
    engine = engine_over(slurm, tmp_path, 0.01)
    engine.capacity()
    steps = elements(200, TaskTemplate(command=("true",)), nodes=("n1",))
    engine.start_many(steps)
    slurm.state = "RUNNING"
    names = [step.step for step in steps]
    wait_until(lambda: {each.phase for each in engine.observe(names)} == {TaskPhase.STARTING})
    slurm.calls.clear()
    slurm.state = "DROPPED"
    gone: set[StepId] = set()

    def all_told():
        gone.update(each.step for each in engine.changes() if each.phase is TaskPhase.GONE)
        return gone == set(names)

    wait_until(all_told)
    assert slurm.calls.count("recall") <= 8  # a try each time the records are still awaited


def test_an_engine_that_is_only_made_takes_nothing_away(tmp_path, slurm):
    done = []
    settings = SlurmSettings(directory=tmp_path, poll_s=60.0)
    engine = SlurmEngine(settings, slurm, clock=RealClock(), before=lambda: done.append(1))
    assert (done, slurm.calls) == ([], [])
    for _ in range(2):
        engine.changes()
        assert done == [1]


def test_replicas_and_single_jobs_are_never_joined(tmp_path, slurm):
    engine = engine_over(slurm, tmp_path, 1.0)
    engine.capacity()
    first = make_step("a", TaskTemplate(command=("true",)), nodes=("n1",))
    others = [replace(make_step(n, first.task, nodes=("n1",)), env={}) for n in ("b", "c")]
    assert all(isinstance(said, Claim) for said in engine.start_many([first, *others]))
    assert [size for _, size, _ in slurm.arrays] == [0, 0, 0]

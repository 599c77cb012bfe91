"""One suite for every engine: what the control plane may rely on, judged by effects."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from moulin.domain.errors import EngineRefused, InUse, NotFound
from moulin.domain.ids import StepId
from moulin.domain.observation import TaskPhase
from moulin.engines.local.cgroup import find_cgroup_base
from moulin.ports.engine import Engine, Forgets, ListsSteps
from tests.conformance.engine_bench import (
    ENDED,
    Bench,
    ImageBench,
    LocalBench,
    RayBench,
    SimulatedBench,
    SlurmBench,
    make_step,
    phase,
    wait_for,
    wait_until,
)
from tests.containers import CONTAINER_TOOLS

ENGINES = (
    "local",
    "local-without-cgroup",
    *CONTAINER_TOOLS,
    "simulated",
    pytest.param("slurm", marks=pytest.mark.slurm),
    pytest.param("ray", marks=pytest.mark.ray),
)


@pytest.fixture(params=ENGINES)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "simulated":
        made: LocalBench | RayBench | SimulatedBench | SlurmBench = SimulatedBench()
    elif request.param in CONTAINER_TOOLS:
        containers = request.getfixturevalue(request.param)
        made = ImageBench(tmp_path, find_cgroup_base(), containers=containers)
    elif request.param == "slurm":
        made = SlurmBench(tmp_path, request.getfixturevalue("slurm_cluster"))
    elif request.param == "ray":
        made = RayBench(tmp_path, request.getfixturevalue("ray_cluster"))
    else:
        cgroup = find_cgroup_base() if request.param == "local" else None
        made = LocalBench(tmp_path, cgroup)
    yield made
    made.close()


def wait_for_effect(bench: Bench, step: StepId) -> None:
    wait_until(lambda: bench.runs(step) > 0, bench.pause)


@pytest.mark.parametrize("exit_code", [0, 3, 255])
def test_a_program_ends_with_its_own_status(bench, exit_code):
    step = make_step("a", bench.program(exit_code=exit_code))
    bench.engine.start(step)
    seen = wait_for(bench, step.step, TaskPhase.EXITED)
    assert seen.exit_code == exit_code
    assert bench.runs(step.step) == 1


def test_a_repeated_start_returns_the_same_claim_and_runs_nothing_twice(bench):
    step = make_step("a", bench.program(seconds=0.3))
    claims = {bench.engine.start(step) for _ in range(3)}
    wait_for(bench, step.step, TaskPhase.EXITED)
    claims.add(bench.engine.start(step))
    assert len(claims) == 1
    assert bench.runs(step.step) == 1


def test_a_fresh_instance_adopts_what_an_earlier_one_started(bench):
    step = make_step("a", bench.program(seconds=0.5, exit_code=7))
    claim = bench.engine.start(step)
    bench.renew()
    assert bench.engine.start(step) == claim
    assert bench.engine.observe([step.step])[0].claim == claim
    bench.renew()
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 7
    assert bench.runs(step.step) == 1


def test_a_stop_ends_a_polite_program_by_its_signal(bench):
    step = make_step("a", bench.program(seconds=1000))
    bench.engine.start(step)
    wait_for_effect(bench, step.step)
    bench.engine.stop(step.step, 30)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 128 + 15


def test_a_stop_forces_a_program_that_does_not_listen(bench):
    step = make_step("a", bench.program(seconds=1000, ignores_term=True))
    bench.engine.start(step)
    wait_for_effect(bench, step.step)
    bench.engine.stop(step.step, 1)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 128 + 9


def test_stopping_an_ended_step_changes_nothing(bench):
    step = make_step("a", bench.program(exit_code=5))
    bench.engine.start(step)
    ended = wait_for(bench, step.step, TaskPhase.EXITED)
    bench.engine.stop(step.step, 0)
    again = bench.engine.observe([step.step])[0]
    assert (again.exit_code, again.ended_at_ns) == (5, ended.ended_at_ns)


def test_a_start_after_a_stop_is_refused_and_runs_nothing(bench):
    step = make_step("a", bench.program())
    bench.engine.stop(step.step, 0)
    bench.engine.stop(step.step, 0)
    for _ in range(2):
        with pytest.raises(EngineRefused):
            bench.engine.start(step)
        assert phase(bench, step.step) is TaskPhase.ABSENT
        bench.renew()
    assert bench.runs(step.step) == 0


def test_a_step_nobody_started_is_absent_beside_one_that_runs(bench):
    running = make_step("a", bench.program(seconds=1000))
    bench.engine.start(running)
    wait_for(bench, running.step, TaskPhase.RUNNING)
    unknown = make_step("b", bench.program()).step
    seen = bench.engine.observe([unknown, running.step, StepId("no/step"), running.step])
    assert [found.phase for found in seen] == [
        TaskPhase.ABSENT,
        TaskPhase.RUNNING,
        TaskPhase.ABSENT,
        TaskPhase.RUNNING,
    ]
    assert [found.step for found in seen] == [unknown, running.step, "no/step", running.step]
    bench.engine.stop(running.step, 0)


def test_a_node_of_another_engine_is_refused(bench):
    step = make_step("a", bench.program(), nodes=("elsewhere",))
    with pytest.raises(EngineRefused):
        bench.engine.start(step)
    assert phase(bench, step.step) is TaskPhase.ABSENT


def test_capacity_keeps_its_order(bench):
    first = [node.node for node in bench.engine.capacity()]
    bench.renew()
    assert [node.node for node in bench.engine.capacity()] == first


def test_steps_lists_what_is_owned_until_it_ends(bench):
    steps = [make_step(name, bench.program(seconds=1000)) for name in "ba"]
    for step in steps:
        bench.engine.start(step)
    bench.renew()
    owner = bench.engine
    assert isinstance(owner, ListsSteps)
    assert owner.steps() == (steps[1].step, steps[0].step)
    for step in steps:
        bench.engine.stop(step.step, 0)
        wait_for(bench, step.step, *ENDED)  # ABSENT where it was still queued
    assert owner.steps() == ()


def forgetful(bench) -> Forgets:
    owner = bench.engine
    assert isinstance(owner, Forgets)
    return owner


def test_forgetting_waits_for_the_end(bench):
    step = make_step("a", bench.program(seconds=1000))
    bench.engine.start(step)
    with pytest.raises(InUse):
        forgetful(bench).forget(step.step)
    wait_for(bench, step.step, TaskPhase.RUNNING)
    bench.engine.stop(step.step, 0)
    wait_for(bench, step.step, TaskPhase.EXITED)
    forgetful(bench).forget(step.step)
    assert phase(bench, step.step) is TaskPhase.ABSENT
    with pytest.raises(NotFound):
        bench.engine.logs(step.step, 0, 100)


def test_forgetting_again_changes_nothing(bench):
    steps = [make_step(name, bench.program()) for name in "ab"]
    for step in steps:
        bench.engine.start(step)
        wait_for(bench, step.step, TaskPhase.EXITED)
    for _ in range(2):
        forgetful(bench).forget(steps[0].step)
        bench.renew()
    seen = bench.engine.observe([step.step for step in steps])
    assert [found.phase for found in seen] == [TaskPhase.ABSENT, TaskPhase.EXITED]
    assert bench.runs(steps[0].step) == 1


def test_forgetting_a_step_nobody_started_changes_nothing(bench):
    unknown, fenced = (make_step(name, bench.program()) for name in "ab")
    bench.engine.stop(fenced.step, 0)
    for step in (unknown, fenced):
        forgetful(bench).forget(step.step)
        forgetful(bench).forget(step.step)
    assert {phase(bench, step.step) for step in (unknown, fenced)} == {TaskPhase.ABSENT}


def test_a_fresh_instance_forgets_what_an_earlier_one_started(bench):
    step = make_step("a", bench.program())
    bench.engine.start(step)
    wait_for(bench, step.step, TaskPhase.EXITED)
    bench.renew()
    forgetful(bench).forget(step.step)
    bench.renew()
    assert phase(bench, step.step) is TaskPhase.ABSENT


def test_a_log_is_read_in_pieces_to_its_end(bench):
    step = make_step("a", bench.program())
    bench.engine.start(step)
    wait_for(bench, step.step, TaskPhase.EXITED)
    whole = bench.engine.logs(step.step, 0, 1 << 20)
    pieces, cursor, is_end = b"", 0, False
    while not is_end:
        chunk = bench.engine.logs(step.step, cursor, 7)
        assert len(chunk.data) <= 7
        pieces, cursor, is_end = pieces + chunk.data, chunk.next_cursor, chunk.is_end
    assert pieces == whole.data
    assert bench.engine.logs(step.step, cursor, 7).data == b""


def test_cpu_time_and_times_of_an_ended_step_stay_as_they_are(bench):
    step = make_step("a", bench.program(seconds=0.2))
    bench.engine.start(step)
    first = wait_for(bench, step.step, TaskPhase.EXITED)
    bench.pause()
    bench.renew()
    second = bench.engine.observe([step.step])[0]
    assert first.started_at_ns < first.ended_at_ns
    assert (second.cpu_ns, second.started_at_ns, second.ended_at_ns) == (
        first.cpu_ns,
        first.started_at_ns,
        first.ended_at_ns,
    )


def test_each_engine_is_an_engine(bench):
    engine: Engine = bench.engine
    assert engine.observe([]) == ()

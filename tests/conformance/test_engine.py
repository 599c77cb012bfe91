"""One suite for every engine: what the control plane may rely on, judged by effects."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from moulin.domain.errors import EngineRefused, EngineUnavailable, InUse, NotFound
from moulin.domain.ids import StepId
from moulin.domain.observation import TaskPhase
from moulin.domain.plan import StartStep
from moulin.domain.workload import TaskTemplate
from moulin.engines.local.cgroup import find_cgroup_base
from moulin.ports.engine import Engine, Forgets, ListsSteps
from moulin.sdk._bundle import packed
from tests.conformance.engine_bench import (
    ENDED,
    Bench,
    ImageBench,
    KubernetesBench,
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
from tests.kubernetes_standin import standin
from tests.slurm_cluster import SUITES

AnyBench = KubernetesBench | LocalBench | RayBench | SimulatedBench | SlurmBench

ENGINES = {
    "local": pytest.param("local"),
    "local-without-cgroup": pytest.param("local-without-cgroup"),
    **{tool: pytest.param(tool) for tool in CONTAINER_TOOLS},
    "simulated": pytest.param("simulated"),
    "slurm": pytest.param("slurm", marks=pytest.mark.slurm),
    **{
        f"slurm-{suite}": pytest.param(
            f"slurm-{suite}", marks=(pytest.mark.slurm, pytest.mark.slurm_newer)
        )
        for suite in SUITES
    },
    "ray": pytest.param("ray", marks=pytest.mark.ray),
    "kubernetes": pytest.param("kubernetes"),
}
behaviour = pytest.mark.behaviour
# Nothing really runs there: what a program itself says or hears cannot be asked.
NOTHING_RUNS = ("simulated", "kubernetes")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test every engine but those it names."""
    marker = metafunc.definition.get_closest_marker("behaviour")
    assert marker is not None, "a test of engines says which behaviour it is about"
    without = marker.kwargs.get("without", ())
    chosen = [param for name, param in ENGINES.items() if name not in without]
    metafunc.parametrize("bench", chosen, indirect=True)


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        made = open_bench(request, tmp_path, stack)
        stack.callback(made.close)
        yield made


def open_bench(request: pytest.FixtureRequest, directory: Path, stack: ExitStack) -> AnyBench:
    name = request.param
    if name == "simulated":
        return SimulatedBench()
    if name == "kubernetes":
        return KubernetesBench(directory, stack.enter_context(standin()))
    if name == "slurm":
        return SlurmBench(directory, request.getfixturevalue("slurm_cluster"))
    if name.startswith("slurm-"):
        suite = name.removeprefix("slurm-")
        return SlurmBench(directory, request.getfixturevalue("slurm_of")(suite))
    if name == "ray":
        return RayBench(directory, request.getfixturevalue("ray_cluster"))
    if name in CONTAINER_TOOLS:
        containers = request.getfixturevalue(name)
        return ImageBench(directory, find_cgroup_base(), containers=containers)
    return LocalBench(directory, find_cgroup_base() if name == "local" else None)


def wait_for_effect(bench: Bench, step: StepId) -> None:
    wait_until(lambda: bench.runs(step) > 0, bench.pause)


@behaviour("exit codes")
@pytest.mark.parametrize("exit_code", [0, 3, 255])
def test_a_program_ends_with_its_own_status(bench, exit_code):
    step = make_step("a", bench.program(exit_code=exit_code))
    bench.engine.start(step)
    seen = wait_for(bench, step.step, TaskPhase.EXITED)
    assert seen.exit_code == exit_code
    assert bench.runs(step.step) == 1


@behaviour("idempotent start")
def test_a_repeated_start_returns_the_same_claim_and_runs_nothing_twice(bench):
    step = make_step("a", bench.program(seconds=0.3))
    claims = {bench.engine.start(step) for _ in range(3)}
    wait_for(bench, step.step, TaskPhase.EXITED)
    claims.add(bench.engine.start(step))
    assert len(claims) == 1
    assert bench.runs(step.step) == 1


@behaviour("adoption")
def test_a_fresh_instance_adopts_what_an_earlier_one_started(bench):
    step = make_step("a", bench.program(seconds=0.5, exit_code=7))
    claim = bench.engine.start(step)
    bench.renew()
    assert bench.engine.start(step) == claim
    assert bench.engine.observe([step.step])[0].claim == claim
    bench.renew()
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 7
    assert bench.runs(step.step) == 1


@behaviour("signals", without=("kubernetes",))
def test_a_stop_ends_a_polite_program_by_its_signal(bench):
    step = make_step("a", bench.program(seconds=1000))
    bench.engine.start(step)
    wait_for_effect(bench, step.step)
    bench.engine.stop(step.step, 30)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 128 + 15


@behaviour("stop with grace", without=("kubernetes",))
def test_a_stop_forces_a_program_that_does_not_listen(bench):
    step = make_step("a", bench.program(seconds=1000, ignores_term=True))
    bench.engine.start(step)
    wait_for_effect(bench, step.step)
    bench.engine.stop(step.step, 1)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 128 + 9


@behaviour("stop with grace")
def test_stopping_an_ended_step_changes_nothing(bench):
    step = make_step("a", bench.program(exit_code=5))
    bench.engine.start(step)
    ended = wait_for(bench, step.step, TaskPhase.EXITED)
    bench.engine.stop(step.step, 0)
    again = bench.engine.observe([step.step])[0]
    assert (again.exit_code, again.ended_at_ns) == (5, ended.ended_at_ns)


@behaviour("fencing")
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


@behaviour("unreachable is not gone")
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


@behaviour("capacity")
def test_a_node_of_another_engine_is_refused(bench):
    step = make_step("a", bench.program(), nodes=("elsewhere",))
    with pytest.raises(EngineRefused):
        bench.engine.start(step)
    assert phase(bench, step.step) is TaskPhase.ABSENT


@behaviour("capacity")
def test_capacity_keeps_its_order(bench):
    first = [node.node for node in bench.engine.capacity()]
    bench.renew()
    assert [node.node for node in bench.engine.capacity()] == first


@behaviour("adoption")
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


@behaviour("forgetting", without=("kubernetes",))
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


@behaviour("forgetting")
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


@behaviour("forgetting")
def test_forgetting_a_step_nobody_started_changes_nothing(bench):
    unknown, fenced = (make_step(name, bench.program()) for name in "ab")
    bench.engine.stop(fenced.step, 0)
    for step in (unknown, fenced):
        forgetful(bench).forget(step.step)
        forgetful(bench).forget(step.step)
    assert {phase(bench, step.step) for step in (unknown, fenced)} == {TaskPhase.ABSENT}


@behaviour("forgetting")
def test_a_fresh_instance_forgets_what_an_earlier_one_started(bench):
    step = make_step("a", bench.program())
    bench.engine.start(step)
    wait_for(bench, step.step, TaskPhase.EXITED)
    bench.renew()
    forgetful(bench).forget(step.step)
    bench.renew()
    assert phase(bench, step.step) is TaskPhase.ABSENT


@behaviour("log cursors")
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


@behaviour("exit codes")
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


@behaviour("capacity")
def test_capacity_says_what_there_is(bench):
    bench.widen()
    engine: Engine = bench.engine
    nodes = {node.node: node for node in engine.capacity()}
    assert {"node-0", "node-1"} <= set(nodes)
    assert len(nodes) == len(engine.capacity())
    for node in nodes.values():
        assert node.is_reachable
        assert min(node.cpu_milli, node.memory_bytes) > 0
        assert node.machine_class or not isinstance(bench, KubernetesBench)
    assert engine.observe([]) == ()


def gang(task: TaskTemplate) -> list[StartStep]:
    return [make_step("g", task, rank=rank, nodes=("node-0", "node-1")) for rank in (0, 1)]


@behaviour("gang start")
def test_every_task_of_a_gang_runs_once_and_ends_by_itself(bench):
    bench.widen()
    steps = gang(bench.program(exit_code=4))
    for step in steps:
        bench.engine.start(step)
    for step in steps:
        assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 4
    assert [bench.runs(step.step) for step in steps] == [1, 1]


@behaviour("gang start", without=NOTHING_RUNS)
def test_the_tasks_of_a_gang_know_one_another(bench):
    bench.widen()
    steps = gang(bench.shell('echo "of $WORLD_SIZE at $MASTER_PORT" > "$RANK"'))
    for step in steps:
        bench.engine.start(step)
    for step in steps:
        assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 0
    assert bench.effect("0") == bench.effect("1")
    assert bench.effect("0").startswith("of 2 at ")


@behaviour("signals", without=NOTHING_RUNS)
def test_a_program_hears_of_a_stop_once_and_ends_as_it_likes(bench):
    script = "trap 'echo told >> told; exit 3' TERM; touch up; while :; do sleep 0.05; done"
    step = make_step("a", bench.shell(script))
    bench.engine.start(step)
    wait_until((bench.directory / "effects" / "up").exists, bench.pause)
    bench.engine.stop(step.step, 30)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 3
    assert bench.effect("told") == "told\n"


@behaviour("unreachable is not gone")
def test_what_cannot_be_seen_is_unreachable_and_is_there_afterwards(bench):
    step = make_step("a", bench.program(seconds=1000))
    claim = bench.engine.start(step)
    wait_for(bench, step.step, TaskPhase.RUNNING)
    wait_for_effect(bench, step.step)
    bench.cut()
    wait_for(bench, step.step, TaskPhase.UNREACHABLE)
    bench.mend()
    assert wait_for(bench, step.step, TaskPhase.RUNNING).claim == claim
    assert bench.runs(step.step) == 1
    bench.engine.stop(step.step, 0)
    wait_for(bench, step.step, *ENDED)


@behaviour("fencing")
def test_a_generation_that_was_stopped_before_its_start_fences_no_other(bench):
    steps = [
        make_step("a", bench.program(exit_code=number), generation=number) for number in (1, 2, 3)
    ]
    bench.engine.stop(steps[1].step, 0)
    for step in (steps[0], steps[2]):
        bench.engine.start(step)
        assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == step.generation
    with pytest.raises(EngineRefused):
        bench.engine.start(steps[1])
    assert [bench.runs(step.step) for step in steps] == [1, 0, 1]


@behaviour("fencing", without=NOTHING_RUNS)
def test_a_program_is_told_its_generation(bench):
    step = make_step("a", bench.shell('echo "$MOULIN_GENERATION" > generation'), generation=3)
    bench.engine.start(step)
    wait_for(bench, step.step, TaskPhase.EXITED)
    assert bench.effect("generation") == "3\n"


@behaviour("effects")
def test_programs_started_by_several_instances_have_run_once_each(bench):
    steps = [make_step(name, bench.program(seconds=0.1)) for name in "abc"]
    for _ in range(2):
        for step in steps:
            bench.engine.start(step)
        bench.renew()
    for step in steps:
        wait_for(bench, step.step, TaskPhase.EXITED)
    for step in steps:
        bench.engine.start(step)
    assert [bench.runs(step.step) for step in steps] == [1, 1, 1]


def is_started(bench: Bench, step: StartStep) -> bool:
    """Start a step as often as it takes for what it needs to arrive."""
    try:
        bench.engine.start(step)
    except EngineUnavailable:
        return False
    return True


@behaviour("secrets", without=NOTHING_RUNS)
def test_secrets_reach_the_program_or_are_refused_with_a_hint(bench):
    script = 'test "$TOKEN" = word && test "$(cat "$KEY")" = "w o" && exit 7'
    step = make_step("a", bench.shell(script))
    step = replace(step, secrets={"TOKEN": "word"}, secret_files={"KEY": "w o"})
    try:
        bench.engine.start(step)
    except EngineRefused as refused:
        assert "pool of engine local or slurm" in refused.hint  # noqa: PT017 - either will do
        return
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 7


@behaviour("folders", without=NOTHING_RUNS)
def test_a_task_starts_in_a_copy_of_its_folder_or_is_refused_with_a_hint(bench, tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "word").write_text("grain\n")
    with packed(tmp_path / "code") as found:
        (tmp_path / "bundle").write_bytes(found.stream.read())
    task = bench.shell('test "$(cat word)" = grain && echo more > word && exit 7')
    step = make_step("a", replace(task, workdir="", bundle=found.sha256))
    step = replace(step, bundle_path=str(tmp_path / "bundle"))
    try:
        wait_until(lambda: is_started(bench, step), bench.pause)
    except EngineRefused as refused:
        assert "pool of engine local or slurm" in refused.hint  # noqa: PT017 - either will do
        return
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 7
    assert (tmp_path / "code" / "word").read_text() == "grain\n"

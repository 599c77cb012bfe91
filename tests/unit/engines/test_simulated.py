"""The simulated world: time, changes and the faults a harness injects."""

from dataclasses import replace

import pytest

from moulin.domain.errors import EngineRefused, EngineUnavailable, NotFound
from moulin.domain.ids import NodeId
from moulin.domain.observation import NodeCapacity, TaskPhase
from moulin.domain.workload import TaskTemplate
from moulin.engines.simulated.engine import SimulatedEngine
from moulin.engines.simulated.world import World
from moulin.ports.engine import Engine, Forgets, ListsSteps, ReportsChanges
from tests.conformance.engine_bench import ManualClock, make_step

S = 1_000_000_000


def program(seconds="", exit_code="0", **env):
    behaviour = {"MOULIN_SIMULATED_S": seconds, "MOULIN_SIMULATED_EXIT": exit_code}
    return TaskTemplate(command=("x",), env={**behaviour, **env})


def make(nodes=2, **fields):
    clock = ManualClock()
    capacities = [
        NodeCapacity(
            node=NodeId(f"node-{index}"),
            cpu_milli=4000,
            memory_bytes=10**9,
            machine_class="simulated",
            boot_id="boot",
        )
        for index in range(nodes)
    ]
    world = World(clock, capacities, **fields)
    return clock, world, SimulatedEngine(world)


def phases(engine, *steps):
    return [found.phase.value for found in engine.observe([step.step for step in steps])]


def name_of(step):
    return step.split(".")[0].rpartition("_")[2]


def changed(engine):
    return [(name_of(found.step), found.phase.value) for found in engine.changes()]


def test_it_has_every_optional_ability():
    _, _, engine = make()
    ports: tuple[type, ...] = (ListsSteps, Forgets, ReportsChanges)
    assert [isinstance(engine, port) for port in ports] == [True, True, True]
    used: Engine = engine
    assert used is engine


def test_a_task_runs_for_its_duration_to_the_nanosecond():
    clock, world, engine = make()
    step = make_step("a", program("2.5", "3"))
    engine.start(step)
    assert world.next_due_ns() == clock.at_ns + 25 * S // 10
    clock.at_ns += 25 * S // 10 - 1
    assert phases(engine, step) == ["running"]
    clock.at_ns += 100 * S
    (seen,) = engine.observe([step.step])
    assert (seen.phase, seen.exit_code) == (TaskPhase.EXITED, 3)
    assert seen.ended_at_ns - seen.started_at_ns == 25 * S // 10
    assert seen.cpu_ns == 25 * S // 10


def test_a_task_without_a_duration_runs_until_it_is_stopped():
    clock, world, engine = make()
    step = make_step("a", program())
    engine.start(step)
    clock.at_ns += 10**6 * S
    assert phases(engine, step) == ["running"]
    assert world.next_due_ns() is None
    engine.stop(step.step, 10)
    assert engine.observe([step.step])[0].exit_code == 143


def test_a_deaf_task_ends_with_the_grace():
    clock, _, engine = make()
    step = make_step("a", program(MOULIN_SIMULATED_IGNORES_TERM="1"))
    engine.start(step)
    engine.stop(step.step, 10)
    clock.at_ns += 10 * S - 1
    assert phases(engine, step) == ["running"]
    clock.at_ns += 1
    assert engine.observe([step.step])[0].exit_code == 137


def test_a_start_may_take_time():
    clock, _, engine = make(start_delay_ns=S)
    step = make_step("a", program("1"))
    engine.start(step)
    assert phases(engine, step) == ["starting"]
    clock.at_ns += S
    assert phases(engine, step) == ["running"]
    clock.at_ns += S
    assert phases(engine, step) == ["exited"]
    assert engine.observe([step.step])[0].cpu_ns == S


@pytest.mark.parametrize(("seconds", "exit_code"), [("soon", "0"), ("1", "x"), ("inf", "0")])
def test_behaviour_that_is_no_number_is_refused(seconds, exit_code):
    _, world, engine = make()
    with pytest.raises(EngineRefused):
        engine.start(make_step("a", program(seconds, exit_code)))
    assert world.history == []


def test_only_changes_are_reported_and_each_once():
    clock, _, engine = make()
    first, second = make_step("a", program("1")), make_step("b", program("2"))
    engine.start(first)
    engine.start(second)
    assert changed(engine) == [("a", "running"), ("b", "running")]
    assert changed(engine) == []
    clock.at_ns += S
    assert changed(engine) == [("a", "exited")]
    assert changed(engine) == []


def test_a_new_instance_first_reports_everything():
    clock, world, engine = make()
    engine.start(make_step("a", program("1")))
    engine.start(make_step("b", program()))
    clock.at_ns += S
    assert changed(engine) == [("a", "exited"), ("b", "running")]
    later = SimulatedEngine(world)
    assert changed(later) == [("a", "exited"), ("b", "running")]
    assert changed(later) == []


def test_what_happens_on_a_node_cut_off_is_seen_when_it_is_back():
    clock, world, engine = make()
    step = make_step("a", program("1"))
    engine.start(step)
    engine.changes()
    world.set_reachable(NodeId("node-0"), False)
    assert changed(engine) == [("a", "unreachable")]
    assert [node.is_reachable for node in engine.capacity()] == [False, True]
    clock.at_ns += S
    with pytest.raises(EngineUnavailable):
        engine.stop(step.step, 0)
    engine.changes()
    world.set_reachable(NodeId("node-0"), True)
    assert changed(engine) == [("a", "exited")]


def test_a_lost_node_comes_back_without_its_tasks_under_another_boot_id():
    _, world, engine = make()
    lost, kept = make_step("a", program()), make_step("b", program(), nodes=("node-1",))
    engine.start(lost)
    engine.start(kept)
    world.set_reachable(NodeId("node-0"), False)
    world.reboot(NodeId("node-0"))
    assert phases(engine, lost, kept) == ["unreachable", "running"]
    world.set_reachable(NodeId("node-0"), True)
    assert phases(engine, lost, kept) == ["gone", "running"]
    assert engine.capacity()[0].boot_id != "boot"
    assert engine.steps() == (kept.step,)


def test_an_engine_cut_off_knows_nothing():
    _, world, engine = make()
    step, unknown = make_step("a", program()), make_step("b", program())
    engine.start(step)
    world.set_engine_reachable(False)
    assert phases(engine, step, unknown) == ["unreachable", "unreachable"]
    assert not any(node.is_reachable for node in engine.capacity())
    with pytest.raises(EngineUnavailable):
        engine.start(unknown)
    with pytest.raises(EngineUnavailable):
        engine.logs(step.step, 0, 10)
    world.set_engine_reachable(True)
    assert phases(engine, step, unknown) == ["running", "absent"]


def test_a_lost_reply_hides_a_start_that_happened():
    _, world, engine = make()
    step = make_step("a", program())
    world.lose_replies(1)
    with pytest.raises(EngineUnavailable):
        engine.start(step)
    assert phases(engine, step) == ["running"]
    engine.start(step)
    assert [run.step for run in world.history] == [step.step]


def test_observations_can_be_late_doubled_or_lost():
    clock, _, engine = make()
    step = make_step("a", program("1"))
    engine.start(step)
    engine.is_doubling = True
    assert changed(engine) == [("a", "running"), ("a", "running")]
    engine.is_doubling, engine.is_holding = False, True
    clock.at_ns += S
    assert changed(engine) == []
    assert phases(engine, step) == ["running"]
    engine.is_holding = False
    engine.drop_observations(1)
    assert changed(engine) == []
    assert phases(engine, step) == ["exited"]


def test_history_tells_what_happened():
    clock, world, engine = make()
    step = make_step("a", program("1"))
    start_ns = clock.at_ns
    engine.start(step)
    assert world.history[0].ended_at_ns == 0
    clock.at_ns += 5 * S
    engine.observe([])
    (run,) = world.history
    assert run == replace(run, step=step.step, node="node-0", started_at_ns=start_ns)
    assert run.ended_at_ns == start_ns + S


def test_no_simulated_task_offers_an_address_and_its_log_says_what_it_is():
    _, _, engine = make()
    step = make_step("a", program())
    engine.start(step)
    (seen,) = engine.observe([step.step])
    assert (seen.address, seen.is_ready, seen.evidence) == ("", False, "simulated")
    assert b"simulated" in engine.logs(step.step, 0, 100).data
    with pytest.raises(NotFound):
        engine.logs(make_step("b", program()).step, 0, 100)


def test_forgetting_needs_its_node_and_may_be_done_without_an_answer():
    clock, world, engine = make()
    step = make_step("a", program("1"))
    engine.start(step)
    clock.at_ns += 2 * S
    world.set_reachable(NodeId("node-0"), False)
    with pytest.raises(EngineUnavailable):
        engine.forget(step.step)
    world.set_reachable(NodeId("node-0"), True)
    assert world.started_steps() == (step.step,)
    world.lose_replies(1)
    with pytest.raises(EngineUnavailable):
        engine.forget(step.step)
    assert world.started_steps() == ()
    engine.forget(step.step)
    assert phases(engine, step) == ["absent"]

"""The health of simulated nodes through the whole control plane, over restarts and people's words."""

from dataclasses import replace

import pytest

from moulin.controlplane.commands import CheckNode, ExplainWorkload, JudgeNode
from moulin.domain.errors import EngineUnavailable, NotFound
from moulin.domain.events import AttemptStopDecided
from moulin.domain.factory import Pool
from moulin.domain.health import DeviceReading, NodeReading, Verdict
from moulin.domain.ids import NodeId, WorkloadId
from moulin.domain.node_events import NodeChecked, NodeHealthObserved, NodeJudged
from moulin.domain.plan import StopCause
from moulin.engines.simulated.world import World
from moulin.scheduler import node_views
from tests.integration.controlplane.bench import (
    ADMIN,
    Bench,
    Machines,
    factory,
    job,
    machines_of,
)

CALM_S = 305


def node_of(mill: Bench, index: int = 0) -> NodeId:
    return mill.floor.world.capacity()[index].node


def say(mill: Bench, index: int = 0, **more: object) -> None:
    """Let a node be read like this from now on."""
    reading = NodeReading(node=node_of(mill, index), at_ns=0, disk_free_bytes=2**40)
    mill.floor.world.set_reading(replace(reading, **more))  # type: ignore[arg-type]


def verdicts(mill: Bench) -> dict[str, str]:
    return {view.node: view.health.value for view in node_views(mill.plane.books.schedule)}


@pytest.fixture
def well(mill: Bench) -> Bench:
    """A factory whose nodes have been read once."""
    for index in (0, 1):
        say(mill, index, memory_errors=0)
    mill.turns(2, 1.0)
    return mill


def test_a_steady_node_is_one_event(well: Bench) -> None:
    well.turns(30, 1.0)
    assert len(well.events(NodeHealthObserved)) == 2
    assert not well.events(NodeJudged)


def test_work_on_a_broken_node_runs_again_elsewhere_once(well: Bench) -> None:
    view = well.submit(replace(job(20), kind=job(20).kind, time_limit_s=600))
    well.turns(3, 1.0)
    [before] = well.floor.world.history
    broken = [each.node for each in well.floor.world.capacity()].index(before.node)
    # A task without devices is struck by what is wrong with the whole node.
    say(well, broken, memory_errors=2)
    well.turns(6, 1.0)
    assert verdicts(well)[before.node] == "quarantined"
    assert [stop.cause for stop in well.events(AttemptStopDecided)] == [StopCause.UNHEALTHY]
    well.turns(30, 1.0)
    assert well.state(view.id) == "succeeded"
    runs = well.floor.world.history
    assert [run.node == before.node for run in runs] == [True, False]


def test_a_node_comes_back_after_a_calm_and_a_check_of_its_own(well: Bench) -> None:
    say(well, memory_errors=1)
    well.turns(3, 1.0)
    assert verdicts(well)[node_of(well)] == "quarantined"
    well.turns(100, 1.0)
    well.reopen()
    well.turns(2, 1.0)
    assert verdicts(well)[node_of(well)] == "quarantined"
    assert not well.events(NodeChecked)
    well.turns(CALM_S - 100, 1.0)
    assert verdicts(well)[node_of(well)] == "healthy"
    [checked] = well.events(NodeChecked)
    assert checked.is_passed


def test_a_node_that_cannot_be_read_keeps_its_verdict(well: Bench) -> None:
    view = well.submit(job(300))
    well.turns(3, 1.0)
    [run] = well.floor.world.history
    well.floor.world.set_reachable(run.node, False)
    broken = [each.node for each in well.floor.world.capacity()].index(run.node)
    say(well, broken, memory_errors=9)
    well.turns(60, 1.0)
    assert set(verdicts(well).values()) == {"healthy"}
    assert not well.events(AttemptStopDecided)
    assert well.state(view.id) == "running"


def test_errors_while_nobody_led_are_not_missed(well: Bench) -> None:
    say(well, memory_errors=1)
    well.reopen()
    well.turns(2, 1.0)
    assert verdicts(well)[node_of(well)] == "quarantined"


def test_people_put_nodes_away_and_bring_them_back(well: Bench) -> None:
    for index in (0, 1):
        node = node_of(well, index)
        words = JudgeNode(
            principal=ADMIN, node=node, verdict=Verdict.QUARANTINED, words="a loud fan"
        )
        view = well.tell(words)
        assert (view.health, view.health_reason.parameters["words"]) == (
            Verdict.QUARANTINED,
            "a loud fan",
        )
    waiting = well.submit(job(1))
    well.turns(CALM_S, 1.0)
    explained = well.tell(ExplainWorkload(workload=WorkloadId(waiting.id)))
    assert "NodeQuarantined" in [reason.code for reason in explained.reasons]
    checked = well.tell(CheckNode(principal=ADMIN, node=node_of(well)))
    assert checked.health is Verdict.QUARANTINED
    command = JudgeNode(principal=ADMIN, node=node_of(well), verdict=Verdict.HEALTHY)
    assert well.tell(command).health is Verdict.HEALTHY
    well.turns(5, 1.0)
    assert well.state(waiting.id) == "succeeded"


def test_a_check_says_what_it_sees(well: Bench) -> None:
    device = DeviceReading(index=0, uuid="GPU-0", is_hot=True)
    say(well, memory_errors=0, devices=(device,))
    view = well.tell(CheckNode(principal=ADMIN, node=node_of(well)))
    assert [each.signal.value for each in view.symptoms] == ["thermal"]
    assert not well.events(NodeChecked)[-1].is_passed


def test_what_cannot_be_checked(mill: Bench) -> None:
    with pytest.raises(NotFound):
        mill.tell(CheckNode(principal=ADMIN, node=NodeId("nothing-like-it")))
    with pytest.raises(NotFound):
        mill.tell(JudgeNode(principal=ADMIN, node=NodeId("x"), verdict=Verdict.QUARANTINED))
    with pytest.raises(EngineUnavailable, match="does not read"):
        mill.tell(CheckNode(principal=ADMIN, node=node_of(mill)))


def test_a_pool_that_leaves_takes_no_verdict_along(well: Bench) -> None:
    say(well, memory_errors=1)
    well.turns(3, 1.0)
    node = node_of(well)
    kept = [each for each in factory() if not isinstance(each, Pool)]
    well.apply(*kept)
    well.turns(3, 1.0)
    assert node not in verdicts(well)
    well.apply(*factory())
    well.turns(3, 1.0)
    assert verdicts(well)[node] == "quarantined"


@pytest.mark.parametrize(
    ("xids", "state", "runs"), [({"79": 1}, "running", 2), ({"13": 1}, "failed", 1)]
)
def test_a_program_that_ends_of_a_broken_device_has_not_failed(bench: Bench, xids, state, runs):
    capacities = [replace(each, accelerators=1) for each in machines_of("floor", 2, 4)]
    world = World(bench.clock, capacities)
    bench.connect = lambda _: bench.machines.setdefault("floor", Machines(world))
    # Nobody reads by itself for a long time, once every node was read.
    bench.plane.settings = replace(bench.settings, capacity_period_s=10_000.0)
    device = DeviceReading(index=0, uuid="", xids_since_ns=1)
    well = {
        each.node: NodeReading(
            node=each.node, at_ns=0, devices=(replace(device, uuid=f"{each.node}/0"),)
        )
        for each in capacities
    }
    for reading in well.values():
        world.set_reading(reading)
    bench.apply(*factory())
    bench.turn()
    spec = job(5, exit_code=1)
    view = bench.submit(replace(spec, resources=replace(spec.resources, accelerators=1)))
    bench.turns(3, 1.0)
    [before] = world.history
    [found] = well[before.node].devices or ()
    world.set_reading(replace(well[before.node], devices=(replace(found, xids=xids),)))
    bench.turns(5, 1.0)
    assert bench.state(view.id) == state
    assert len({run.node for run in world.history}) == len(world.history) == runs

"""Machines behind places that Slurm fills: they have health and no room, and strike what runs on them."""

from dataclasses import replace

from moulin.domain.events import NodeLeft
from moulin.domain.health import DeviceReading, NodeReading, Verdict
from moulin.domain.ids import NodeId, StepId
from moulin.domain.node_events import NodeHealthObserved
from moulin.domain.plan import StopCause
from moulin.domain.told import joined
from moulin.scheduler import node_views, quarantined
from moulin.scheduler.health import clears, is_news, symptoms_of
from tests.unit.scheduler.world import SECOND, World, job, node, world

N7, N8 = NodeId("n7"), NodeId("n8")


def watched(name: str):
    return replace(node(name, devices=4), is_watched_only=True)


def places(count: int = 2) -> World:
    """So many places of four devices, and two machines of which nobody knows which place is on which."""
    offered = [node(f"p{index}", devices=4) for index in range(count)]
    return world(*offered, watched("n7"), watched("n8"))


def device(index: int, *steps: str, **more: object) -> DeviceReading:
    found = DeviceReading(index=index, uuid=f"GPU-{index}", steps=tuple(map(StepId, steps)))
    return replace(found, **more)  # type: ignore[arg-type]


def see(here: World, *devices: DeviceReading, node: NodeId = N7, **more: object) -> None:
    found = NodeReading(node=node, at_ns=here.now_ns, devices=devices, is_partial=True)
    found = replace(found, **more)  # type: ignore[arg-type]
    row = here.state.nodes.row(node)
    assert row is not None
    if is_news(row.health, found):
        symptoms = symptoms_of(row.health.reading, found)
        here.add(NodeHealthObserved(node=node, reading=found, symptoms=symptoms))


def run_on(here: World, step: str, host: NodeId) -> None:
    here.run(step, host=host)


def test_nothing_is_placed_on_a_machine_and_its_room_counts_once():
    here = world(node("p0", cpus=4), replace(node("n7", cpus=64), is_watched_only=True))
    here.submit("x", job(4))
    here.submit("y", job(4))
    here.submit("z", job(8))
    assert [place.tasks[0].node for place in here.cycle().places] == ["p0"]
    [machine] = [each for each in node_views(here.state) if each.is_watched_only]
    assert (machine.node, machine.cpu_milli, machine.cpu_milli_held) == ("n7", 64_000, 0)
    run_on(here, "x.u0.g1.t0", N7)
    [machine] = [each for each in node_views(here.state) if each.is_watched_only]
    assert machine.cpu_milli_held == 4000
    here.exit("x.u0.g1.t0", 0)
    [machine] = [each for each in node_views(here.state) if each.is_watched_only]
    assert machine.cpu_milli_held == 0


def test_only_what_told_of_a_broken_device_is_stopped():
    here = places()
    for name in ("x", "y", "z"):
        here.submit(name, job(1, devices=2))
    here.cycle()
    for name, host in (("x", N7), ("y", N7), ("z", N8)):
        run_on(here, f"{name}.u0.g1.t0", host)
    # Both tasks hold what they call devices 0 and 1; the machine has them under other names.
    shown = (device(0, "x.u0.g1.t0"), device(1, "y.u0.g1.t0"))
    see(here, *shown)
    see(here, replace(shown[0], xids={"79": 1}), shown[1])
    [judged] = here.cycle().judgements
    assert (judged.node, judged.verdict) == (N7, Verdict.QUARANTINED)
    assert [(each.attempt, each.cause) for each in here.cycle().stops] == [
        ("x.u0.g1", StopCause.UNHEALTHY)
    ]
    here.exit("x.u0.g1.t0", 143)
    here.cycle()
    [place] = here.cycle().places
    assert place.attempt == "x.u0.g2"
    [(name, pool, why)] = quarantined(here.state)
    assert (name, pool, "79" in why.words) == (N7, "pa", True)
    assert why.since_ns == here.now_ns


def test_what_is_wrong_with_a_machine_strikes_all_that_runs_there_and_nothing_else():
    here = places()
    here.submit("x", job(1))
    here.submit("g", job(1, nodes=2))
    here.cycle()
    run_on(here, "x.u0.g1.t0", N8)
    run_on(here, "g.u0.g1.t0", N8)
    run_on(here, "g.u0.g1.t1", N7)
    see(here, memory_errors=0)
    see(here, memory_errors=3)
    here.cycle()
    assert {each.attempt for each in here.cycle().stops} == {"g.u0.g1"}


def test_what_fails_on_a_broken_machine_was_lost_with_it():
    here = places()
    here.submit("x", job(1, devices=1))
    here.cycle()
    run_on(here, "x.u0.g1.t0", N7)
    see(here, device(3, "x.u0.g1.t0"))
    see(here, device(3, "x.u0.g1.t0", xids={"48": 1}))
    here.exit("x.u0.g1.t0", 1)
    here.cycle()
    here.now_ns += 2 * SECOND
    assert [place.attempt for place in here.cycle().places] == ["x.u0.g2"]
    assert here.state.workloads["x"].units[0].failures == 0  # type: ignore[index]


def test_a_second_task_that_tells_of_the_same_broken_device_is_struck_too():
    here = places()
    for name in ("x", "y"):
        here.submit(name, job(1, devices=1))
    here.cycle()
    for name in ("x", "y"):
        run_on(here, f"{name}.u0.g1.t0", N7)
    see(here, device(2, "x.u0.g1.t0", is_remap_failed=True))
    here.cycle()
    assert {each.attempt for each in here.cycle().stops} == {"x.u0.g1"}
    see(here, device(2, "x.u0.g1.t0", "y.u0.g1.t0", is_remap_failed=True))
    assert {each.attempt for each in here.cycle().stops} == {"y.u0.g1"}
    row = here.state.nodes.row(N7)
    assert row is not None
    assert len(row.health.evidence) == 1


def test_a_device_is_cleared_by_its_name_whatever_its_number_is_then():
    here = places()
    see(here, device(0))
    see(here, device(0, is_remap_failed=True))
    see(here)  # whoever told of it has gone
    row = here.state.nodes.row(N7)
    assert row is not None
    other = DeviceReading(index=0, uuid="GPU-other")
    again = NodeReading(node=N7, at_ns=0, devices=(other,), is_partial=True)
    assert not clears(row.health, again)
    same = DeviceReading(index=3, uuid="GPU-0")
    assert clears(row.health, replace(again, devices=(other, same)))


def test_several_readers_of_one_device_are_all_remembered():
    first = NodeReading(node=N7, at_ns=1, devices=(device(0, "a"), device(1, "a")))
    second = NodeReading(node=N7, at_ns=2, devices=(device(1, "b"),))
    found = joined(N7, [first, second])
    assert [each.steps for each in found.devices or ()] == [("a",), ("a", "b")]


def test_a_machine_that_leaves_is_kept_while_something_runs_there():
    here = places()
    here.submit("x", job(1))
    here.cycle()
    run_on(here, "x.u0.g1.t0", N7)
    here.add(NodeLeft(node=N7))
    assert here.state.nodes.row(N7) is not None
    here.exit("x.u0.g1.t0", 0)
    assert here.state.nodes.row(N7) is None


def test_what_others_tell_of_a_node_s_devices_closes_it_and_stops_nothing_of_ours():
    here = world(node("n0", devices=2))
    here.submit("x", job(1, devices=2))
    here.cycle()
    here.run("x.u0.g1.t0")
    see(here, device(0, "y.u0.g1.t0"), node=NodeId("n0"))
    see(here, device(0, "y.u0.g1.t0", is_remap_failed=True), node=NodeId("n0"))
    assert [each.verdict for each in here.cycle().judgements] == [Verdict.QUARANTINED]
    assert here.cycle().stops == ()
    # Once its own reader says so, it is ours as well.
    see(here, device(0, is_remap_failed=True), node=NodeId("n0"))
    assert [each.attempt for each in here.cycle().stops] == ["x.u0.g1"]


def test_what_runs_on_a_machine_before_it_is_known_is_its_guest_when_it_is():
    here = world(node("p0", devices=4))
    for name in ("x", "y"):
        here.submit(name, job(1))
    here.cycle()
    for name in ("x", "y"):
        run_on(here, f"{name}.u0.g1.t0", N7)
    here.exit("y.u0.g1.t0", 0)
    here.join(watched("n7"))
    see(here, memory_errors=0)
    see(here, memory_errors=1)
    here.cycle()
    assert [each.attempt for each in here.cycle().stops] == ["x.u0.g1"]

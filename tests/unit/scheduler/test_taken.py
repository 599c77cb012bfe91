"""What work that is not Moulin's holds on a node, and nodes that their engine has closed."""

from dataclasses import replace

from moulin.domain.workload import WorkloadKind
from moulin.scheduler.nodes import Column
from tests.unit.scheduler.world import GB, job, node, world


def test_what_others_hold_is_not_free_and_keeps_nobody_from_the_rest():
    taken = {"taken_cpu_milli": 3000, "taken_memory_bytes": 15 * GB}
    made = world(node("n1", **taken))
    made.submit("large", job(cpus=2))
    made.submit("small", job(cpus=1))
    assert made.placed() == ["small"]  # the large one waits: it is not impossible here
    assert made.placed() == []
    made.join(node("n1"))
    assert made.placed() == ["large"]


def test_devices_that_others_hold_are_the_last_free_ones():
    made = world(node("n1", devices=4, taken_accelerators=2))
    made.submit("a", job(devices=1))
    made.submit("b", job(devices=1))
    made.submit("c", job(devices=1))
    places = made.cycle().places
    assert [place.tasks[0].devices for place in places] == [(0,), (1,)]
    made.run("a.u0.g1.t0")
    made.exit("a.u0.g1.t0")
    row = made.state.nodes.row(made.state.nodes.names[0])
    assert row is not None
    assert row.devices_free == 0b0001
    assert made.state.nodes.columns[Column.DEVICES_FREE, 0] == 1


def test_a_whole_node_is_not_given_while_somebody_else_is_on_it():
    whole = replace(job(), kind=WorkloadKind.LEASE, task=None)
    made = world(node("n1", taken_cpu_milli=1000))
    made.submit("lease", whole)
    assert made.placed() == []
    made.join(node("n1"))
    assert made.placed() == ["lease"]


def test_a_closed_node_gets_nothing_new_and_keeps_what_it_has():
    made = world(node("n1"))
    made.submit("a", job())
    assert made.placed() == ["a"]
    made.join(node("n1", closed_because="drain: bad fan"))
    made.submit("b", job())
    assert made.placed() == []
    made.run("a.u0.g1.t0")
    made.join(node("n1"))
    assert made.placed() == ["b"]

"""Nodes that are given as a whole, however little a task asks for."""

from moulin.scheduler.nodes import Column
from tests.unit.scheduler.world import job, node, world


def alone(name, **more):
    return node(name, is_exclusive=True, **more)


def placed_on(made):
    """Apply one cycle; return the nodes that it placed on."""
    return [place.tasks[0].node for place in made.cycle().places]


def test_tasks_of_one_decision_go_to_different_nodes():
    made = world(alone("n1"), alone("n2"))
    for name in ("a", "b", "c"):
        made.submit(name, job(cpus=1))
    assert sorted(placed_on(made)) == ["n1", "n2"]
    assert placed_on(made) == []
    assert not made.state.nodes.columns[Column.CPU_FREE].any()
    made.run("a.u0.g1.t0")
    made.exit("a.u0.g1.t0")
    assert len(placed_on(made)) == 1


def test_what_others_hold_of_it_is_all_of_it():
    made = world(alone("n1", taken_cpu_milli=1000))
    made.submit("a", job(cpus=1))
    assert placed_on(made) == []
    made.join(alone("n1"))
    assert placed_on(made) == ["n1"]


def test_a_node_that_becomes_exclusive_is_full_with_what_is_on_it():
    made = world(node("n1"))
    made.submit("a", job(cpus=1))
    assert placed_on(made) == ["n1"]
    made.join(alone("n1"))
    made.submit("b", job(cpus=1))
    assert placed_on(made) == []
    made.join(node("n1"))
    assert placed_on(made) == ["n1"]


def test_a_project_holds_what_it_asked_for_and_not_the_node():
    made = world(alone("n1"))
    made.submit("a", job(cpus=1))
    made.cycle()
    (held,) = made.state.held_by_project.values()
    assert held.cpu_milli == 1000

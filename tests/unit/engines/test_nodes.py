"""Dividing one machine into nodes: every CPU, byte, device and milliwatt goes to exactly one."""

import pytest

from moulin.domain.errors import InvalidSpec
from moulin.engines.local.nodes import divide_machine, machine_devices


def divided(nodes, **fields):
    facts = {"cpu_ids": (0, 1, 2, 3), "memory_bytes": 1001, "boot_id": "boot"}
    return divide_machine(nodes=nodes, **{**facts, **fields})


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_everything_is_handed_out_once(nodes):
    made = divided(nodes, accelerators=7, idle_mw=1003, peak_mw=5001)
    assert [node.node for node in made] == [f"node-{index}" for index in range(nodes)]
    assert [cpu for node in made for cpu in node.cpu_ids] == [0, 1, 2, 3]
    assert all(node.cpu_milli == 1000 * len(node.cpu_ids) for node in made)
    assert sum(node.memory_bytes for node in made) == 1001
    assert sum(node.accelerators for node in made) == 7
    assert sum(node.idle_mw for node in made) == 1003
    assert sum(node.peak_mw for node in made) == 5001


def test_power_follows_cpus():
    made = divided(3, idle_mw=400)
    assert [(len(node.cpu_ids), node.idle_mw) for node in made] == [(2, 200), (1, 100), (1, 100)]


@pytest.mark.parametrize("nodes", [0, -1, 5])
def test_more_nodes_than_cpus_are_refused_with_the_numbers(nodes):
    with pytest.raises(InvalidSpec) as refused:
        divided(nodes)
    assert f"{nodes} nodes" in refused.value.message
    assert "4 CPUs" in refused.value.message
    assert refused.value.details == {"nodes": nodes, "cpus": 4}


def test_cpus_need_not_be_numbered_from_zero():
    assert [node.cpu_ids for node in divided(2, cpu_ids=(9, 4, 6))] == [(4, 6), (9,)]


def test_device_numbers_of_a_node_become_those_of_the_machine():
    nodes = divided(3, accelerators=8)
    assert [node.accelerators for node in nodes] == [3, 3, 2]
    assert machine_devices(nodes, nodes[0].node, (0, 2)) == (0, 2)
    assert machine_devices(nodes, nodes[2].node, (0, 1)) == (6, 7)
    assert machine_devices(nodes, nodes[1].node, ()) == ()

"""GPUs of several types in one partition: what they are offered as, and what Slurm is asked for."""

from dataclasses import replace
from typing import cast

import pytest

from moulin.domain.workload import Resources, TaskTemplate
from moulin.engines.slurm.classes import classes_by_type
from moulin.engines.slurm.client import SlurmClient
from moulin.engines.slurm.cluster import Cluster
from moulin.engines.slurm.formats import SlurmNode, SlurmPartition
from moulin.engines.slurm.places import places
from moulin.engines.slurm.readings import Readings
from moulin.engines.slurm.settings import SlurmSettings
from tests.conformance.engine_bench import make_step


def node(name, kind, count=4):
    return SlurmNode(
        name=name,
        cpus=8,
        memory_bytes=1 << 30,
        accelerators=count,
        accelerator_type=kind,
        partitions=("gpu",),
    )


NODES = (node("n1", "a100"), node("n2", "a100"), node("n3", "h100"), node("n4", "", 0))


class Listed:
    """A driver that says only which nodes there are."""

    def nodes(self):
        return NODES

    def partitions(self):
        return (SlurmPartition(name="gpu", is_default=True),)

    def __getattr__(self, name):
        return lambda *_: pytest.fail(f"{name} was asked")


def settings_of(directory, **more):
    return SlurmSettings(directory=directory, prefix="p-", **more)


def gres_type(settings, asked, *nodes):
    cluster = Cluster(Readings(cast("SlurmClient", Listed())), settings, own_comment="moulin:me:")
    step = make_step("a", TaskTemplate(command=("true",)), nodes=nodes or ("p-00000",))
    resources = Resources(accelerators=1, accelerator_class=asked)
    return cluster.gres_type(replace(step, resources=resources))


@pytest.mark.parametrize(
    ("pool_class", "offered"),
    [
        ("", ("a100", "a100", "h100", "")),
        ("H100", ("a100", "a100", "H100", "")),
        ("H100-SXM", ("a100", "a100", "H100-SXM", "")),
        ("A100", ("A100", "A100", "h100", "")),
        ("gpu-node", ("gpu-node", "gpu-node", "gpu-node", "")),
    ],
)
def test_nodes_of_another_type_are_not_offered_as_the_pool_s_class(tmp_path, pool_class, offered):
    found = places(NODES, (), frozenset(), settings_of(tmp_path, accelerator_class=pool_class))
    assert tuple(each.accelerator_class for each in found) == offered


def test_the_only_type_is_what_the_operator_calls_it():
    assert classes_by_type(NODES[:2], "H100") == {"a100": "H100"}
    assert classes_by_type((), "H100") == {}
    assert classes_by_type([node("n1", ""), node("n2", "tesla")], "gpu-node") == {
        "": "gpu-node",
        "tesla": "gpu-node",
    }


def test_a_longer_name_is_not_mistaken_for_a_shorter_one():
    nodes = [node("n1", "a100_40gb"), node("n2", "a100_80gb"), node("n3", "")]
    classes = {"": "A100-80GB", "a100_40gb": "a100_40gb", "a100_80gb": "A100-80GB"}
    assert classes_by_type(nodes, "A100-80GB") == classes


@pytest.mark.parametrize(
    ("pool_class", "asked", "wanted"),
    [
        ("H100", "H100", "h100"),
        ("H100", "a100", "a100"),
        ("", "h100", "h100"),
        ("gpu-node", "gpu-node", ""),
        ("H100", "", ""),
    ],
)
def test_a_delegated_pool_asks_for_the_type_of_the_class(tmp_path, pool_class, asked, wanted):
    settings = settings_of(tmp_path, accelerator_class=pool_class, is_delegated=True)
    assert gres_type(settings, asked) == wanted


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [(("p-n3",), "h100"), (("p-n1", "p-n2"), "a100"), (("p-n1", "p-n3"), "")],
)
def test_an_owned_pool_asks_for_the_type_of_the_nodes_placed_on(tmp_path, nodes, wanted):
    assert (
        gres_type(settings_of(tmp_path, accelerator_class="gpu-node"), "gpu-node", *nodes) == wanted
    )

"""A cluster's own words, from several versions, as an operator file that can be applied."""

import json

import pytest

from moulin.app.files import parse_mapping
from moulin.catalog.machines import MACHINE_CLASSES
from moulin.domain.errors import InvalidSpec
from moulin.domain.factory import Pool, PoolMode
from moulin.domain.factoryfile import parse_factory
from moulin.engines.slurm.formats import SlurmJob
from moulin.engines.slurm.importing import (
    Naming,
    operator_file,
    read_cluster_nodes,
    read_cluster_partitions,
)

NODE = (
    "NodeName=n{index:04d} Arch=x86_64 CoresPerSocket=32  CPUAlloc=0 CPUEfctv=64 CPUTot=64"
    " AvailableFeatures=(null) Gres=gpu:h100:8(S:0-1) NodeAddr=10.0.0.{index} OS=Linux 6.1 #1 SMP"
    " RealMemory=512000 AllocMem=0 State={state} ThreadsPerCore=1 Partitions={partitions} "
    " CfgTRES=cpu=64,mem=512000M{reason}"
)
PARTITIONS = """\
PartitionName=gpu Default=YES MaxTime=2-12:00:00 Nodes=n[0000-0999] State=UP TotalNodes=1000
PartitionName=debug Default=NO MaxTime=30 Nodes=n[0000-0003] State=UP TotalNodes=4
PartitionName=empty Default=NO MaxTime=UNLIMITED Nodes=(null) State=UP TotalNodes=0
"""


def node_line(index):
    is_bad = index == 7
    return NODE.format(
        index=index,
        state="IDLE+DRAIN" if is_bad else "MIXED",
        partitions="gpu,debug" if index < 4 else "gpu",
        reason=" Reason=bad fan [root@2026-01-01T00:00:00]" if is_bad else "",
    )


def imported(nodes, partitions, jobs=(), **more):
    naming = Naming(site="campus", country="FR", classes=tuple(MACHINE_CLASSES), **more)
    text = operator_file(
        read_cluster_nodes(nodes), read_cluster_partitions(partitions), jobs, naming
    )
    objects = parse_factory(
        parse_mapping(text.encode(), origin="cluster.yaml"), registry=MACHINE_CLASSES
    )
    return text, {each.name: each for each in objects if isinstance(each, Pool)}


def test_a_thousand_nodes_become_a_file_that_can_be_applied():
    nodes = "\n".join(node_line(index) for index in range(1000)).encode()
    jobs = [
        SlurmJob(id=1, name="a", state="RUNNING", user="ann"),
        SlurmJob(id=2, name="b", state="PENDING", user="bob"),
        SlurmJob(id=3, name="c", state="COMPLETED", user="cid"),
    ]
    text, pools = imported(nodes, PARTITIONS.encode(), jobs, settings={"ssh": "login1"})
    assert set(pools) == {"gpu", "debug"}
    assert (pools["gpu"].zone, pools["gpu"].engine) == ("gpu", "slurm")
    assert pools["gpu"].machine_class == "H100"
    assert pools["gpu"].settings == {"partition": "gpu", "ssh": "login1"}
    assert "cluster of 1000 nodes" in text
    assert "1 jobs of others run and 1 wait, of 2 users" in text
    assert "4 nodes are in several partitions" in text
    assert "n0007 is drain idle: bad fan" in text


def test_json_of_two_versions_says_the_same():
    old = {
        "nodes": [
            {"name": "c1", "cpus": 8, "real_memory": 4000, "gres": "", "partitions": ["cpu"]},
        ]
    }
    new = {
        "nodes": [
            {
                "name": "c1",
                "cpus": 8,
                "effective_cpus": 8,
                "real_memory": 4000,
                "gres": "",
                "partitions": ["cpu"],
                "state": ["IDLE"],
            }
        ]
    }
    old_partitions = {"partitions": [{"name": "cpu", "nodes": "c1", "max_time_limit": 90}]}
    limit = {"set": True, "infinite": False, "number": 90}
    new_partitions = {
        "partitions": [
            {
                "name": "cpu",
                "nodes": {"configured": "c1", "total": 1},
                "maximums": {"time": limit},
                "partition": {"state": ["UP"]},
            }
        ]
    }
    texts = {
        imported(json.dumps(nodes).encode(), json.dumps(partitions).encode(), is_delegated=True)[0]
        for nodes, partitions in ((old, old_partitions), (new, new_partitions))
    }
    assert len(texts) == 1
    text, pools = imported(
        json.dumps(old).encode(), json.dumps(old_partitions).encode(), is_delegated=True
    )
    assert "time limit 1h30m0s" in text
    assert pools["cpu"].mode is PoolMode.DELEGATED
    assert pools["cpu"].machine_class == "cpu-node"


@pytest.mark.parametrize("data", [b"", b"{}", b"{", b'{"nodes": 3}', b"nothing"])
def test_what_holds_no_nodes_is_refused(data):
    with pytest.raises(InvalidSpec):
        read_cluster_nodes(data)
    with pytest.raises(InvalidSpec):
        read_cluster_partitions(data)

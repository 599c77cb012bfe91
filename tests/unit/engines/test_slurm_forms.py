"""What Slurm's versions print, as the same values."""

import json
from dataclasses import replace

import pytest

from moulin.domain.errors import EngineUnavailable, InvalidSpec
from moulin.domain.health import Quarantine
from moulin.domain.ids import NodeId
from moulin.domain.slurmwords import expand_hosts, parse_slurm_memory_bytes, parse_slurm_time_s
from moulin.domain.workload import TaskTemplate
from moulin.engines.slurm.commands import sbatch_words
from moulin.engines.slurm.formats import (
    SlurmJob,
    base_state,
    gres_count,
    read_accounting,
    read_jobs,
    read_nodes,
    read_partitions,
)
from moulin.engines.slurm.importing import read_cluster_nodes, read_cluster_partitions
from moulin.engines.slurm.places import calmed, places
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.slurm.submission import job_request
from tests.conformance.engine_bench import make_step

NO_SETTINGS = SlurmSettings(directory=None)  # type: ignore[arg-type]
SAME = {"job_id": 7, "name": "a", "user_name": "ann", "partition": "gpu", "nodes": "n[1-2]"}


def some(value):
    return {"set": True, "infinite": False, "number": value}


OLD = {
    **SAME,
    "comment": "moulin:x:a",
    "job_state": "COMPLETING",
    "exit_code": 3 << 8,
    "cpus": 8,
    "node_count": 2,
    "memory_per_node": 500,
    "memory_per_cpu": None,
    "start_time": 5,
    "end_time": 9,
    "time_limit": 60,
    "state_reason": "None",
    "state_description": "",
    "tres_per_node": "gres:gpu:h100:2",
}
NEW = {
    **SAME,
    "comment": "moulin:x:a",
    "job_state": ["COMPLETED", "COMPLETING"],
    "cpus": some(8),
    "exit_code": {"return_code": some(3), "signal": {"id": some(0), "name": ""}},
    "node_count": some(2),
    "memory_per_node": some(500),
    "start_time": some(5),
    "end_time": some(9),
    "time_limit": some(60),
    "state_reason": "None",
    "tres_per_node": "gres/gpu:h100:2",
}


def test_jobs_of_two_versions_are_the_same():
    old, new = (read_jobs(json.dumps({"jobs": [job]}).encode())[0] for job in (OLD, NEW))
    assert old == new
    assert (old.state, old.is_completing, old.has_ended, old.holds_nodes) == (
        *("COMPLETED", True, False),
        True,
    )
    assert (old.exit_code, old.cpus, old.memory_bytes, old.accelerators) == (3, 4, 500 << 20, 2)
    assert (old.time_limit_s, old.reason) == (3600, "")


@pytest.mark.parametrize(
    ("more", "wall_s"),
    [
        ({"job_state": "RUNNING"}, 9),
        ({"job_state": ["RUNNING"], "time_limit": some(60), "end_time": some(9)}, 9),
        ({"job_state": "SUSPENDED"}, 0),
        ({"job_state": "PENDING"}, 0),
        ({"job_state": ["RUNNING", "COMPLETING"]}, 0),
        ({"job_state": "RUNNING", "time_limit": None}, 0),
        ({"job_state": "RUNNING", "time_limit": 4294967295}, 0),
        ({"job_state": "RUNNING", "time_limit": {"set": False, "infinite": True, "number": 0}}, 0),
    ],
)
def test_slurm_ends_what_runs_under_a_limit(more, wall_s):
    job = read_jobs(json.dumps({"jobs": [{**OLD, **more}]}).encode())[0]
    assert job.wall_ns == wall_s * 10**9


@pytest.mark.parametrize(
    ("written", "code", "signal"),
    [
        (512, 2, 0),
        (9, 0, 9),
        ({"return_code": some(0), "signal": {"signal_id": 15}}, 0, 15),
        ({"return_code": 4, "signal": {"id": some(0)}}, 4, 0),
        (None, 0, 0),
    ],
)
def test_an_exit_code_in_every_form(written, code, signal):
    job = read_jobs(json.dumps({"jobs": [{**SAME, "exit_code": written}]}).encode())[0]
    assert (job.exit_code, job.signal) == (code, signal)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"jobs": 3}',
        # Without a controller squeue of 22.05 ends with status 0 and this.
        b'{"errors": [{"description": "Failed while looking for jobs"}], "jobs": []}',
    ],
)
def test_what_is_no_list_of_jobs_says_nothing_of_them(data):
    with pytest.raises(EngineUnavailable):
        read_jobs(data)


def test_a_node_with_words_in_its_values():
    text = (
        "NodeName=n1 Arch=x86_64 CPUAlloc=4 CPUEfctv=60 CPUTot=64 Gres=gpu:h100:8(S:0-1),nvme:2"
        " GresUsed=gpu:h100:3(IDX:0-2),nvme:0 NodeAddr=10.0.0.1 OS=Linux 6.1.0 #1 SMP @0"
        " RealMemory=4000 AllocMem=1500 MemSpecLimit=500 State=MIXED+DRAIN*"
        " Partitions=gpu,all Reason=bad fan = hot [root@2026-01-01T00:00:00]\n"
    )
    node = read_nodes(text)[0]
    assert (node.cpus, node.memory_bytes, node.accelerators) == (60, 3500 << 20, 8)
    assert (node.used_cpus, node.used_memory_bytes, node.used_accelerators) == (4, 1500 << 20, 3)
    assert node.flags == {"mixed", "drain", "not_responding"}
    assert node.partitions == ("gpu", "all")
    assert "bad fan" in node.reason


def test_a_partition_without_a_limit():
    text = "PartitionName=long MaxTime=UNLIMITED Nodes=n[1-3] State=DOWN TotalNodes=3 Default=YES"
    partition = read_partitions(text)[0]
    assert (partition.time_limit_s, partition.node_count) == (0, 3)
    assert (partition.state, partition.is_default) == ("DOWN", True)


@pytest.mark.parametrize(
    ("state", "is_closed"), [("UP", False), ("DOWN", False), ("DRAIN", True), ("INACTIVE", True)]
)
def test_nodes_of_a_partition_that_refuses_jobs_are_closed(state, is_closed):
    partition = read_partitions(f"PartitionName=p Nodes=n[1-2] State={state}")[0]
    nodes = nodes_of("n1 State=IDLE", "n2 State=DOWN Reason=dead")
    found = places(nodes, (), frozenset(), NO_SETTINGS, partition=partition)
    assert [state in node.closed_because for node in found] == [is_closed] * 2
    assert "dead" in found[1].closed_because
    forms = ({"state": state}, {"partition": {"state": [state]}})
    for form in forms:
        told = json.dumps({"partitions": [{"name": "p", **form}]}).encode()
        assert read_cluster_partitions(told)[0].is_closed is is_closed


@pytest.mark.parametrize(
    ("words", "is_linear", "is_exclusive"),
    [
        ("OverSubscribe=EXCLUSIVE", False, True),
        ("Shared=EXCLUSIVE", False, True),
        ("OverSubscribe=NO", False, False),
        ("OverSubscribe=NO", True, True),
        ("OverSubscribe=FORCE:4", True, False),
        ("Exclusive=NODE OverSubscribe=NO", False, True),
        ("Exclusive=TOPO OverSubscribe=NO", False, True),
        ("Exclusive=USER OverSubscribe=NO", False, False),
        ("Exclusive=NO OverSubscribe=NO", False, False),
        ("ExclusiveTopo=YES OverSubscribe=NO", False, True),
        ("ExclusiveTopo=NO OverSubscribe=NO", False, False),
    ],
)
def test_a_partition_that_gives_whole_nodes(words, is_linear, is_exclusive):
    (partition,) = read_partitions(f"PartitionName=p Nodes=n1 {words}", is_linear=is_linear)
    assert partition.is_exclusive is is_exclusive
    (found,) = places(nodes_of("n1"), (), frozenset(), NO_SETTINGS, partition=partition)
    assert found.is_exclusive is is_exclusive


@pytest.mark.parametrize(
    ("form", "is_exclusive"),
    [
        ({"partition": {"exclusive": "NODE"}, "maximums": {"shares": 0}}, True),
        ({"partition": {"exclusive": "USER"}, "maximums": {"shares": 0}}, False),
        ({"partition": {"exclusive": "NO"}, "maximums": {"shares": 0}}, False),
        ({"partition": {"state": ["UP"]}, "maximums": {"shares": 0}}, True),
        ({"partition": {"state": ["UP"]}, "maximums": {"shares": 1}}, False),
        ({"state": "UP"}, False),
    ],
)
def test_a_partition_that_gives_whole_nodes_in_json(form, is_exclusive):
    told = json.dumps({"partitions": [{"name": "p", **form}]}).encode()
    assert read_cluster_partitions(told)[0].is_exclusive is is_exclusive


@pytest.mark.parametrize(
    "state", ["IDLE+MAINTENANCE", "IDLE+MAINT", "IDLE+EXTERNAL", "IDLE+DRAIN", "IDLE+INVALID_REG"]
)
def test_a_node_that_slurm_keeps_for_others_is_closed_in_each_form(state):
    (text,) = nodes_of(f"n1 State={state}")
    told = {"nodes": [{"name": "n1", "state": state.split("+"), "real_memory": 4000}]}
    (body,) = read_cluster_nodes(json.dumps(told).encode())
    for node in (text, body):
        (found,) = places((node,), (), frozenset(), NO_SETTINGS)
        assert found.closed_because


def test_memory_that_slurm_keeps_for_itself_is_nobodys():
    (text,) = read_nodes("NodeName=n1 RealMemory=4000 MemSpecLimit=500")
    told = {"nodes": [{"name": "n1", "real_memory": 4000, "specialized_memory": 500}]}
    (body,) = read_cluster_nodes(json.dumps(told).encode())
    assert text.memory_bytes == body.memory_bytes == 3500 << 20


@pytest.mark.parametrize(
    ("words", "state"),
    [
        ("CONFIGURING", "CONFIGURING"),
        (["RUNNING", "CONFIGURING"], "CONFIGURING"),
        (["RUNNING"], "RUNNING"),
        (["PENDING", "REQUEUED"], "PENDING"),
        (["COMPLETED", "COMPLETING"], "COMPLETED"),
    ],
)
def test_a_job_whose_nodes_boot_is_no_job_that_runs(words, state):
    assert base_state(words)[0] == state


def test_accounting_of_a_job_and_of_none():
    text = "12.batch|x|COMPLETED|0:0|a|b\n12|a|TIMEOUT|0:15|a|b\n7_3|a|FAILED|2:0|a|b\n"
    found = read_accounting(text)
    assert sorted(found) == ["12", "7_3"]
    assert (found["12"].id, found["12"].state, found["12"].signal) == (12, "TIMEOUT", 15)
    assert (found["7_3"].state, found["7_3"].exit_code) == ("FAILED", 2)
    assert read_accounting("") == {}


@pytest.mark.parametrize("written", ["", "soon", "1:2:3:4", "-5", "1-", "1.5"])
def test_a_time_that_is_none(written):
    if written == "":
        assert parse_slurm_time_s(written) == 0
        return
    with pytest.raises(InvalidSpec):
        parse_slurm_time_s(written)


@pytest.mark.parametrize("written", ["n[1-999999999]", "n[1-3,-]", "n[,]"])
def test_a_list_of_hosts_that_is_broken(written):
    with pytest.raises(InvalidSpec):
        expand_hosts(written)


def test_amounts_of_memory_and_devices():
    assert parse_slurm_memory_bytes("1T") == 1 << 40
    assert gres_count("(null)") == (0, "")
    assert gres_count("gpu") == (1, "")
    assert gres_count("gpu:2080ti:4(S:0),gpu:3090:2") == (6, "2080ti")
    assert gres_count("gres/gpu:1g.5gb=7") == (7, "1g.5gb")
    assert gres_count("gres/gpu=12") == (12, "")
    assert expand_hosts("(null)") == ()


def nodes_of(*lines):
    return read_nodes(
        "\n".join(f"NodeName={line} Partitions=p CPUTot=8 RealMemory=100" for line in lines)
    )


def test_what_others_hold_is_taken_and_what_we_hold_is_not():
    nodes = nodes_of("n1 CPUAlloc=5 AllocMem=60 State=MIXED", "n2 State=DOWN* Reason=dead")
    jobs = [
        SlurmJob(id=1, name="ours", state="RUNNING", nodes="n1", cpus=2, memory_bytes=20 << 20),
        SlurmJob(id=2, name="foreign", state="RUNNING", nodes="n1", cpus=3, memory_bytes=40 << 20),
    ]
    settings = SlurmSettings(directory=None, prefix="p-", machine_class="H100")  # type: ignore[arg-type]
    found = places(nodes, jobs, frozenset({1}), settings)
    assert [node.node for node in found] == ["p-n1", "p-n2"]
    assert (found[0].taken_cpu_milli, found[0].taken_memory_bytes) == (3000, 40 << 20)
    assert (found[1].is_reachable, found[1].closed_because) == (False, "down not_responding: dead")


@pytest.mark.parametrize(
    ("state", "is_offered", "is_reachable"),
    [
        ("IDLE+CLOUD+POWERED_DOWN", True, True),
        ("IDLE+CLOUD+POWER_DOWN", True, True),
        ("MIXED+CLOUD+NOT_RESPONDING+POWERING_UP", True, True),
        ("ALLOCATED#", True, True),
        ("IDLE~", True, True),
        ("IDLE+CLOUD+POWERING_DOWN", False, True),
        ("IDLE+CLOUD+DRAIN+POWERED_DOWN", False, True),
        ("DOWN+CLOUD+POWERED_DOWN", False, False),
        ("DOWN+CLOUD+NOT_RESPONDING+POWERING_UP", False, False),
        ("IDLE+CLOUD+NOT_RESPONDING", False, False),
    ],
)
def test_a_node_that_saves_power_is_offered_because_only_a_job_wakes_it(
    state, is_offered, is_reachable
):
    (found,) = places(nodes_of(f"n1 State={state}"), (), frozenset(), NO_SETTINGS)
    assert (not found.closed_because, found.is_reachable) == (is_offered, is_reachable)


def test_what_was_taken_for_one_reading_only_is_nobody_s():
    settings = SlurmSettings(directory=None)  # type: ignore[arg-type]
    busy = places(nodes_of("n1 CPUAlloc=5 State=MIXED"), (), frozenset(), settings)
    idle = places(nodes_of("n1 CPUAlloc=0 State=IDLE"), (), frozenset(), settings)
    assert calmed(busy, idle)[0].taken_cpu_milli == 0
    assert calmed(busy, busy)[0].taken_cpu_milli == 5000


def test_places_of_a_delegated_pool_have_no_names_and_what_is_closed_is_last():
    nodes = nodes_of("a State=DRAIN", "b CPUAlloc=8 State=ALLOCATED", "c State=IDLE")
    settings = SlurmSettings(directory=None, prefix="p-", is_delegated=True)  # type: ignore[arg-type]
    found = places(nodes, (), frozenset(), settings)
    assert [node.node for node in found[:3]] == ["p-00000", "p-00001", "p-00002"]
    assert [node.taken_cpu_milli for node in found[:3]] == [0, 8000, 0]
    assert [bool(node.closed_because) for node in found[:3]] == [False, False, True]
    assert [(node.node, node.is_watched_only) for node in found[3:]] == [
        (f"p-{name}", True) for name in "abc"
    ]
    bare = places(nodes, (), frozenset(), replace(settings, reads_nodes=False))
    assert list(bare) == list(found[:3])


def test_a_machine_in_quarantine_is_a_place_less_and_jobs_keep_away_from_it():
    nodes = nodes_of("a State=IDLE", "b State=IDLE")
    settings = SlurmSettings(directory=None, prefix="p-", is_delegated=True)  # type: ignore[arg-type]
    avoided = {NodeId("p-a"): Quarantine(since_ns=1, words="XID 79")}
    found = places(nodes, (), frozenset(), settings, avoided=avoided)
    assert [node.closed_because for node in found] == ["", "in quarantine: XID 79", "", ""]
    step = make_step("x", TaskTemplate(command=("true",)), nodes=("p-00001",))
    job = job_request(step, settings, avoided=("a",))
    assert (job.hosts, job.excluded) == ((), ("a",))
    assert "--exclude=a" in sbatch_words(job)
    look = job_request(replace(step, nodes=(NodeId("p-a"),)), settings, avoided=("a",))
    assert (look.hosts, look.excluded) == (("a",), ())
    owned = job_request(step, replace(settings, is_delegated=False), avoided=("a",))
    assert owned.excluded == ()

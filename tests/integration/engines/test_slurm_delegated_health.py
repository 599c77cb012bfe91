"""A delegated pool of a real Slurm: machines tell how well they are, and jobs keep away from bad ones."""

import contextlib
import re
import shutil
from dataclasses import replace
from functools import partial

import pytest

from moulin.domain.errors import EngineRefused, EngineUnavailable
from moulin.domain.health import NodeReading, Quarantine
from moulin.domain.ids import NodeId
from moulin.domain.observation import TaskPhase
from moulin.domain.workload import Resources, TaskTemplate
from moulin.engines.slurm.engine import SlurmEngine
from moulin.scheduler.health import symptoms_of
from tests.conformance.engine_bench import make_step, phase, wait_for, wait_until
from tests.integration.engines.delegated_bench import places_of
from tests.integration.engines.test_slurm_health import Bench as HealthBench
from tests.integration.engines.test_slurm_health import has_devices

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(not shutil.which("cc"), reason="needs cc")]
BAD = Quarantine(since_ns=1, words="device 2 shows xid 79")
MACHINES = tuple(NodeId(f"p-node-{index}") for index in range(4))


class Bench(HealthBench):
    """Slurm chooses the machines, whose driver is replayed."""

    def renew(self) -> None:
        super().renew()
        self.renew_with(is_delegated=True, prefix="p-")

    def renew_with(self, **more) -> None:
        settings = replace(self.engine._settings, **more)
        self.engine = SlurmEngine(settings, self.engine._cluster._client, clock=self.engine._clock)
        self.places = places_of(self.engine)

    def start(self, name: str, *, accelerators: int = 0, nodes: int = 1, command="sleep 60"):
        task = TaskTemplate(command=("sh", "-c", command))
        wanted = Resources(cpu_milli=1000, memory_bytes=2**28, accelerators=accelerators)
        steps = [
            replace(
                make_step(name, task, rank=rank, nodes=self.places[:nodes]),
                resources=wanted,
                devices=tuple(range(accelerators)),
            )
            for rank in range(nodes)
        ]
        for step in steps:
            self.engine.start(step)
        return steps

    def host(self, step) -> NodeId | None:
        return wait_for(self, step.step, TaskPhase.RUNNING).host


@pytest.fixture
def bench(tmp_path, slurm_cluster):
    made = Bench(tmp_path, slurm_cluster)
    # Slurm asks a node that another test resumed whether it is there, when it comes to it.
    wait_until(lambda: not any(node.closed_because for node in made.engine.capacity()))
    yield made
    tell(made.engine, {})
    made.close()


def tell(engine: SlurmEngine, nodes) -> None:
    """Tell of quarantines as a control plane does: again, until all of it was done."""

    def is_told() -> bool:
        with contextlib.suppress(EngineUnavailable):
            engine.avoid(nodes)
            return True
        return False

    wait_until(is_told)


def devices_of(reading: NodeReading) -> dict[str, tuple]:
    return {each.uuid: each.steps for each in reading.devices or ()}


def test_machines_are_watched_and_tell_which_task_saw_what(bench):
    watched = [node for node in bench.engine.capacity() if node.is_watched_only]
    assert tuple(node.node for node in watched) == MACHINES
    assert len(bench.places) == 4
    assert [node.accelerators for node in watched] == [4] * 4
    gang = bench.start("g", accelerators=4, nodes=2)
    hosts = [bench.host(step) for step in gang]
    assert len(set(hosts)) == 2
    assert set(hosts) <= set(MACHINES)
    for step, host in zip(gang, hosts, strict=True):
        wait_until(partial(has_devices, bench, host))
        expected = dict.fromkeys(("GPU-a", "GPU-b", "GPU-c", "GPU-d"), (step.step,))
        assert devices_of(bench.reading(host)) == expected
    before = bench.reading(hosts[0])
    bench.say("device 0 GPU-a\ndevice 1 GPU-b\necc 3 7\ndevice 2 GPU-c\ndevice 3 GPU-d\nxid 2 79\n")
    wait_until(lambda: bool(symptoms_of(before, bench.reading(hosts[0]))))
    [found] = symptoms_of(before, bench.reading(hosts[0]))
    assert (found.signal.value, found.value, found.uuid) == ("xid", 79, "GPU-c")
    assert found.steps == (gang[0].step,)


def test_slurm_chooses_no_machine_in_quarantine_and_a_look_at_one_goes_there(bench):
    bench.engine.avoid(dict.fromkeys(MACHINES[:3], BAD))
    closed = [node.closed_because for node in bench.engine.capacity() if node.node in bench.places]
    is_avoided = [each.endswith("in quarantine: device 2 shows xid 79") for each in closed]
    assert is_avoided == [False, True, True, True]
    steps = [*bench.start("a"), *bench.start("b")]
    assert {bench.host(step) for step in steps} == {MACHINES[3]}
    look = make_step("look", TaskTemplate(command=("sleep", "60")), nodes=(MACHINES[1],))
    bench.engine.start(look)
    assert bench.host(look) == MACHINES[1]


def test_what_waits_in_slurm_is_kept_away_too_and_let_go_again(bench, slurm_cluster):
    slurm_cluster.run("scontrol", "update", "node=node-[0-3]", "state=drain", "reason=kept back")
    try:
        steps = [*bench.start("a"), *bench.start("b")]
        look = make_step("look", TaskTemplate(command=("sleep", "60")), nodes=(MACHINES[0],))
        bench.engine.start(look)
        wait_until(lambda: all(phase(bench, each.step) == "starting" for each in steps))
        bench.engine.avoid(dict.fromkeys(MACHINES[:3], BAD))
    finally:
        slurm_cluster.run("scontrol", "update", "node=node-[0-3]", "state=resume")
    assert {bench.host(step) for step in steps} == {MACHINES[3]}
    assert bench.host(look) == MACHINES[0]


def test_a_machine_that_is_taken_back_gets_what_waits(bench, slurm_cluster):
    bench.engine.avoid(dict.fromkeys(MACHINES[1:], BAD))
    slurm_cluster.run("scontrol", "update", "node=node-0", "state=drain", "reason=kept back")
    try:
        [step] = bench.start("a")
        number = wait_for_number(bench, step)
        shown = slurm_cluster.run("scontrol", "show", "job", number)
        assert "ExcNodeList=node-[1-3]" in shown
        bench.engine.avoid({})
        assert bench.host(step) in MACHINES[1:]
    finally:
        slurm_cluster.run("scontrol", "update", "node=node-0", "state=resume")


def wait_for_number(bench: Bench, step) -> str:
    waiting: list[str] = []

    def is_listed() -> bool:
        found = bench.engine.standings([step.step]).get(step.step)
        waiting[:] = [found.job] if found is not None and found.job else []
        return bool(waiting)

    wait_until(is_listed)
    return waiting[0]


def test_a_quarantine_drains_the_node_once_if_that_is_wanted_and_its_end_resumes_it(
    bench, slurm_cluster
):
    node = MACHINES[2]
    bad = {node: BAD}
    bench.renew_with(drains=True)
    try:
        tell(bench.engine, bad)
        assert drained(slurm_cluster) == (True, "moulin: device 2 shows xid 79")
        # Somebody repairs it and says so in Slurm: that stays, whatever is told again.
        slurm_cluster.run("scontrol", "update", "node=node-2", "state=resume")
        tell(bench.engine, bad)
        bench.renew_with(drains=True)
        tell(bench.engine, bad)
        assert not drained(slurm_cluster)[0]
        # Another quarantine of the same node is another drain, and its end another resume.
        tell(bench.engine, {node: replace(BAD, since_ns=2)})
        assert drained(slurm_cluster)[0]
        tell(bench.engine, {})
        assert not drained(slurm_cluster)[0]
        # What somebody else drained is theirs.
        slurm_cluster.run("scontrol", "update", "node=node-2", "state=drain", "reason=a fan")
        tell(bench.engine, {node: replace(BAD, since_ns=3)})
        tell(bench.engine, {})
        assert drained(slurm_cluster) == (True, "a fan")
    finally:
        slurm_cluster.run("scontrol", "update", "node=node-2", "state=resume")


def test_a_place_in_quarantine_and_a_node_that_is_down_keep_no_other_from_being_drained(
    bench, slurm_cluster
):
    bench.renew_with(drains=True)
    down = dict.fromkeys((bench.places[0], MACHINES[1], MACHINES[2]), BAD)
    try:
        with slurm_cluster.node_down("node-1", "no power"):
            with pytest.raises(EngineUnavailable, match="node-1"):  # told again until it answers
                bench.engine.avoid(down)
            assert drained(slurm_cluster) == (True, "moulin: device 2 shows xid 79")
            assert "no power" in slurm_cluster.run("scontrol", "show", "node", "node-1", "-o")
    finally:
        slurm_cluster.run("scontrol", "update", "node=node-2", "state=resume")


def test_two_pools_resume_a_node_when_neither_wants_it_drained_any_more(
    bench, slurm_cluster, tmp_path
):
    shared = {"drains": True, "health": tmp_path / "machines"}
    bench.renew_with(**shared)
    first = bench.engine
    bench.renew_with(**shared, prefix="q-", directory=tmp_path / "other")
    second, other = bench.engine, {NodeId("q-node-2"): replace(BAD, since_ns=5)}
    bench.engine = first
    tell(first, {MACHINES[2]: BAD})
    tell(second, other)
    tell(first, {})
    assert drained(slurm_cluster)[0]
    tell(second, {})
    assert not drained(slurm_cluster)[0]


def test_what_slurm_s_operators_alone_may_do_is_said_once(bench, caplog, monkeypatch):
    def refuse(*_):
        raise EngineRefused("Invalid user id", hint="ask an operator")

    bench.renew_with(drains=True)
    monkeypatch.setattr(bench.engine._cluster._client, "drain", refuse, raising=False)
    for _ in range(2):
        bench.engine.avoid({MACHINES[2]: BAD})
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    assert "ask an operator" in caplog.text


def test_without_the_setting_slurm_s_nodes_are_left_alone(bench, slurm_cluster):
    bench.engine.avoid({MACHINES[2]: BAD})
    assert not drained(slurm_cluster)[0]


def drained(cluster) -> tuple[bool, str]:
    """Say whether Slurm shows the node as drained, and why."""
    shown = cluster.run("scontrol", "show", "node", "node-2", "-o")
    reason = re.search(r"Reason=(.*?) \[", shown)
    return "+DRAIN" in shown, reason[1] if reason is not None else ""

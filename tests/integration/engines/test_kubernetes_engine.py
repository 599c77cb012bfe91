"""The verbs of the Kubernetes engine, by the official client, against a stand-in of the API."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from moulin.domain.errors import EngineRefused, EngineUnavailable, InUse, NotFound
from moulin.domain.ids import NodeId, StepId
from moulin.domain.observation import TaskPhase
from moulin.domain.workload import TaskTemplate
from moulin.engines.kubernetes.api import Api, open_client
from moulin.engines.kubernetes.engine import KubernetesEngine
from moulin.engines.kubernetes.manifests import KubernetesPool, object_name
from tests.conformance.engine_bench import ManualClock, make_step
from tests.kubernetes_standin import KUBECONFIG, Standin, standin

TASK = TaskTemplate(command=("true",), image="registry.example/train:1")


@dataclass
class Front:
    cluster: Standin
    kubeconfig: str
    queue: str = ""

    def __post_init__(self) -> None:
        self.clock = ManualClock()
        self.renew()

    def renew(self) -> None:
        pool = KubernetesPool(name="k", queue=self.queue, machine_class="H100")
        api = Api(open_client(self.kubeconfig, ""), pool.namespace)
        self.engine = KubernetesEngine(pool, api, clock=self.clock)

    def phases(self, *steps) -> list[TaskPhase]:
        return [seen.phase for seen in self.engine.observe([step.step for step in steps])]


@pytest.fixture
def front(tmp_path) -> Iterator[Front]:
    with standin() as cluster:
        for name in ("w1", "w2"):
            cluster.add_node(name)
        config = tmp_path / "kubeconfig"
        config.write_text(KUBECONFIG.format(address=cluster.address))
        yield Front(cluster, str(config))


def single(name: str = "a"):
    return make_step(name, TASK, nodes=("k-w1",))


def gang():
    return [make_step("g", TASK, nodes=("k-w1", "k-w2"), rank=rank) for rank in (0, 1)]


def test_a_task_from_its_start_to_its_end(front):
    step = single()
    claims = {front.engine.start(step).handle for _ in range(2)}
    front.renew()
    claims.add(front.engine.start(step).handle)
    assert len(claims) == len(front.cluster.objects["jobs"]) == 1
    assert front.phases(step) == [TaskPhase.STARTING]
    front.cluster.runs(step.step)
    assert front.phases(step) == [TaskPhase.RUNNING]
    assert front.engine.steps() == (step.step,)
    with pytest.raises(InUse):
        front.engine.forget(step.step)
    front.cluster.ends(step.step, 3)
    [seen] = front.engine.observe([step.step])
    assert (seen.phase, seen.exit_code) == (TaskPhase.EXITED, 3)
    front.engine.stop(step.step, 0)
    assert front.engine.observe([step.step])[0].exit_code == 3
    for _ in range(2):
        front.engine.forget(step.step)
    assert front.phases(step) == [TaskPhase.ABSENT]
    assert not any(front.cluster.objects[kind] for kind in ("jobs", "pods", "secrets"))


def test_ten_thousand_could_be_observed_by_two_calls(front):
    steps = [single(name) for name in "abcdef"]
    for step in steps:
        front.engine.start(step)
    front.cluster.calls.clear()
    assert front.phases(*steps) == [TaskPhase.STARTING] * 6
    assert front.cluster.calls == ["GET secrets", "GET pods"]


def test_a_gang_is_one_jobset_and_waits_for_its_queue(front):
    front.queue = "team-a"
    front.renew()
    ranks = gang()
    for step in ranks:
        front.engine.start(step)
    [jobset] = front.cluster.objects["jobsets"].values()
    assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert front.phases(*ranks) == [TaskPhase.STARTING] * 2
    front.cluster.admit(jobset["metadata"]["name"])
    for step in ranks:
        front.cluster.runs(step.step)
    assert front.phases(*ranks) == [TaskPhase.RUNNING] * 2
    assert len({front.cluster.pod(step.step)["spec"]["nodeName"] for step in ranks}) == 2
    front.engine.stop(ranks[0].step, 5)
    front.engine.stop(ranks[1].step, 5)
    seen = front.engine.observe([step.step for step in ranks])
    assert [found.phase for found in seen] == [TaskPhase.GONE] * 2
    assert {found.ended_at_ns for found in seen} == {front.clock.at_ns}
    for step in ranks:
        front.engine.forget(step.step)
    assert not any(front.cluster.objects[kind] for kind in ("jobsets", "pods", "secrets"))


def test_what_waits_says_what_for_without_another_call(front):
    front.queue = "team-a"
    front.renew()
    ranks = gang()
    for step in ranks:
        front.engine.start(step)
    names = [step.step for step in ranks]
    assert front.engine.standings(names) == {}
    front.phases(*ranks)
    front.cluster.calls.clear()
    [jobset] = front.cluster.objects["jobsets"]
    found = front.engine.standings(names)
    assert {(each.job, each.word) for each in found.values()} == {(jobset, "Suspended")}
    assert {each.meaning for each in found.values()} == {"its Kueue queue has not admitted it"}
    assert front.cluster.calls == []

    front.cluster.admit(jobset)
    words = {"reason": "Unschedulable", "message": "0/2 nodes are available"}
    front.cluster.pod(names[0])["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", **words}
    ]
    front.cluster.runs(names[1])
    front.phases(*ranks)
    found = front.engine.standings(names)
    assert (found[names[0]].word, found[names[0]].detail) == tuple(words.values())
    assert (found[names[1]].job, found[names[1]].word) == (jobset, "")
    assert found[names[0]].failure == ""
    front.cluster.status = 503
    front.phases(*ranks)
    silent = front.engine.standings(names)[names[0]]
    assert (silent.word, bool(silent.failure)) == ("Unschedulable", True)


def test_a_start_after_a_stop_is_refused_and_makes_nothing(front):
    step = single()
    front.engine.stop(step.step, 0)
    front.engine.stop(step.step, 0)
    front.renew()
    with pytest.raises(EngineRefused, match="stopped before"):
        front.engine.start(step)
    assert front.phases(step) == [TaskPhase.ABSENT]
    assert not front.cluster.objects["jobs"]


def test_a_start_that_a_crash_cut_short_is_finished(front):
    step = single()
    front.engine.start(step)
    front.cluster.delete("jobs", object_name(step.attempt))
    del front.cluster.objects["secrets"][object_name(step.step)]["metadata"]["annotations"]
    assert front.phases(step) == [TaskPhase.ABSENT]
    front.engine.start(step)
    assert front.phases(step) == [TaskPhase.STARTING]


def test_a_job_that_somebody_deleted_is_gone(front):
    step = single()
    front.engine.start(step)
    front.cluster.delete("jobs", object_name(step.attempt))
    assert front.phases(step) == [TaskPhase.GONE]


def test_a_node_that_does_not_answer_ends_nothing(front):
    step = single()
    front.engine.start(step)
    front.cluster.runs(step.step)
    front.cluster.add_node("w1", is_ready=False)
    assert [node.is_reachable for node in front.engine.capacity()] == [False, True]
    assert front.phases(step) == [TaskPhase.UNREACHABLE]
    front.cluster.add_node("w1")
    front.engine.capacity()
    assert front.phases(step) == [TaskPhase.RUNNING]


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_an_api_that_does_not_answer_ends_nothing(front, status):
    step = single()
    front.engine.start(step)
    front.cluster.status = status
    assert front.phases(step) == [TaskPhase.UNREACHABLE]
    for call in (front.engine.capacity, lambda: front.engine.start(single("b"))):
        with pytest.raises(EngineUnavailable):
            call()


def test_what_the_api_forbids_is_refused(front):
    front.cluster.status = 403
    with pytest.raises(EngineRefused, match="403"):
        front.engine.start(single())


def test_a_log_is_read_in_pieces_to_its_end(front):
    step = single()
    front.engine.start(step)
    front.cluster.logs[front.cluster.pod(step.step)["metadata"]["name"]] = b"0123456789\xff\n"
    front.cluster.runs(step.step)
    chunk = front.engine.logs(step.step, 4, 100)
    assert (chunk.data, chunk.next_cursor, chunk.is_end) == (b"456789\xff\n", 12, False)
    front.cluster.ends(step.step, 0)
    pieces, cursor, is_end = b"", 0, False
    while not is_end:
        chunk = front.engine.logs(step.step, cursor, 5)
        pieces, cursor, is_end = pieces + chunk.data, chunk.next_cursor, chunk.is_end
    assert pieces == b"0123456789\xff\n"
    with pytest.raises(NotFound):
        front.engine.logs(StepId("job_b.u0.g1.t0"), 0, 1)


def test_a_kubeconfig_that_is_none_is_told(tmp_path):
    with pytest.raises(EngineUnavailable, match="reach Kubernetes"):
        open_client(str(tmp_path / "none"), "")


def test_nodes_are_as_well_as_the_cluster_says(front):
    assert [each.node for each in front.engine.health()] == ["k-w1", "k-w2"]
    [condition] = front.cluster.objects["nodes"]["w2"]["status"]["conditions"]
    pressed = condition | {"type": "DiskPressure", "status": "True", "reason": "KubeletHasDisk"}
    front.cluster.objects["nodes"]["w2"]["status"]["conditions"].append(pressed)
    [found] = front.engine.health((NodeId("k-w2"),))
    assert (found.complaints, found.down_because) == (("DiskPressure: KubeletHasDisk",), "")

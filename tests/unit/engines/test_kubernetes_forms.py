"""What is asked of Kubernetes fits its published schemas, and what it says is read as it means it."""

from dataclasses import replace
from decimal import Decimal

import kubernetes_validate
import pytest

from moulin.domain.errors import EngineRefused
from moulin.domain.ids import NodeId, step_id
from moulin.domain.observation import TaskPhase
from moulin.domain.workload import EndpointSpec, Resources, TaskTemplate
from moulin.engines.kubernetes.manifests import (
    FENCED,
    STARTED,
    KubernetesPool,
    claim,
    environment,
    refuse_what_cannot_run,
    workload,
)
from moulin.engines.kubernetes.readings import capacity, instant_ns, observation, quantity
from tests.conformance.engine_bench import make_step

POOL = KubernetesPool(name="k", namespace="teams", machine_class="H100")
QUEUED = replace(POOL, queue="team-a")
TASK = TaskTemplate(command=("python", "train.py"), image="registry.example/train:1")
SINGLE = replace(
    make_step("a", TASK, nodes=("k-worker-1",)),
    resources=Resources(cpu_milli=1500, memory_bytes=2 * 10**9, accelerators=2),
)
GANG = make_step("a", TASK, nodes=("k-w1", "k-w2", "k-w3"), rank=1)
VERSIONS = ("1.31", "1.34", kubernetes_validate.latest_version())


def valid(manifest, version):
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("pool", [POOL, QUEUED])
def test_a_single_task_is_a_job_of_the_published_schema(pool, version):
    job = workload(pool, SINGLE)
    valid(job, version)
    spec = job["spec"]["template"]["spec"]
    assert (job["kind"], job["spec"]["backoffLimit"], spec["restartPolicy"]) == ("Job", 0, "Never")
    [term] = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert term["matchFields"] == [
        {"key": "metadata.name", "operator": "In", "values": ["worker-1"]}
    ]
    assert spec["containers"][0]["resources"] == {
        "requests": {"cpu": "1500m", "memory": "2000000000", "nvidia.com/gpu": "2"},
        "limits": {"memory": "2000000000", "nvidia.com/gpu": "2"},
    }
    assert job["metadata"]["labels"].get("kueue.x-k8s.io/queue-name") == (pool.queue or None)
    assert job["spec"].get("suspend") == (True if pool.queue else None)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("by", [STARTED, FENCED])
def test_a_claim_is_a_secret_of_the_published_schema(by, version):
    secret = claim(POOL, SINGLE.step, by, environment(SINGLE) if by == STARTED else {})
    valid(secret, version)
    assert secret["immutable"]
    assert ("MOULIN_STEP_ID" in secret["stringData"]) == (by == STARTED)


def test_the_environment_is_in_the_secret_and_nowhere_else():
    step = replace(SINGLE, task=replace(TASK, env={"TOKEN": "no-one-shall-see"}))
    assert "no-one-shall-see" in str(claim(POOL, step.step, STARTED, environment(step)))
    assert "no-one-shall-see" not in str(workload(POOL, step))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_gang_is_a_jobset_whose_jobs_fit_the_published_schema(version):
    jobset = workload(QUEUED, GANG)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert jobset["spec"].keys() == {"suspend", "network", "failurePolicy", "replicatedJobs"}
    assert jobset["spec"]["failurePolicy"] == {"maxRestarts": 0}
    assert [
        (job["name"], job["replicas"], job["template"].keys())
        for job in jobset["spec"]["replicatedJobs"]
    ] == [(f"t{rank}", 1, {"metadata", "spec"}) for rank in range(3)]
    for job in jobset["spec"]["replicatedJobs"]:
        metadata = job["template"]["metadata"] | {"name": "one"}
        valid(
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": metadata,
                "spec": job["template"]["spec"],
            },
            version,
        )


def test_every_rank_asks_for_the_same_jobset_and_meets_at_the_pod_of_rank_0():
    gang = [replace(GANG, rank=rank, step=step_id(GANG.attempt, rank)) for rank in range(3)]
    assert len({str(workload(POOL, step)) for step in gang}) == 1
    name = workload(POOL, GANG)["metadata"]["name"]
    assert {environment(step)["MASTER_ADDR"] for step in gang} == {f"{name}-t0-0-0.{name}"}
    assert [environment(step)["RANK"] for step in gang] == ["0", "1", "2"]
    assert "CUDA_VISIBLE_DEVICES" not in environment(GANG)  # the device plugin's to say


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (replace(SINGLE, task=TaskTemplate(command=("true",))), "names no image"),
        (replace(SINGLE, nodes=(NodeId("other-1"),)), "not one of this engine"),
        (replace(SINGLE, endpoint=EndpointSpec(model="m")), "replicas of endpoints"),
        (replace(SINGLE, stop_signal="USR1"), "SIGTERM"),
        (replace(SINGLE, task=replace(TASK, env={"a b": "c"})), "variable 'a b'"),
        (replace(SINGLE, task=replace(TASK, command=())), "no command"),
        (replace(SINGLE, secrets={"T": "x"}), "secrets do not reach"),
        (replace(SINGLE, task=replace(TASK, bundle="0" * 64)), "are not copied"),
        (replace(SINGLE, task=replace(TASK, outputs={"o": "/o"})), "are not copied"),
    ],
)
def test_what_cannot_run_is_refused(step, words):
    with pytest.raises(EngineRefused, match=words):
        refuse_what_cannot_run(POOL, step)


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("1500m", "1.5"), ("31Gi", 31 * 2**30), ("5k", 5000), ("1e3", 1000), ("7n", "7e-9")],
)
def test_quantities(text, number):
    assert quantity(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "ten", "NaN", "1_0"])
def test_what_is_no_quantity(text):
    with pytest.raises(ValueError, match="quantity"):
        quantity(text)


def container(**state):
    return {"containerStatuses": [{"name": "task", "state": state}]}


RAN = {"startedAt": "2026-11-22T09:00:00Z", "finishedAt": "2026-11-22T09:00:05Z"}


@pytest.mark.parametrize(
    ("status", "is_away", "phase", "code"),
    [
        ({"phase": "Pending"}, False, TaskPhase.STARTING, None),
        ({"phase": "Running", **container(running=RAN)}, False, TaskPhase.RUNNING, None),
        ({"phase": "Running", **container(running=RAN)}, True, TaskPhase.UNREACHABLE, None),
        ({"phase": "Unknown", **container(running=RAN)}, False, TaskPhase.UNREACHABLE, None),
        ({"phase": "Failed", "reason": "NodeLost"}, False, TaskPhase.UNREACHABLE, None),
        ({"phase": "Failed", "reason": "Evicted"}, False, TaskPhase.GONE, None),
        (
            {"phase": "Failed", **container(terminated={"exitCode": 137, **RAN})},
            True,
            TaskPhase.EXITED,
            137,
        ),
        (
            {"phase": "Succeeded", **container(terminated={"exitCode": 0, **RAN})},
            False,
            TaskPhase.EXITED,
            0,
        ),
    ],
)
def test_pods(status, is_away, phase, code):
    seen = observation(SINGLE.step, {"status": status}, 7, is_away=is_away)
    assert (seen.phase, seen.exit_code) == (phase, code)
    if phase is TaskPhase.EXITED:
        assert seen.ended_at_ns - seen.started_at_ns == 5 * 10**9


def test_what_a_pod_waits_for_is_said():
    pulling = {"phase": "Pending", **container(waiting={"reason": "ImagePullBackOff"})}
    unplaced = {
        "phase": "Pending",
        "conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}
        ],
    }
    said = [
        observation(SINGLE.step, {"status": status}, 7, is_away=False).evidence
        for status in (pulling, unplaced)
    ]
    assert said == ["container waits: ImagePullBackOff", "pod waits: 0/1 nodes are available"]


def test_nodes():
    node = {
        "metadata": {"name": "w1"},
        "spec": {"unschedulable": True},
        "status": {
            "allocatable": {"cpu": "7900m", "memory": "31Gi", "nvidia.com/gpu": "8"},
            "conditions": [{"type": "Ready", "status": "Unknown"}],
            "nodeInfo": {"bootID": "boot-1"},
            "addresses": [{"type": "InternalIP", "address": "10.0.0.7"}],
        },
    }
    found = capacity(POOL, node)
    assert (found.node, found.cpu_milli, found.memory_bytes) == ("k-w1", 7900, 31 * 2**30)
    assert (found.accelerators, found.accelerator_class) == (8, "H100")
    assert (found.boot_id, found.address, found.is_reachable) == ("boot-1", "10.0.0.7", False)
    assert found.closed_because == "cordoned in Kubernetes"


def test_times_are_read_to_the_second_and_none_is_none():
    assert instant_ns("1970-01-01T00:01:00Z") == 60 * 10**9
    assert instant_ns(None) == 0

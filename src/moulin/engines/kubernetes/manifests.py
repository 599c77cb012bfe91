"""What Moulin asks of Kubernetes, as plain objects: pure, checked against the published schemas.

One task is a `batch/v1` Job; a gang is a JobSet with one Job a rank, which Kueue admits as a whole
where the pool names a queue. Moulin places: every pod is bound to its node by name. The environment,
which may hold secrets, is in a Secret of the task's own, and that Secret is also the proof that the
task was started or may never start. Nothing is ever retried by Kubernetes.

References: kubernetes.io, "Jobs", "Assigning Pods to Nodes"; jobset.sigs.k8s.io, API v1alpha2;
kueue.sigs.k8s.io, "Run A JobSet".
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moulin.domain.ids import NodeId, StepId, step_id
from moulin.domain.image import Form, read_image
from moulin.domain.needs import Need, image_lacks
from moulin.domain.plan import StartStep
from moulin.engines.task.specification import refusal, refuse_bad_words
from moulin.engines.task.spool import step_files
from moulin.engines.task.task_env import task_environment

Manifest = dict[str, Any]
POOL: Final = "moulin-pool"
ATTEMPT: Final = "moulin-attempt"
STEP: Final = "moulin-step"
BY: Final = "moulin-by"
STARTED: Final = "start"
FENCED: Final = "stop"
QUEUE: Final = "kueue.x-k8s.io/queue-name"
JOBSET_VERSION: Final = "jobset.x-k8s.io/v1alpha2"
MASTER_PORT: Final = 29500  # each pod has ports of its own
SCRATCH: Final = "/moulin"
_WITH_SETUP: Final = 'eval "$1" || exit; shift; exec "$@"'
_STRANGE: Final = re.compile(r"[^a-z0-9-]")
_NOT_YET: Final = (
    *(Need.ENDPOINT, Need.SECRETS, Need.FOLDER, Need.COPIES, Need.OBJECTS, Need.STOP_SIGNAL),
)
_VARIABLE: Final = re.compile(r"[A-Za-z_.-][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesPool:
    """How a pool appears in its cluster.

    `queue` is a Kueue LocalQueue of `namespace`, empty for none; `image` is for tasks that name
    none; `selector` says which nodes are the pool's; `accelerator` is the resource they count as.
    """

    name: str
    namespace: str = "default"
    queue: str = ""
    image: str = ""
    selector: str = ""
    accelerator: str = "nvidia.com/gpu"
    machine_class: str = ""


def object_name(name: str) -> str:
    """Return the name of an attempt's or step's objects.

    >>> object_name("job_01AB.u0.g1.t2")
    'job-01ab-u0-g1-t2'
    """
    return _STRANGE.sub("-", name.lower())


def node_name(pool: KubernetesPool, node: NodeId) -> str:
    """Return what the cluster calls a node of the pool; empty for another's."""
    prefix = f"{pool.name}-"
    return node.removeprefix(prefix) if node.startswith(prefix) else ""


def lacks(pool: KubernetesPool) -> tuple[Need, ...]:
    """Return what no node of the pool can carry, as `refuse_what_cannot_run` refuses it."""
    return (
        *_NOT_YET,
        *image_lacks({Form.REGISTRY}),
        *(() if pool.image else (Need.NO_IMAGE,)),
    )


def refuse_what_cannot_run(pool: KubernetesPool, step: StartStep) -> None:
    """Raise `EngineRefused` when no number of attempts would start this step here."""
    refuse_bad_words(step)
    if not all(node_name(pool, node) for node in step.nodes) or not step.nodes[step.rank :]:
        raise refusal(step, "its node is not one of this engine", "the plan is out of date")
    if not (step.task.image or pool.image):
        raise refusal(
            step,
            "it names no image, and a pod needs one",
            "give the job an `image`, or the pool a setting `image`",
        )
    image = read_image(step.task.image) if step.task.image else None
    if step.task.image and (image is None or image.form is not Form.REGISTRY):
        raise refusal(
            step,
            f"image {step.task.image!r} is no registry's, and a cluster runs no other",
            "push it to a registry, and name it as that does",
        )
    if step.endpoint is not None:
        raise refusal(
            step,
            "replicas of endpoints do not run on Kubernetes pools yet",
            "place endpoints on a pool of engine local or slurm",
        )
    if step.task.bundle or step.task.inputs or step.task.outputs:
        raise refusal(
            step,
            "folders, inputs and outputs are not copied for Kubernetes pools yet",
            "have what it needs in its `image`, or use a pool of engine local or slurm",
        )
    if step.secrets or step.secret_files:
        raise refusal(
            step,
            "secrets do not reach Kubernetes pools yet",
            "place work with secrets on a pool of engine local or slurm",
        )
    if step.stop_signal != "TERM":
        raise refusal(step, "pods are stopped by SIGTERM", "leave `stop_signal` out")
    strange = sorted(name for name in step.task.env if not _VARIABLE.fullmatch(name))
    if strange:
        raise refusal(step, f"a pod cannot have a variable {strange[0]!r}", "rename it")


def labels_of(pool: KubernetesPool, attempt: str) -> dict[str, str]:
    """Return the labels of everything that belongs to an attempt."""
    return {POOL: pool.name, ATTEMPT: attempt}


def claim(pool: KubernetesPool, step: StepId, by: str, env: Mapping[str, str]) -> Manifest:
    """Return the Secret that proves what became of a step first: its start, or a stop."""
    attempt = step.rpartition(".t")[0]
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": object_name(step),
            "namespace": pool.namespace,
            "labels": labels_of(pool, attempt) | {STEP: step, BY: by},
        },
        "type": "Opaque",
        "immutable": True,
        "stringData": dict(sorted(env.items())),
    }


def environment(step: StartStep) -> dict[str, str]:
    """Return the environment of a task; which devices it has is for the device plugin to say."""
    env = task_environment(
        step,
        step_files(Path(SCRATCH), step.step),
        base={},
        addresses=addresses_of(step),
        port=MASTER_PORT,
        devices=(),
    )
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        if name not in step.task.env:
            env.pop(name, None)
    return env


def addresses_of(step: StartStep) -> list[str]:
    """Return where the gang's tasks find one another, in rank order: JobSet's names of pods."""
    if len(step.nodes) == 1:
        return ["127.0.0.1"]
    name = object_name(step.attempt)
    return [f"{name}-t{rank}-0-0.{name}" for rank in range(len(step.nodes))]


def workload(pool: KubernetesPool, step: StartStep) -> Manifest:
    """Return the Job of a single task, or the JobSet of the step's whole gang."""
    metadata: Manifest = {
        "name": object_name(step.attempt),
        "namespace": pool.namespace,
        "labels": labels_of(pool, step.attempt) | ({QUEUE: pool.queue} if pool.queue else {}),
    }
    held = {"suspend": True} if pool.queue else {}  # Kueue lets it go
    if len(step.nodes) == 1:
        spec = _job_spec(pool, step, 0) | held
        return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
    jobs = [
        {
            "name": f"t{rank}",
            "replicas": 1,
            "template": {
                "metadata": {"labels": labels_of(pool, step.attempt)},
                "spec": _job_spec(pool, step, rank),
            },
        }
        for rank in range(len(step.nodes))
    ]
    return {
        "apiVersion": JOBSET_VERSION,
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            **held,
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {"maxRestarts": 0},
            "replicatedJobs": jobs,
        },
    }


def _job_spec(pool: KubernetesPool, step: StartStep, rank: int) -> Manifest:
    step_of_rank = step_id(step.attempt, rank)
    return {
        "parallelism": 1,
        "completions": 1,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",  # a pod on a lost node is never doubled
        "template": {
            "metadata": {"labels": labels_of(pool, step.attempt) | {STEP: step_of_rank}},
            "spec": _pod_spec(pool, step, rank, object_name(step_of_rank)),
        },
    }


def _pod_spec(pool: KubernetesPool, step: StartStep, rank: int, secret: str) -> Manifest:
    is_here = {
        "key": "metadata.name",
        "operator": "In",
        "values": [node_name(pool, step.nodes[rank])],
    }
    terms = {"nodeSelectorTerms": [{"matchFields": [is_here]}]}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": step.stop_grace_s,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}},
        "containers": [
            {
                "name": "task",
                "image": (step.task.image or pool.image).removeprefix("docker://"),
                "command": list(_command(step)),
                "envFrom": [{"secretRef": {"name": secret}}],
                "resources": _resources(pool, step),
                "volumeMounts": [{"name": "scratch", "mountPath": SCRATCH}],
                **({"workingDir": step.task.workdir} if step.task.workdir else {}),
            }
        ],
        "volumes": [{"name": "scratch", "emptyDir": {}}],
    }


def _command(step: StartStep) -> Sequence[str]:
    if step.task.setup:
        return ("sh", "-c", _WITH_SETUP, "sh", step.task.setup, *step.task.command)
    return step.task.command


def _resources(pool: KubernetesPool, step: StartStep) -> Manifest:
    wanted = {
        "cpu": f"{step.resources.cpu_milli}m",
        "memory": str(step.resources.memory_bytes),
    }
    if step.resources.accelerators:
        wanted[pool.accelerator] = str(step.resources.accelerators)
    # CPU is not limited: what nobody else asked for may be used, as on the local engine.
    limits = {name: amount for name, amount in wanted.items() if name != "cpu"}
    return {"requests": wanted, "limits": limits}

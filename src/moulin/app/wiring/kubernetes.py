"""Fills in the engine of a Kubernetes cluster."""

from typing import Final

from moulin.app.clock import SystemClock
from moulin.app.wiring.pool_settings import check_settings
from moulin.domain.factory import Pool
from moulin.engines.kubernetes.api import Api, open_client
from moulin.engines.kubernetes.engine import KubernetesEngine
from moulin.engines.kubernetes.manifests import KubernetesPool

# What a pool with `engine: kubernetes` can be told.
KUBERNETES_SETTINGS: Final = (
    *("accelerator", "context", "image", "kubeconfig", "namespace", "queue", "selector"),
)


def kubernetes_engine(clock: SystemClock, pool: Pool) -> KubernetesEngine:
    """Return the engine of a Kubernetes cluster.

    Raises `InvalidSpec` for settings that there are not, and for a delegated pool;
    `EngineUnavailable` when the client is not installed or knows no such cluster.
    """
    check_settings(pool, KUBERNETES_SETTINGS)
    words = pool.settings
    reached = KubernetesPool(
        name=pool.name,
        namespace=words.get("namespace", "default"),
        queue=words.get("queue", ""),
        image=words.get("image", ""),
        selector=words.get("selector", ""),
        accelerator=words.get("accelerator", "nvidia.com/gpu"),
        machine_class=pool.machine_class,
    )
    client = open_client(words.get("kubeconfig", ""), words.get("context", ""))
    return KubernetesEngine(reached, Api(client, reached.namespace), clock=clock)

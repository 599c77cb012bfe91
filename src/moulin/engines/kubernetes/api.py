"""The few calls of Kubernetes' API that the engine makes, through the official client.

Answers are plain objects. It decides nothing but which failures are absences of knowledge.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from moulin.domain.errors import EngineRefused, EngineUnavailable
from moulin.engines.kubernetes.manifests import Manifest

TIMEOUT_S: Final = (2.0, 8.0)  # to connect, to read
ABSENT: Final = 404
CONFLICT: Final = 409
# Refusals that are about the object, not about the moment.
REFUSALS: Final = frozenset({400, 403, 413, 422})
NAMES_ONLY: Final = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
JOBSETS: Final = ("jobset.x-k8s.io", "v1alpha2")


def open_client(kubeconfig: str, context: str) -> Any:
    """Return the official client for a kubeconfig file and context; empty means the usual ones.

    Raises `EngineUnavailable` when the client is not installed or the file names no such cluster.
    """
    try:
        from kubernetes import config
    except ImportError as cause:
        raise EngineUnavailable(
            "reach Kubernetes: its client is not installed", hint="pip install 'moulin[kubernetes]'"
        ) from cause
    try:
        open_config: Any = config.new_client_from_config
        return open_config(
            config_file=str(Path(kubeconfig).expanduser()) if kubeconfig else None,
            context=context or None,
        )
    except (config.ConfigException, OSError) as cause:
        raise EngineUnavailable(f"reach Kubernetes: {cause}") from cause


class Api:
    """Calls within one namespace."""

    def __init__(self, client: Any, namespace: str) -> None:
        from kubernetes import client as parts

        self._core = parts.CoreV1Api(client)
        self._batch = parts.BatchV1Api(client)
        self._custom = parts.CustomObjectsApi(client)
        self._namespace = namespace

    def nodes(self, selector: str) -> list[Manifest]:
        """Return the nodes that a label selector chooses, all when it is empty."""
        wanted = {"label_selector": selector} if selector else {}
        return self._items(self._core.list_node, **wanted)

    def pods(self, selector: str) -> list[Manifest]:
        """Return the pods that a label selector chooses."""
        return self._items(self._core.list_namespaced_pod, self._namespace, label_selector=selector)

    def claims(self, selector: str) -> list[Manifest]:
        """Return the metadata of Secrets; their contents stay in the cluster."""
        return self._items(
            self._core.list_namespaced_secret,
            self._namespace,
            label_selector=selector,
            _headers={"Accept": NAMES_ONLY},
        )

    def workloads(self, selector: str) -> list[Manifest]:
        """Return the Jobs and JobSets that a label selector chooses."""
        jobs = self._items(
            self._batch.list_namespaced_job, self._namespace, label_selector=selector
        )
        listed = self._called(
            self._custom.list_namespaced_custom_object,
            *(*JOBSETS, self._namespace, "jobsets"),
            label_selector=selector,
        )
        return jobs + (list(listed["items"]) if listed else [])

    def create(self, manifest: Manifest) -> bool:
        """Create an object; return whether it was not there before.

        Raises `EngineRefused` when the cluster will never take it.
        """
        kind = manifest["kind"]
        if kind == "JobSet":
            call, words = self._custom.create_namespaced_custom_object, JOBSETS
            made = self._called(call, *words, self._namespace, "jobsets", manifest)
        elif kind == "Job":
            made = self._called(self._batch.create_namespaced_job, self._namespace, manifest)
        else:
            made = self._called(self._core.create_namespaced_secret, self._namespace, manifest)
        return made is not None

    def annotate(self, name: str, annotations: Mapping[str, str]) -> None:
        """Add annotations to a Secret, immutable as its data are."""
        patch = {"metadata": {"annotations": dict(annotations)}}
        self._called(self._core.patch_namespaced_secret, name, self._namespace, patch)

    def delete_workload(self, kind: str, name: str) -> None:
        """Delete a Job or a JobSet with its pods; nothing when it is not there."""
        if kind == "JobSet":
            self._called(
                self._custom.delete_namespaced_custom_object,
                *(*JOBSETS, self._namespace, "jobsets", name),
                propagation_policy="Background",
            )
        else:
            self._called(
                self._batch.delete_namespaced_job,
                *(name, self._namespace),
                propagation_policy="Background",
            )

    def delete_pods(self, selector: str, grace_s: int) -> None:
        """Ask the pods that a selector chooses to end, by force after `grace_s`."""
        self._called(
            self._core.delete_collection_namespaced_pod,
            self._namespace,
            label_selector=selector,
            grace_period_seconds=grace_s,
        )

    def delete_claim(self, name: str) -> None:
        """Delete a Secret; nothing when it is not there."""
        self._called(self._core.delete_namespaced_secret, name, self._namespace)

    def log(self, pod: str, limit_bytes: int) -> bytes:
        """Return about the first `limit_bytes` of a pod's output."""
        answer = self._raw(
            self._core.read_namespaced_pod_log, pod, self._namespace, limit_bytes=limit_bytes
        )
        return b"" if answer is None else bytes(answer.data)

    def _items(self, call: Any, *words: Any, **named: Any) -> list[Manifest]:
        found = self._called(call, *words, **named)
        return list(found["items"]) if found else []

    def _called(self, call: Any, *words: Any, **named: Any) -> Manifest | None:
        answer = self._raw(call, *words, **named)
        return None if answer is None else dict(json.loads(answer.data or b"{}"))

    def _raw(self, call: Any, *words: Any, **named: Any) -> Any | None:
        """Return the answer's bytes, None when what is asked for is absent, or there already."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return call(*words, **named, _preload_content=False, _request_timeout=TIMEOUT_S)
        except ApiException as cause:
            if cause.status in (ABSENT, CONFLICT):
                return None
            error = EngineRefused if cause.status in REFUSALS else EngineUnavailable
            raise error(f"ask Kubernetes: {cause.status} {_message(cause.body)}") from cause
        except (HTTPError, OSError) as cause:
            raise EngineUnavailable(f"ask Kubernetes: {cause}") from cause


def _message(body: Any) -> str:
    try:
        return str(json.loads(body)["message"])[:300]
    except (KeyError, TypeError, ValueError):
        return str(body or "")[:300]

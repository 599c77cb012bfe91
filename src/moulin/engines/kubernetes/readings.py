"""What Kubernetes says of pods and nodes, as readings: pure, no conclusion beyond its own words.

References: kubernetes.io, "Pod Lifecycle", "Nodes", "Quantity" of the API reference.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from moulin.domain.ids import NodeId, StepId
from moulin.domain.observation import Claim, NodeCapacity, Observation, TaskPhase
from moulin.domain.standing import Standing
from moulin.engines.kubernetes.manifests import KubernetesPool, lacks

_FACTORS: Final[Mapping[str, Decimal]] = {
    "n": Decimal(10) ** -9,
    "u": Decimal(10) ** -6,
    "m": Decimal(10) ** -3,
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
    "Pi": Decimal(2) ** 50,
}
_NUMBER: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,2})?")
# The reasons by which a pod "failed" though nobody knows what became of its processes.
_UNKNOWN_ENDS: Final = frozenset({"NodeLost", "NodeUnreachable"})
ENGINE: Final = "Kubernetes"
# Whose word `Suspended` is: a workload that is handed to Kueue begins so.
SUSPENDED: Final = "Suspended"
_MEANINGS: Final[Mapping[str, str]] = {
    SUSPENDED: "its Kueue queue has not admitted it",
    "Unschedulable": "no node that it may use has room for it",
    "SchedulingGated": "something in the cluster keeps its pod from being scheduled",
    "ContainerCreating": "its node makes its container ready",
    "PodInitializing": "its node makes its container ready",
    "ErrImagePull": "its image could not be fetched",
    "ImagePullBackOff": "its image could not be fetched, and is tried again more rarely",
    "InvalidImageName": "its image has no valid name; it never starts",
    "CreateContainerConfigError": "something it is to be given is not there",
}


def quantity(text: str) -> Decimal:
    """Return a quantity of Kubernetes as a number; raises `ValueError` for anything else.

    >>> quantity("1500m"), quantity("2Ki"), quantity("3e3")
    (Decimal('1.500'), Decimal('2048'), Decimal('3E+3'))
    """
    suffix = next((s for s in (text[-2:], text[-1:]) if s in _FACTORS), "")
    number = text.removesuffix(suffix)
    if _NUMBER.fullmatch(number) is None:
        raise ValueError(f"{text!r} is not a quantity")
    return Decimal(number) * _FACTORS.get(suffix, Decimal(1))


def instant_ns(text: str | None) -> int:
    """Return an RFC 3339 time as ns since 1970, 0 for none."""
    if not text:
        return 0
    seconds = datetime.fromisoformat(text).timestamp()
    return int(seconds) * 1_000_000_000


def capacity(pool: KubernetesPool, node: Mapping[str, Any]) -> NodeCapacity:
    """Return what a node has to give, from what the cluster says is allocatable there."""
    status = node["status"]
    free = status["allocatable"]
    conditions = {found["type"]: found["status"] for found in status.get("conditions", ())}
    is_closed = node.get("spec", {}).get("unschedulable", False)
    return NodeCapacity(
        node=NodeId(f"{pool.name}-{node['metadata']['name']}"),
        cpu_milli=int(quantity(free["cpu"]) * 1000),
        memory_bytes=int(quantity(free["memory"])),
        machine_class=pool.machine_class,
        accelerators=int(quantity(free.get(pool.accelerator, "0"))),
        accelerator_class=pool.machine_class if pool.accelerator in free else "",
        boot_id=status.get("nodeInfo", {}).get("bootID", ""),
        address=next(
            (a["address"] for a in status.get("addresses", ()) if a["type"] == "InternalIP"), ""
        ),
        is_reachable=conditions.get("Ready") == "True",
        closed_because="cordoned in Kubernetes" if is_closed else "",
        lacks=lacks(pool),
    )


def observation(step: StepId, pod: Mapping[str, Any], at_ns: int, *, is_away: bool) -> Observation:
    """Return what a pod says of its step; `is_away` when its node does not answer."""
    status = pod.get("status", {})
    states = [found["state"] for found in status.get("containerStatuses", ())]
    ended = next((state["terminated"] for state in states if "terminated" in state), None)
    running = next((state["running"] for state in states if "running" in state), None)
    phase, evidence, code = TaskPhase.STARTING, _waiting(status, states), None
    started_ns = ended_ns = 0
    if ended is not None:
        phase, code = TaskPhase.EXITED, int(ended["exitCode"])
        evidence = f"container ended: {ended.get('reason', 'no reason given')}"
        started_ns, ended_ns = (
            instant_ns(ended.get("startedAt")),
            instant_ns(ended.get("finishedAt")),
        )
    elif is_away or status.get("reason") in _UNKNOWN_ENDS or status.get("phase") == "Unknown":
        phase, evidence = TaskPhase.UNREACHABLE, "its node does not answer"
    elif status.get("phase") == "Failed":
        phase, ended_ns = TaskPhase.GONE, at_ns
        evidence = f"pod failed: {status.get('reason', '')} {status.get('message', '')}".rstrip()
    elif running is not None:
        phase, evidence = TaskPhase.RUNNING, "container runs"
        started_ns = instant_ns(running.get("startedAt"))
    return Observation(
        step=step,
        phase=phase,
        at_ns=at_ns,
        claim=Claim(handle=step),
        exit_code=code,
        started_at_ns=started_ns,
        ended_at_ns=ended_ns,
        evidence=evidence,
    )


def standing(
    job: str, pod: Mapping[str, Any] | None, at_ns: int, *, is_suspended: bool
) -> Standing:
    """Return where a step stands; `job` is the object that makes its pod, which may not be there yet."""
    word, detail, since_ns = SUSPENDED if is_suspended and pod is None else "", "", 0
    if pod is not None:
        status = pod.get("status", {})
        since_ns = instant_ns(pod["metadata"].get("creationTimestamp"))
        states = [found["state"] for found in status.get("containerStatuses", ())]
        waits = [state["waiting"] for state in states if "waiting" in state]
        waits += [
            found
            for found in status.get("conditions", ())
            if found["type"] == "PodScheduled" and found["status"] == "False"
        ]
        if waits:
            word, detail = waits[0].get("reason", ""), waits[0].get("message", "")
    return Standing(
        engine=ENGINE,
        job=job,
        word=word,
        meaning=_MEANINGS.get(word, ""),
        detail=detail,
        since_ns=since_ns,
        read_at_ns=at_ns,
    )


def _waiting(status: Mapping[str, Any], states: list[Mapping[str, Any]]) -> str:
    """Return what a pod waits for, in the cluster's words."""
    for state in states:
        if "waiting" in state:
            return f"container waits: {state['waiting'].get('reason', '')}"
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"pod waits: {condition.get('message', condition.get('reason', ''))}"
    return "pod waits"

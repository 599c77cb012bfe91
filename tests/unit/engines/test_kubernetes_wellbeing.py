"""What Kubernetes says of nodes: conditions may pass, only a node out of service is down."""

import pytest

from moulin.domain.health import NodeReading
from moulin.domain.ids import NodeId
from moulin.engines.kubernetes.wellbeing import reading

OUT = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}


def node(*conditions: tuple[str, str, str], taints: list[dict] | None = None) -> dict:
    listed = [
        {"type": kind, "status": status, "message": words} for kind, status, words in conditions
    ]
    return {"spec": {"taints": taints or []}, "status": {"conditions": listed}}


@pytest.mark.parametrize(
    ("found", "down", "complaints"),
    [
        ({}, "", ()),
        (node(("Ready", "True", "kubelet is posting"), ("DiskPressure", "False", "")), "", ()),
        (node(("Ready", "Unknown", "kubelet stopped posting")), "", ()),
        (node(("Ready", "False", "PLEG is not healthy")), "", ()),
        (
            node(("DiskPressure", "True", "disk is full"), ("GpuLost", "True", "")),
            "",
            ("DiskPressure: disk is full", "GpuLost"),
        ),
        (node(("MemoryPressure", "Unknown", "?")), "", ()),
        (node(taints=[{"key": "node.kubernetes.io/unreachable"}]), "", ()),
        (node(taints=[OUT]), "declared out of service: nodeshutdown", ()),
        (node(taints=[OUT | {"value": ""}]), "declared out of service: no reason given", ()),
    ],
)
def test_nodes(found, down, complaints):
    assert reading(NodeId("k-w1"), found, 7) == NodeReading(
        node=NodeId("k-w1"),
        at_ns=7,
        is_partial=True,
        down_because=down,
        complaints=complaints,
    )

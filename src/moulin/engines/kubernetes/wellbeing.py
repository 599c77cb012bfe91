"""What Kubernetes says of how well a node is: its conditions, as readings. Not yet run on a live cluster.

Only a node that an administrator has declared out of service is down for certain; a kubelet that does
not answer says nothing. Every other condition that is true may pass. References: kubernetes.io, "Node
Status", "Non-graceful node shutdown handling"; node-problem-detector, which adds conditions.
"""

from collections.abc import Mapping
from typing import Any, Final

from moulin.domain.health import NodeReading
from moulin.domain.ids import NodeId

OUT_OF_SERVICE: Final = "node.kubernetes.io/out-of-service"
READY: Final = "Ready"
_WORDS_MAX: Final = 200


def reading(node: NodeId, found: Mapping[str, Any], at_ns: int) -> NodeReading:
    """Return what the cluster says of one node."""
    conditions = found.get("status", {}).get("conditions", ())
    return NodeReading(
        node=node,
        at_ns=at_ns,
        is_partial=True,
        down_because=_down_because(found),
        complaints=tuple(
            _words(each)
            for each in conditions
            if each["type"] != READY and each["status"] == "True"
        ),
    )


def _down_because(found: Mapping[str, Any]) -> str:
    taints = found.get("spec", {}).get("taints", ())
    values = [each.get("value", "") for each in taints if each["key"] == OUT_OF_SERVICE]
    return f"declared out of service: {values[0] or 'no reason given'}" if values else ""


def _words(condition: Mapping[str, Any]) -> str:
    said = condition.get("message") or condition.get("reason") or ""
    return f"{condition['type']}: {said}"[:_WORDS_MAX] if said else str(condition["type"])

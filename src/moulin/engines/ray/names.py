"""Names that both sides of the Ray engine must agree on."""

import re
from typing import Final

from moulin.domain.ids import NodeId

# The label by which a server keeps its name when it leaves and comes back: `ray start --labels`.
NODE_LABEL: Final = "moulin-node"
_STRANGE: Final = re.compile(r"[^A-Za-z0-9_.-]")


def node_id(name: str) -> NodeId:
    """Return the node id for a name, its odd characters replaced.

    >>> node_id("pool-fe80::1")
    'pool-fe80--1'
    """
    return NodeId(_STRANGE.sub("-", name))

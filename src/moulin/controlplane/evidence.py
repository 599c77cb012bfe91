"""Reads back what the evidence logs' trees are, when the lead is taken.

Nothing here issues or proves a receipt (see `charge.py` and the ledger).
"""

from functools import partial
from typing import Final

from moulin.domain.errors import StoreCorrupt
from moulin.ledger import (
    Evidence,
    Frontier,
    TreeHead,
    checkpoint_text,
    missing_nodes,
    nodes_from_tiles,
    read_frontier,
    root,
)
from moulin.ports.store import Batch, Store, TreeNode

NODES_KEPT_MAX: Final = 256


def keep_nodes(store: Store, epoch: int) -> None:
    """Write the inner nodes that a release which kept only leaves did not, a batch at a time.

    Cost:   O(log leaves) reads of each shard where nothing is missing, else every leaf once.
    """
    for origin in store.origins():
        head = store.checkpoint(origin)
        size = head.tree_size if head else 0
        read = partial(store.tree_hashes, origin)
        while found := missing_nodes(size, NODES_KEPT_MAX, read):
            nodes = tuple(
                TreeNode(origin=origin, level=level, index=index, node_hash=digest)
                for level, index, digest in found
            )
            store.commit(Batch(epoch=epoch, nodes=nodes))


def read_evidence(store: Store, factory: str) -> Evidence:
    """Rebuild the frontier of every shard; each must have the root that its checkpoint states.

    Raises `StoreCorrupt` where it has another: nothing may be added to a log that was changed.

    Cost:   O(log leaves) reads and hashes for each shard.
    """
    evidence = Evidence(factory=factory)
    for origin in store.origins():
        evidence.keep(origin, _frontier(store, origin))
    return evidence


def _frontier(store: Store, origin: str) -> Frontier:
    head = store.checkpoint(origin)
    if head is None:
        return Frontier()
    frontier = read_frontier(head.tree_size, nodes_from_tiles(partial(store.tree_hashes, origin)))
    found = TreeHead(origin=origin, size=frontier.size, root=root(frontier))
    if not head.note.startswith(checkpoint_text(found)):
        raise StoreCorrupt(
            f"read the evidence log {origin}: its {frontier.size} leaves do not have the root that "
            "was signed",
            hint="keep a copy and restore the last backup",
            details={"origin": origin, "size": frontier.size},
        )
    return frontier

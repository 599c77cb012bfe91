"""Verify that a Merkle tree continues an older one: nothing changed, nothing taken out.

Never builds a tree; what an auditor runs against two checkpoints of one log.
Source: RFC 9162 section 2.1.4.2.
"""

from collections.abc import Sequence

from moulin.ledger.merkle import EMPTY_ROOT
from moulin.ledger.proof import node_hash, siblings_on_the_left


def verify_consistency(
    old: tuple[int, bytes], new: tuple[int, bytes], proof: Sequence[bytes]
) -> bool:
    """Return whether the (size, root) `new` continues the (size, root) `old` without changing it."""
    (old_size, old_root), (new_size, new_root) = old, new
    if old_size == new_size:
        return old_root == new_root and not proof
    if old_size == 0:
        return old_root == EMPTY_ROOT and not proof
    # An old tree that is a complete subtree is its own first hash; the proof leaves it out.
    path = [old_root, *proof] if old_size & (old_size - 1) == 0 else list(proof)
    if not 0 < old_size < new_size or not path:
        return False
    position, last = old_size - 1, new_size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    sides = siblings_on_the_left(position, last, len(path) - 1)
    if sides is None:
        return False
    old_digest = new_digest = path[0]
    for is_left, sibling in zip(sides, path[1:], strict=True):
        old_digest = node_hash(sibling, old_digest) if is_left else old_digest
        new_digest = node_hash(sibling, new_digest) if is_left else node_hash(new_digest, sibling)
    return old_digest == old_root and new_digest == new_root

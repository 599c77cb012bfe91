"""Verify that a leaf is in a Merkle tree, and that a tree continues an older one.

Never builds a tree and needs nothing but SHA-256: this is the verifier's half.
Source: RFC 6962 section 2.1 (hashes), RFC 9162 sections 2.1.3.2 and 2.1.4.2 (verification).
"""

import hashlib
from collections.abc import Sequence
from typing import Final

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf's bytes, prefixed so that no leaf can pass for a node."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> bool:
    """Return whether the leaf hash `leaf` is at `index` of the tree of `size` leaves under `root`."""
    if not 0 <= index < size:
        return False
    sides = _siblings_on_the_left(index, size - 1, len(proof))
    if sides is None:
        return False
    digest = leaf
    for is_left, sibling in zip(sides, proof, strict=True):
        digest = node_hash(sibling, digest) if is_left else node_hash(digest, sibling)
    return digest == root


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
    sides = _siblings_on_the_left(position, last, len(path) - 1)
    if sides is None:
        return False
    old_digest = new_digest = path[0]
    for is_left, sibling in zip(sides, path[1:], strict=True):
        old_digest = node_hash(sibling, old_digest) if is_left else old_digest
        new_digest = node_hash(sibling, new_digest) if is_left else node_hash(new_digest, sibling)
    return old_digest == old_root and new_digest == new_root


def _siblings_on_the_left(position: int, last: int, count: int) -> list[bool] | None:
    """Climb from a node to the root; None when the way is not `count` siblings long."""
    sides = []
    for _ in range(count):
        if last == 0:
            return None
        is_left = bool(position & 1) or position == last
        sides.append(is_left)
        # At the right edge, levels without a sibling are skipped.
        while is_left and position and not position & 1:
            position, last = position >> 1, last >> 1
        position, last = position >> 1, last >> 1
    return sides if last == 0 else None

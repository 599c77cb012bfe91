"""Verify that a leaf is in a Merkle tree.

Never builds a tree and needs nothing but SHA-256: this is the verifier's half.
Source: RFC 6962 section 2.1 (hashes), RFC 9162 section 2.1.3.2 (verification).
"""

import hashlib
from collections.abc import Sequence


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
    sides = siblings_on_the_left(index, size - 1, len(proof))
    if sides is None:
        return False
    digest = leaf
    for is_left, sibling in zip(sides, proof, strict=True):
        digest = node_hash(sibling, digest) if is_left else node_hash(digest, sibling)
    return digest == root


def siblings_on_the_left(position: int, last: int, count: int) -> list[bool] | None:
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

"""Grow the evidence log's Merkle tree and prove what is in it.

Never sees a leaf's bytes or a key, only hashes. The tree is kept as a frontier (the roots of its
complete subtrees, at most 64 hashes); proofs are made from nodes that are read back (see `tiles`).
Source: RFC 6962 section 2.1; node (level, index) covers leaves [index << level, (index + 1) << level).
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from moulin.domain.errors import check
from moulin.ledger.proof import node_hash

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
TILE_LEVELS: Final = 8
"""Inner nodes are kept at every eighth level."""

Node = tuple[int, int]
StoredNode = tuple[int, int, bytes]
ReadNodes = Callable[[Sequence[Node]], Sequence[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """A tree of `size` leaves by the roots of its complete subtrees, largest (leftmost) first."""

    size: int = 0
    peaks: tuple[bytes, ...] = ()


def append(frontier: Frontier, leaves: Iterable[bytes]) -> tuple[Frontier, tuple[StoredNode, ...]]:
    """Add leaf hashes; return the new frontier and the nodes to keep that came to be.

    Those are the inner nodes at every `TILE_LEVELS`th level, which never change (see `tiles`).

    Cost:   one inner hash per leaf on average, and one node to keep for 255 leaves.
    """
    size, peaks = frontier.size, list(frontier.peaks)
    nodes: list[StoredNode] = []
    for leaf in leaves:
        digest, level, index = leaf, 0, size
        while index & 1:
            digest, level, index = node_hash(peaks.pop(), digest), level + 1, index >> 1
            if level % TILE_LEVELS == 0:
                nodes.append((level, index, digest))
        peaks.append(digest)
        size += 1
    check(len(peaks) == size.bit_count(), "a frontier has one peak per set bit of its size")
    return Frontier(size=size, peaks=tuple(peaks)), tuple(nodes)


def root(frontier: Frontier) -> bytes:
    """Return the tree's root; that of the empty tree is the hash of nothing."""
    return _fold(frontier.peaks) if frontier.peaks else EMPTY_ROOT


def inclusion_proof(index: int, size: int, read: ReadNodes) -> tuple[bytes, ...]:
    """Return the audit path of a leaf in the tree of its first `size` leaves, leaf end first.

    Raises `InvariantViolated` when the tree has no such leaf.

    Cost:   one `read` of O(log size) nodes; the proof has at most ceil(log2 size) hashes.
    """
    check(0 <= index < size, "a proof needs a leaf of the tree")
    low, high = 0, size
    ranges: list[tuple[int, int]] = []
    while high - low > 1:
        middle = low + _largest_power_below(high - low)
        if index < middle:
            ranges.append((middle, high))
            high = middle
        else:
            ranges.append((low, middle))
            low = middle
    return _read_ranges(ranges[::-1], read)


def consistency_proof(old_size: int, new_size: int, read: ReadNodes) -> tuple[bytes, ...]:
    """Return the proof that the tree of `new_size` leaves continues that of `old_size`.

    Raises `InvariantViolated` when the sizes are in the wrong order.

    Cost:   as `inclusion_proof`.
    """
    check(0 <= old_size <= new_size, "a tree continues a smaller one")
    if old_size in {0, new_size}:
        return ()
    low, high = 0, new_size
    ranges: list[tuple[int, int]] = []
    while high != old_size:
        middle = low + _largest_power_below(high - low)
        if old_size <= middle:
            ranges.append((middle, high))
            high = middle
        else:
            ranges.append((low, middle))
            low = middle
    # The old tree's own root is known to who checks, unless it is only a part on the right.
    own = [(low, high)] if low else []
    return _read_ranges([*own, *ranges[::-1]], read)


def read_frontier(size: int, read: ReadNodes) -> Frontier:
    """Return the frontier of the tree of a stored log's first `size` leaves.

    Cost:   one `read` of O(log size) nodes.
    """
    return Frontier(size=size, peaks=tuple(read(_complete_nodes(0, size))))


def _largest_power_below(count: int) -> int:
    return 1 << (count - 1).bit_length() - 1


def _read_ranges(ranges: Sequence[tuple[int, int]], read: ReadNodes) -> tuple[bytes, ...]:
    parts = [_complete_nodes(low, high) for low, high in ranges]
    digests = iter(read([node for part in parts for node in part]))
    return tuple(_fold([next(digests) for _ in part]) for part in parts)


def _complete_nodes(low: int, high: int) -> list[Node]:
    """Cut [low, high), where `low` is a multiple of a power of two not below the length, into nodes."""
    nodes = []
    while low < high:
        level = (high - low).bit_length() - 1
        nodes.append((level, low >> level))
        low += 1 << level
    return nodes


def _fold(peaks: Sequence[bytes]) -> bytes:
    digest = peaks[-1]
    for peak in reversed(peaks[:-1]):
        digest = node_hash(peak, digest)
    return digest

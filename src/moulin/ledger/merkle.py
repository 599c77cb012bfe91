"""Grow the evidence log's Merkle tree and prove what is in it.

Never sees a leaf's bytes or a key, only hashes. The tree is kept as a frontier (the roots of its
complete subtrees, at most 64 hashes); proofs are made from hashes that are read back, either
stored inner nodes or, through `nodes_from_leaves`, the leaf hashes alone.
Source: RFC 6962 section 2.1; node (level, index) covers leaves [index << level, (index + 1) << level).
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from moulin.domain.errors import check
from moulin.ledger.proof import node_hash

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

Node = tuple[int, int]
StoredNode = tuple[int, int, bytes]
ReadNodes = Callable[[Sequence[Node]], Sequence[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """A tree of `size` leaves by the roots of its complete subtrees, largest (leftmost) first."""

    size: int = 0
    peaks: tuple[bytes, ...] = ()


def append(frontier: Frontier, leaves: Iterable[bytes]) -> tuple[Frontier, tuple[StoredNode, ...]]:
    """Add leaf hashes; return the new frontier and every complete node that came to be.

    The nodes, leaves included, are what proofs need: store them by (level, index), never change.

    Cost:   two hashes per leaf on average, O(log size) memory besides the result.
    """
    size, peaks = frontier.size, list(frontier.peaks)
    nodes: list[StoredNode] = []
    for leaf in leaves:
        digest, level, index = leaf, 0, size
        nodes.append((0, index, digest))
        while index & 1:
            digest, level, index = node_hash(peaks.pop(), digest), level + 1, index >> 1
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


def nodes_from_leaves(leaves: Callable[[int, int], Sequence[bytes]]) -> ReadNodes:
    """Return a reader that computes nodes from leaf hashes, given a reader of leaves [start, end).

    Cost:   a proof reads and hashes each leaf of the tree at most once.
    """

    def read(nodes: Sequence[Node]) -> tuple[bytes, ...]:
        return tuple(
            _complete(leaves(index << level, (index + 1) << level)) for level, index in nodes
        )

    return read


def _complete(digests: Sequence[bytes]) -> bytes:
    level = list(digests)
    while len(level) > 1:
        level = [node_hash(level[i], level[i + 1]) for i in range(0, len(level), 2)]
    return level[0]


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

"""The evidence log's tree by its definition, to compare with: no frontier, no tiles, no shortcut."""

from collections.abc import Sequence

from moulin.ledger.merkle import EMPTY_ROOT
from moulin.ledger.proof import node_hash
from moulin.ledger.tiles import ReadHashes


def naive_root(hashes: Sequence[bytes]) -> bytes:
    """Return the root by the recursive definition of RFC 6962 section 2.1."""
    if not hashes:
        return EMPTY_ROOT
    if len(hashes) == 1:
        return hashes[0]
    half = 1
    while half * 2 < len(hashes):
        half *= 2
    return node_hash(naive_root(hashes[:half]), naive_root(hashes[half:]))


def kept(hashes: Sequence[bytes]) -> ReadHashes:
    """Return a reader of what is kept of a log: its leaf hashes and every eighth level."""

    def read(level: int, start: int, end: int) -> list[bytes]:
        count = len(hashes) >> level
        return [
            naive_root(hashes[index << level : (index + 1) << level])
            for index in range(start, min(end, count))
        ]

    return read

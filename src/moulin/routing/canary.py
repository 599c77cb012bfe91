"""Which of several targets a request goes to, by their weights.

It decides by a hash of the request's id: the same id always goes the same way, and over many ids
each target gets its share. It never remembers anything.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

_RANGE_BITS: Final = 64


def pick(targets: Sequence[tuple[str, int]], identifier: bytes) -> str:
    """Return the name of the target whose share of the weights the id falls into.

    `targets` are (name, weight) with weights at or above 0, one of them above.

    >>> pick([("old", 0), ("new", 1)], b"any")
    'new'
    """
    total = sum(weight for _, weight in targets)
    drawn = int.from_bytes(blake2b(identifier, digest_size=_RANGE_BITS // 8).digest(), "big")
    place = drawn * total >> _RANGE_BITS
    for name, weight in targets:
        if place < weight:
            return name
        place -= weight
    return targets[-1][0]

"""Which nodes of the evidence log are kept, and how any complete node is made from those.

Kept are the leaves and the inner nodes at every eighth level: one row for 255 leaves, so that a
commit writes next to nothing more than its leaves. A node in between is made from at most 128
hashes of one tile. It never decides what a leaf is, and reads only through what it is given.

Source: C2SP tlog-tiles: tile (L, N) is the hashes [256 N, 256 (N + 1)) at level 8 L.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Final

from moulin.domain.errors import StoreCorrupt
from moulin.ledger.merkle import TILE_LEVELS, Node, ReadNodes, StoredNode
from moulin.ledger.proof import node_hash

TILE_WIDTH: Final = 1 << TILE_LEVELS

ReadHashes = Callable[[int, int, int], Sequence[bytes]]
"""(level, start, end) to the kept hashes [start, end) of that level, fewer where the log ends."""


def nodes_from_tiles(read: ReadHashes) -> ReadNodes:
    """Return a reader of any complete nodes, given one of kept hashes.

    It raises `StoreCorrupt` when hashes that must be kept are not.

    Cost:   a proof reads at most two tiles for every eight levels, and hashes each at most once.
    """

    def read_nodes(nodes: Sequence[Node]) -> tuple[bytes, ...]:
        tiles: dict[Node, Sequence[bytes]] = {}
        return tuple(_node(node, tiles, read) for node in nodes)

    return read_nodes


def missing_nodes(size: int, count_max: int, read: ReadHashes) -> list[StoredNode]:
    """Return inner nodes that should be kept and are not, lowest level first, never of two levels.

    A log written by a release that kept only leaves lacks them from some place on. Keep what is
    returned and ask again until nothing is.

    Cost:   O(log size) reads where nothing is missing, else one tile for each node.
    """
    level = TILE_LEVELS
    while count := size >> level:
        first = bisect_left(
            range(count), x=True, key=lambda index: not read(level, index, index + 1)
        )
        if first < count:
            return [
                (level, index, _root(_tile((level - TILE_LEVELS, index), TILE_WIDTH, read)))
                for index in range(first, min(count, first + count_max))
            ]
        level += TILE_LEVELS
    return []


def _node(node: Node, tiles: dict[Node, Sequence[bytes]], read: ReadHashes) -> bytes:
    level, index = node
    rise = level % TILE_LEVELS
    place, start = divmod(index << rise, TILE_WIDTH)
    tile = (level - rise, place)
    end = start + (1 << rise)
    if len(tiles.get(tile, ())) < end:
        tiles[tile] = _tile(tile, end, read)
    return _root(tiles[tile][start:end])


def _tile(tile: Node, count_min: int, read: ReadHashes) -> Sequence[bytes]:
    level, place = tile
    first = place * TILE_WIDTH
    hashes = read(level, first, first + TILE_WIDTH)
    if len(hashes) < count_min:
        raise StoreCorrupt(
            f"read the evidence log: of the hashes at level {level}, number "
            f"{first + len(hashes)} is missing",
            hint="keep a copy and restore the last backup",
            details={"level": level, "index": first + len(hashes)},
        )
    return hashes


def _root(hashes: Sequence[bytes]) -> bytes:
    """Return the root over a power of two of hashes."""
    row = list(hashes)
    while len(row) > 1:
        row = [node_hash(row[i], row[i + 1]) for i in range(0, len(row), 2)]
    return row[0]

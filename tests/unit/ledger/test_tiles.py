"""Which nodes are kept, what a proof reads, and what happens where something is missing."""

import pytest

from moulin.domain.errors import StoreCorrupt
from moulin.ledger import (
    Frontier,
    append,
    inclusion_proof,
    leaf_hash,
    missing_nodes,
    nodes_from_tiles,
    read_frontier,
    root,
    verify_inclusion,
)
from tests.unit.ledger.reference import naive_root

SIZE = 66_000  # more than one tile at level 8, and a node at level 16
HASHES = [leaf_hash(number.to_bytes(4, "big")) for number in range(SIZE)]
FRONTIER, NODES = append(Frontier(), HASHES)


class Log:
    """What is kept of a log, with every read written down."""

    def __init__(self, size=SIZE, nodes=NODES):
        self.rows = {(0, index): digest for index, digest in enumerate(HASHES[:size])}
        self.rows |= {(level, index): digest for level, index, digest in nodes}
        self.reads = []

    def __call__(self, level, start, end):
        found = [self.rows[level, i] for i in range(start, end) if (level, i) in self.rows]
        self.reads.append(len(found))
        return found


def test_one_node_is_kept_for_a_tile_of_hashes():
    assert [(level, index) for level, index, _ in NODES if level > 8] == [(16, 0)]
    assert [index for level, index, _ in NODES if level == 8] == list(range(SIZE // 256))
    assert {level: digest for level, index, digest in NODES if index == 0} == {
        8: naive_root(HASHES[:256]),
        16: naive_root(HASHES[:65_536]),
    }


@pytest.mark.parametrize("index", [0, 255, 256, 40_000, 65_535, 65_536, SIZE - 1])
def test_a_proof_reads_two_tiles_for_eight_levels_at_most(index):
    log = Log()
    proof = inclusion_proof(index, SIZE, nodes_from_tiles(log))
    assert verify_inclusion(HASHES[index], index, SIZE, proof, root(FRONTIER))
    assert len(log.reads) <= 2 * 3
    assert sum(log.reads) <= 2 * 2 * 256 + 1


def test_the_frontier_is_read_from_one_tile_for_eight_levels():
    log = Log()
    assert read_frontier(SIZE, nodes_from_tiles(log)) == FRONTIER
    assert len(log.reads) == 3
    assert sum(log.reads) <= 2 * 256 + 1


@pytest.mark.parametrize("count_max", [1, 100, 1000])
def test_nodes_that_were_not_kept_are_made_level_by_level(count_max):
    log = Log(nodes=NODES[:100])
    while found := missing_nodes(SIZE, count_max, log):
        assert len(found) <= count_max
        assert len({level for level, _, _ in found}) == 1
        assert not {(level, index) for level, index, _ in found} & log.rows.keys()
        log.rows |= {(level, index): digest for level, index, digest in found}
    assert log.rows == Log().rows


def test_a_whole_log_is_known_to_be_so_from_few_reads():
    log = Log()
    assert missing_nodes(SIZE, 1000, log) == []
    assert len(log.reads) < 20
    assert missing_nodes(255, 1000, Log(size=255, nodes=[])) == []


@pytest.mark.parametrize("gone", [(0, SIZE - 1), (8, 256), (16, 0)])
def test_a_hash_that_is_missing_is_named(gone):
    log = Log()
    del log.rows[gone]
    read = nodes_from_tiles(log)
    with pytest.raises(StoreCorrupt, match=f"level {gone[0]}, number {gone[1]}") as caught:
        read_frontier(SIZE, read)
    assert caught.value.hint

"""The Merkle tree against published vectors and an independent implementation."""

import hashlib

import pymerkle
import pytest

from moulin.domain.errors import InvariantViolated
from moulin.ledger import (
    Evidence,
    Frontier,
    append,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    nodes_from_tiles,
    read_frontier,
    root,
    verify_consistency,
    verify_inclusion,
)
from tests.unit.ledger.reference import kept

# Leaves and roots of the Certificate Transparency project's RFC 6962 test vectors.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    bytes.fromhex(text)
    for text in (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]
HASHES = [leaf_hash(leaf) for leaf in LEAVES]
# (index, size) and the audit path, from the same vectors.
PATHS = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCY = {
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
read = nodes_from_tiles(kept(HASHES))


def hexes(proof):
    return [digest.hex() for digest in proof]


@pytest.mark.parametrize("size", range(9))
def test_roots_of_the_published_vectors(size):
    grown, _ = append(Frontier(), HASHES[:size])
    assert root(grown) == ROOTS[size]
    assert read_frontier(size, read) == grown


@pytest.mark.parametrize("place", sorted(PATHS))
def test_audit_paths_of_the_published_vectors(place):
    index, size = place
    proof = inclusion_proof(index, size, read)
    assert hexes(proof) == PATHS[place]
    assert verify_inclusion(HASHES[index], index, size, proof, ROOTS[size])


@pytest.mark.parametrize("sizes", sorted(CONSISTENCY))
def test_consistency_proofs_of_the_published_vectors(sizes):
    old, new = sizes
    proof = consistency_proof(old, new, read)
    assert hexes(proof) == CONSISTENCY[sizes]
    assert verify_consistency((old, ROOTS[old]), (new, ROOTS[new]), proof)


@pytest.mark.parametrize(
    ("index", "size", "proof", "tree"),
    [
        (0, 8, [], 8),
        (1, 8, PATHS[0, 8], 8),
        (0, 4, PATHS[0, 8], 8),
        (0, 8, PATHS[0, 8], 7),
        (0, 8, [*PATHS[0, 8], PATHS[0, 8][0]], 8),
        (-1, 8, PATHS[0, 8], 8),
        (8, 8, PATHS[0, 8], 8),
        (0, 0, [], 0),
    ],
    ids=["short", "index", "size", "root", "long", "negative", "outside", "empty"],
)
def test_false_inclusion_is_refused(index, size, proof, tree):
    path = [bytes.fromhex(digest) for digest in proof]
    assert not verify_inclusion(HASHES[0], index, size, path, ROOTS[tree])


@pytest.mark.parametrize(
    ("old", "new", "proof"),
    [
        ((6, ROOTS[5]), (8, ROOTS[8]), CONSISTENCY[6, 8]),
        ((6, ROOTS[6]), (8, ROOTS[7]), CONSISTENCY[6, 8]),
        ((6, ROOTS[6]), (8, ROOTS[8]), CONSISTENCY[6, 8][:-1]),
        ((6, ROOTS[6]), (8, ROOTS[8]), [*CONSISTENCY[6, 8], CONSISTENCY[6, 8][0]]),
        ((6, ROOTS[6]), (8, ROOTS[8]), []),
        ((8, ROOTS[8]), (6, ROOTS[6]), CONSISTENCY[6, 8]),
        ((8, ROOTS[8]), (8, ROOTS[7]), []),
        ((8, ROOTS[8]), (8, ROOTS[8]), CONSISTENCY[6, 8]),
        ((0, ROOTS[1]), (8, ROOTS[8]), []),
        ((-1, ROOTS[1]), (8, ROOTS[8]), CONSISTENCY[6, 8]),
    ],
)
def test_a_changed_past_is_refused(old, new, proof):
    assert not verify_consistency(old, new, [bytes.fromhex(digest) for digest in proof])


def test_proofs_of_what_is_not_there_are_a_bug():
    with pytest.raises(InvariantViolated):
        inclusion_proof(8, 8, read)
    with pytest.raises(InvariantViolated):
        consistency_proof(9, 8, read)


def test_every_tree_continues_the_empty_one():
    assert verify_consistency((0, ROOTS[0]), (8, ROOTS[8]), consistency_proof(0, 8, read))


def test_an_independent_implementation_agrees():
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    frontier = Frontier()
    for number in range(130):
        data = hashlib.sha256(str(number).encode()).digest()
        tree.append_entry(data)
        frontier, _ = append(frontier, [leaf_hash(data)])
        assert root(frontier) == tree.get_root()


def test_evidence_keeps_a_frontier_per_shard_and_never_shrinks():
    evidence = Evidence(factory="demo")
    origin = evidence.origin("lyon")
    assert evidence.head(origin).root == ROOTS[0]
    evidence.keep(origin, read_frontier(8, read))
    head = evidence.head(origin)
    assert (head.origin, head.size, head.root) == ("moulin/demo/lyon/receipts/v1", 8, ROOTS[8])
    assert evidence.frontier("another").size == 0
    with pytest.raises(InvariantViolated, match="never shrinks"):
        evidence.keep(origin, Frontier())

"""Trees of evidence read back when the lead is taken: from this release's log or an older one's."""

from functools import partial
from pathlib import Path

import pytest
from alembic import command

from moulin.app.verify import verify_file
from moulin.controlplane import evidence
from moulin.controlplane.evidence import keep_nodes, read_evidence
from moulin.domain.errors import StoreCorrupt
from moulin.ledger import (
    Frontier,
    TreeHead,
    append,
    checkpoint_text,
    inclusion_proof,
    leaf_hash,
    nodes_from_tiles,
    root,
    verify_inclusion,
)
from moulin.ports.store import Batch, Checkpoint, Leaf, Store
from moulin.store import opening
from moulin.store.migrate import migration_config
from moulin.store.opening import open_store
from moulin.store.sql import SqlStore
from tests.integration.controlplane.bench import FACTORY, job
from tests.integration.controlplane.test_charge import evidence_of

DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]
ORIGINS = ("moulin/f/a/receipts/v1", "moulin/f/b/receipts/v1")
HASHES = [leaf_hash(number.to_bytes(4, "big")) for number in range(3000)]


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/log.db"
    return str(request.getfixturevalue("postgres_server").new_schema_url())


def frontier_of(size: int) -> Frontier:
    return append(Frontier(), HASHES[:size])[0]


def write_leaves(store: Store, epoch: int, origin: str, start: int, end: int) -> None:
    """Write leaves and their checkpoint as a release did that kept no nodes."""
    head = TreeHead(origin=origin, size=end, root=root(frontier_of(end)))
    note = f"{checkpoint_text(head)}\n— a signature\n"
    store.commit(
        Batch(
            epoch=epoch,
            leaves=tuple(
                Leaf(origin=origin, index=i, leaf_hash=HASHES[i]) for i in range(start, end)
            ),
            checkpoints=(Checkpoint(origin=origin, tree_size=end, note=note, at_ns=end),),
        )
    )


def open_first_schema(url: str) -> SqlStore:
    """Return a store as the first release made it."""
    backend = opening._backend(url)
    config = migration_config()
    with backend.engine.connect() as connection:
        config.attributes["connection"] = connection
        connection.exec_driver_sql(backend.begin)
        command.upgrade(config, "0001")
        connection.exec_driver_sql("COMMIT")
    return SqlStore(backend)


def test_a_log_of_the_first_schema_goes_on_with_proofs_from_nodes(url, monkeypatch):
    monkeypatch.setattr(evidence, "NODES_KEPT_MAX", 3)
    former = open_first_schema(url)
    epoch = former.open_epoch()
    write_leaves(former, epoch, ORIGINS[0], 0, 1000)
    write_leaves(former, epoch, ORIGINS[1], 0, 5)
    with open_store(url) as store:
        # The former release leads on after the migration, and keeps no nodes.
        write_leaves(former, epoch, ORIGINS[0], 1000, 2600)
        former.close()
        keep_nodes(store, store.open_epoch())
        assert len(store.tree_hashes(ORIGINS[0], 8, 0, 256)) == 10
        found = read_evidence(store, "f")
        assert found.frontiers == {
            ORIGINS[0]: frontier_of(2600),
            ORIGINS[1]: frontier_of(5),
        }
        read = nodes_from_tiles(partial(store.tree_hashes, ORIGINS[0]))
        for index in (0, 255, 256, 1000, 2559, 2560, 2599):
            proof = inclusion_proof(index, 2600, read)
            tree = root(frontier_of(2600))
            assert verify_inclusion(HASHES[index], index, 2600, proof, tree)


def test_receipts_after_a_log_without_nodes_verify(mill, tmp_path):
    origin = mill.plane.evidence.origin("hill")
    write_leaves(mill.store, mill.plane.epoch, origin, 0, 2000)
    mill.reopen()
    assert len(mill.disk.nodes) == 2000 // 256
    mill.submit(job(1))
    mill.turns(12, 1.0)
    receipt = mill.store.receipts()[-1]
    assert receipt.leaf_index >= 2000
    key = tmp_path / "key"
    key.write_bytes(evidence_of(mill).public_key())
    path = tmp_path / "one.receipt"
    path.write_bytes(evidence_of(mill).receipt_file(receipt.id))
    assert verify_file(path, key).ok


def test_nodes_are_kept_in_the_commit_of_their_leaves(mill):
    origin = mill.plane.evidence.origin("hill")
    write_leaves(mill.store, mill.plane.epoch, origin, 0, 255)
    mill.reopen()
    assert not mill.disk.nodes
    mill.submit(job(1))
    mill.turns(12, 1.0)
    assert list(mill.disk.nodes) == [(origin, 8, 0)]
    mill.reopen()
    assert mill.plane.evidence.frontier(origin).size == mill.store.receipts()[-1].leaf_index + 1


@pytest.mark.parametrize("level", [0, 8])
def test_nobody_leads_on_a_log_that_was_changed(mill, level):
    origin = mill.plane.evidence.origin("hill")
    write_leaves(mill.store, mill.plane.epoch, origin, 0, 300)
    mill.reopen()
    if level:
        mill.disk.nodes[origin, 8, 0] = bytes(32)
    else:
        mill.disk.leaves[origin][299] = bytes(32)
    with pytest.raises(StoreCorrupt, match=f"{FACTORY}/hill.*root that was signed") as caught:
        mill.reopen()
    assert caught.value.hint

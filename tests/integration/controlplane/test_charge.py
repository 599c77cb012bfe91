"""From usages to money and evidence: what a tenant can check without trusting Moulin."""

import itertools
from dataclasses import replace
from functools import partial

import orjson
import pytest

from moulin.app.evidence import StoredEvidence
from moulin.app.verify import verify_file
from moulin.controlplane.recover import read_again
from moulin.domain.errors import Conflict, NotFound, StoreUnavailable
from moulin.domain.events import UsagesCharged
from moulin.domain.factory import Pool, Site, Zone
from moulin.domain.views import ReceiptView
from moulin.domain.workload import Where
from moulin.ledger import (
    check_balanced,
    consistency_proof,
    nodes_from_tiles,
    verify_consistency,
)
from moulin.store.memory import WritePoint
from tests.integration.controlplane.bench import FACTORY, Bench, factory, job

TWO_SITES = (
    Site(name="coast", country="SE"),
    Zone(name="quay", site="coast"),
    Pool(name="dock", zone="quay", engine="simulated", machine_class="test-machine"),
)


@pytest.fixture
def charged(mill: Bench) -> Bench:
    """A mill that issued receipts in several cycles."""
    for _ in range(3):
        mill.submit(job(3))
        mill.turns(12, 1.0)
    return mill


def evidence_of(bench: Bench) -> StoredEvidence:
    return StoredEvidence(store=bench.store, signer=bench.signer, factory=FACTORY, site="this-site")


def test_every_receipt_verifies_offline_with_the_public_key_alone(charged, tmp_path):
    evidence = evidence_of(charged)
    key = tmp_path / "key"
    key.write_bytes(evidence.public_key())
    receipts = charged.store.receipts(limit=100)
    assert len(receipts) >= 3
    for receipt in receipts:
        path = tmp_path / "one.receipt"
        path.write_bytes(evidence.receipt_file(receipt.id))
        verdict = verify_file(path, key)
        assert verdict.ok, verdict.statement


def test_a_flipped_byte_is_noticed(charged, tmp_path):
    evidence = evidence_of(charged)
    key = tmp_path / "key"
    key.write_bytes(evidence.public_key())
    content = evidence.receipt_file(charged.store.receipts()[0].id)
    path = tmp_path / "one.receipt"
    place = content.index(b'"quantities"') + 20
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert not verify_file(path, key).ok


def leaves_of(value):
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in leaves_of(each)]
    if isinstance(value, list):
        return [leaf for each in value for leaf in leaves_of(each)]
    return [value]


def test_the_operators_cost_is_in_the_row_and_not_in_the_file(charged):
    receipt = charged.store.receipts()[0]
    assert receipt.charge.operator_cost_neur > 0
    content = evidence_of(charged).receipt_file(receipt.id)
    values = [str(value) for value in leaves_of(orjson.loads(content))]
    assert str(receipt.usage.energy_mj) in values
    assert str(receipt.charge.operator_cost_neur) not in values


def test_the_checkpoint_shown_first_is_of_a_site_there_is(charged):
    evidence = evidence_of(charged)
    assert evidence.origin() == charged.store.receipts()[0].origin
    assert evidence_of(Bench()).origin().startswith(f"moulin/{FACTORY}/this-site")


def test_there_is_no_proof_of_what_is_not_there(charged):
    with pytest.raises(NotFound):
        evidence_of(charged).receipt_file("rcp_nothing")


def test_an_erased_salt_ends_the_proof(charged):
    receipt = charged.store.receipts()[0]
    charged.disk.receipts[receipt.id] = replace(receipt, salt_hex="")
    with pytest.raises(Conflict, match="erased"):
        evidence_of(charged).receipt_file(receipt.id)


def test_entries_balance_and_say_what_receipts_say(charged):
    entries = charged.store.entries(limit=1000)
    check_balanced(entries)
    receipts = charged.store.receipts(limit=1000)
    assert sorted(entry.cause for entry in entries) == sorted(r.usage.id for r in receipts)
    assert sum(charged.store.account_totals().values()) == 0
    assert charged.money().spent_neur == sum(r.charge.amount_neur for r in receipts)


def test_each_site_has_its_shard_with_its_own_checkpoint(tmp_path):
    bench = Bench()
    bench.apply(*factory(), *TWO_SITES)
    bench.turn()
    for zone in ("east", "quay", "quay"):
        bench.submit(job(2, where=Where(zones=(zone,))))
    bench.turns(30, 1.0)
    shards: dict[str, list[ReceiptView]] = {}
    for receipt in bench.store.receipts(limit=100):
        shards.setdefault(receipt.origin, []).append(receipt)
    assert len(shards) == 2
    for origin, receipts in shards.items():
        assert [r.leaf_index for r in receipts] == list(range(len(receipts)))
        head = bench.store.checkpoint(origin)
        assert head is not None
        assert head.tree_size == len(receipts)
        assert len({r.usage.country for r in receipts}) == 1
    key = tmp_path / "key"
    key.write_bytes(evidence_of(bench).public_key())
    path = tmp_path / "one.receipt"
    for receipt in bench.store.receipts(limit=100):
        path.write_bytes(evidence_of(bench).receipt_file(receipt.id))
        assert verify_file(path, key).ok


def test_the_evidence_log_only_grows_over_restarts(charged):
    charged.reopen()
    charged.submit(job(2))
    charged.turns(15, 1.0)
    heads = [(e.tree_size, bytes.fromhex(e.root)) for e in charged.events(UsagesCharged)]
    sizes = [size for size, _ in heads]
    assert sizes == sorted(set(sizes))
    origin = charged.plane.evidence.origin("hill")
    read = nodes_from_tiles(partial(charged.store.tree_hashes, origin))
    for (old_size, old_root), (new_size, new_root) in itertools.pairwise(heads):
        proof = consistency_proof(old_size, new_size, read)
        assert verify_consistency((old_size, old_root), (new_size, new_root), proof)


def test_a_cycle_that_is_not_committed_leaves_the_evidence_as_it_was(mill):
    mill.submit(job(3))
    mill.turns(5, 1.0)
    failures: list[WritePoint] = []

    def trip(point):
        if point is WritePoint.BEFORE_COMMIT and not failures:
            failures.append(point)
            raise StoreUnavailable("commit: outage")

    mill.clock.time_ns += 10 * 10**9
    mill.fault = trip
    with pytest.raises(StoreUnavailable):
        mill.turn()
    kept = mill.plane.evidence.frontiers
    assert {origin: frontier for origin, frontier in kept.items() if frontier.size} == {}
    read_again(mill.plane)
    mill.turn()
    [receipt] = mill.store.receipts()
    assert receipt.leaf_index == 0


def test_work_without_a_price_still_has_a_receipt_of_its_energy():
    bench = Bench()
    bench.apply(*(o for o in factory() if o.name != "prices"))
    view = bench.submit(job(3))
    bench.turns(15, 1.0)
    [receipt] = bench.store.receipts(workload=view.id)
    assert receipt.charge.amount_neur == 0
    assert receipt.usage.energy_mj > 0
    assert receipt.usage.carbon_location_ng > receipt.usage.carbon_market_ng > 0

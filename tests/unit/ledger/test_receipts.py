"""Receipts: what they say, what the log commits to, and golden bytes of leaf version 1."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from moulin.domain.errors import InvalidSpec, InvariantViolated
from moulin.ledger import (
    Frontier,
    issue,
    key_name,
    leaf_hash,
    make_receipt,
    make_salt,
    operator_commitment,
    operator_salt,
    receipt_document,
    receipt_file,
    receipt_id,
    shard_origin,
)
from moulin.ledger.verification import canonical_bytes
from tests.unit.ledger.examples import (
    ASKED,
    FREE,
    KEY,
    ORIGIN,
    SECRET,
    USAGES,
    charged,
    file_of,
    issued,
)
from tests.unit.ledger.reference import naive_root

GOLDEN = Path(__file__).parents[2] / "golden" / "receipts"
NAMES = ("request", "job", "free")


@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
def test_leaf_version_1_is_what_it_was(index):
    receipt = issued().receipts[index]
    canonical = (GOLDEN / f"v1_{NAMES[index]}.canonical").read_bytes()
    assert canonical_bytes(receipt_document(receipt)) == canonical
    leaves = json.loads((GOLDEN / "v1_leaves.json").read_text(encoding="ascii"))
    assert receipt.leaf_bytes.hex() == leaves[NAMES[index]]["leaf"]
    assert leaf_hash(receipt.leaf_bytes).hex() == leaves[NAMES[index]]["leaf_hash"]
    # The leaf, spelled out: version byte, then SHA-256 over salt and canonical bytes.
    assert receipt.leaf_bytes == b"\x01" + hashlib.sha256(receipt.salt + canonical).digest()


@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
def test_receipt_files_are_what_they_were(index):
    assert file_of(index) == (GOLDEN / f"v1_{NAMES[index]}.receipt.json").read_bytes()


def test_the_public_key_file_is_what_it_was():
    assert f"{KEY.text}\n" == (GOLDEN / "v1.pub").read_text(encoding="ascii")


def test_canonical_bytes_hold_no_numbers_and_only_ascii():
    text = canonical_bytes(receipt_document(issued().receipts[0]))
    text.decode("ascii")

    def refuse(number):
        raise AssertionError(f"a bare number: {number}")

    json.loads(text, parse_int=refuse, parse_float=refuse, parse_constant=refuse)


def test_amounts_past_64_bits_are_exact_text():
    document = receipt_document(issued().receipts[1])
    assert document["quantities"]["cpu_milli_ms"] == str(2**70)
    assert document["energy"]["total_mj"] == str(2**80)
    assert document["is_estimated"] is True


def test_the_tenants_receipt_does_not_tell_the_operators_cost():
    receipt = issued().receipts[0]
    assert receipt.charge.operator_cost_neur == 802
    dearer = make_receipt(
        receipt.usage,
        replace(receipt.charge, operator_cost_neur=803),
        receipt.salt,
        (receipt.origin, receipt.index),
        SECRET,
    )
    shown, other = receipt_document(receipt), receipt_document(dearer)
    assert shown.pop("operator_cost_commitment") != other.pop("operator_cost_commitment")
    assert shown == other
    opened = operator_commitment(operator_salt(SECRET, receipt.id), 802)
    assert opened == receipt.operator_commitment
    assert operator_commitment(operator_salt(SECRET, receipt.id), 803) != opened
    assert operator_commitment(operator_salt(b"another", receipt.id), 802) != opened


def test_a_receipts_id_is_known_from_its_usage():
    assert receipt_id(ASKED.id) == "rcp_req_01HF7YAT000000000000000007"


def test_origins_name_factory_site_and_version():
    assert shard_origin("demo", "lyon") == "moulin/demo/lyon/receipts/v1"
    assert key_name("demo") == "moulin/demo"


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a/b", "é", "-a", "a\nb", "a" * 101])
def test_names_that_cannot_stand_in_a_note_are_refused(name):
    with pytest.raises(InvalidSpec):
        shard_origin(name, "lyon")
    with pytest.raises(InvalidSpec):
        shard_origin("demo", name)


def test_issuing_continues_the_shard():
    first = issued(USAGES[:2])
    second = issue(
        first.frontier,
        origin=ORIGIN,
        charged=charged([FREE]),
        salts=[bytes(32)],
        operator_secret=SECRET,
    )
    assert [receipt.index for receipt in (*first.receipts, *second.receipts)] == [0, 1, 2]
    assert second.head.size == 3
    assert second.head.root == naive_root([*first.leaf_hashes, *second.leaf_hashes])


def test_a_receipt_is_rebuilt_from_what_is_stored():
    receipt = issued().receipts[1]
    again = make_receipt(
        receipt.usage, receipt.charge, receipt.salt, (receipt.origin, receipt.index), SECRET
    )
    assert again == receipt


@pytest.mark.parametrize("salts", [[b"short"], [bytes(33)]])
def test_salts_have_32_bytes(salts):
    with pytest.raises(InvariantViolated, match="32 bytes"):
        issue(
            Frontier(),
            origin=ORIGIN,
            charged=charged([ASKED]),
            salts=salts,
            operator_secret=SECRET,
        )


def test_salts_come_from_320_random_bits():
    draws = iter([1, 2, 3, 2**80 - 1, 1, 2, 3, 2**80 - 2])
    first = make_salt(lambda: next(draws))
    assert len(first) == 32
    assert make_salt(lambda: next(draws)) != first


def test_a_receipt_states_a_usage_with_its_own_charge():
    (_, charge), *_ = charged()
    with pytest.raises(InvariantViolated, match="own charge"):
        make_receipt(FREE, charge, bytes(32), (ORIGIN, 0), SECRET)


def test_a_receipt_whose_usage_was_changed_cannot_be_shown():
    receipt = issued().receipts[0]
    changed = replace(receipt, usage=replace(receipt.usage, energy_mj=1))
    with pytest.raises(InvariantViolated, match="open its leaf"):
        receipt_file(changed, [], "", KEY)


def test_the_log_stays_verifiable_when_salt_and_receipt_are_erased():
    found = issued()
    assert naive_root(found.leaf_hashes) == found.head.root
    # Without the salt, knowing the whole receipt does not find its leaf.
    erased = replace(found.receipts[0], salt=bytes([7]) * 32)
    with pytest.raises(InvariantViolated, match="open its leaf"):
        receipt_file(erased, [], "", KEY)

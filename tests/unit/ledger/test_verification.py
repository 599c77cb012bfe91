"""Offline verification: good receipts pass, and each kind of forgery fails with its reason."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from moulin.ledger import VerifierKey, issue, root, verify_receipt
from moulin.ledger.checkpoint import TreeHead
from moulin.ledger.merkle import Frontier, append
from moulin.ledger.proof import leaf_hash
from moulin.ledger.verification import FILE_BYTES_MAX, file_bytes, leaf_bytes
from tests.unit.ledger.examples import (
    ASKED,
    KEY,
    ORIGIN,
    PRIVATE,
    SECRET,
    charged,
    file_of,
    is_signed,
    issued,
    note_of,
)

MALLORY = Ed25519PrivateKey.from_private_bytes(bytes(32))
MALLORY_KEY = VerifierKey(name=KEY.name, public_key=MALLORY.public_key().public_bytes_raw())


def verify(data, key=KEY):
    return verify_receipt(data, key, is_signed)


def document(index=0):
    return json.loads(file_of(index))


def forged(change, *, private=PRIVATE, key=KEY, origin=ORIGIN):
    """Return a file whose receipt was changed and committed to a new, properly signed log."""
    found = document()
    change(found["receipt"])
    leaf = leaf_hash(leaf_bytes(found["receipt"], bytes.fromhex(found["salt"])))
    frontier, _ = append(Frontier(), [leaf])
    head = TreeHead(origin=origin, size=1, root=root(frontier))
    found |= {
        "proof": [],
        "index": "0",
        "checkpoint": note_of(head, private, key),
        "key": key.fingerprint,
    }
    return file_bytes(found)


@pytest.mark.parametrize("index", range(3))
def test_a_receipt_is_proved(index):
    verdict = verify(file_of(index))
    assert verdict.ok
    assert verdict.statement == (
        f"OK: receipt {issued().receipts[index].id} is leaf {index} of 3 in {ORIGIN},"
        f" signed by {KEY.fingerprint}"
    )
    assert verdict.fields == document(index)["receipt"]


def test_the_only_receipt_of_a_log_is_proved():
    assert verify(file_of(0, issued([ASKED]))).ok


def test_a_receipt_of_someone_elses_key_fails_even_when_it_brings_that_key():
    verdict = verify(forged(lambda receipt: None, private=MALLORY, key=MALLORY_KEY))
    assert not verdict.ok
    assert "names key" in verdict.statement
    assert verdict.fields == {}


def test_a_receipt_that_only_names_the_right_key_fails():
    found = json.loads(forged(lambda receipt: None, private=MALLORY, key=MALLORY_KEY))
    found["key"] = KEY.fingerprint
    assert "not signed by" in verify(file_bytes(found)).statement


@pytest.mark.parametrize(
    ("change", "statement"),
    [
        (lambda r: r.update(project="mine"), "OK"),
        (lambda r: r.update(origin="moulin/demo/paris/receipts/v1"), "belongs to another log"),
        (lambda r: r["charge"].update(amount_neur="1"), "not the sum of its lines"),
        (lambda r: r["charge"].update(amount_neur="0499950"), "fields of a receipt"),
        (lambda r: r["charge"].update(amount_neur=499950), "fields of a receipt"),
        (lambda r: r["charge"].update(amount_neur="4.9"), "fields of a receipt"),
        (lambda r: r["charge"]["lines"].append({}), "fields of a receipt"),
        (lambda r: r["charge"].update(lines={}), "fields of a receipt"),
        (lambda r: r["energy"].update({"class": "F"}), "fields of a receipt"),
        (lambda r: r["quantities"].update(tokens_input="many"), "fields of a receipt"),
        (lambda r: r.update(quantities=[]), "fields of a receipt"),
        (lambda r: r["window"].update(end="yesterday"), "fields of a receipt"),
        (lambda r: r.update(is_estimated="false"), "fields of a receipt"),
        (lambda r: r.update(version="2"), "fields of a receipt"),
        (lambda r: r.update(extra="x"), "fields of a receipt"),
        (lambda r: r.pop("place"), "fields of a receipt"),
    ],
    ids=range(16),
)
def test_a_log_signed_by_the_right_key_must_still_make_sense(change, statement):
    assert statement in verify(forged(change)).statement


@pytest.mark.parametrize(
    ("field", "value", "statement"),
    [
        ("salt", "00" * 31 + "01", "not in the signed log"),
        ("salt", "AA" * 32, "fields of a receipt"),
        ("index", "1", "not in the signed log"),
        ("index", "-1", "not in the signed log"),
        ("index", "3", "not in the signed log"),
        ("index", 0, "fields of a receipt"),
        ("proof", [], "not in the signed log"),
        ("proof", ["00"], "fields of a receipt"),
        ("format", "moulin-receipt/v2", "fields of a receipt"),
        ("checkpoint", "", "not signed by"),
        ("key", "moulin/demo+00000000", "names key"),
    ],
)
def test_a_changed_field_fails(field, value, statement):
    verdict = verify(file_bytes(document() | {field: value}))
    assert not verdict.ok
    assert statement in verdict.statement


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b"{" * 10,
        b'{"a": NaN}',
        b'{"a": 1.5}',
        b"1" * 5000,
        "€".encode(),
        b" " * (FILE_BYTES_MAX + 1),
    ],
    ids=range(12),
)
def test_what_is_no_receipt_fails_calmly(data):
    verdict = verify(data)
    assert not verdict.ok
    assert verdict.statement.startswith("FAILED: ")


def test_the_same_content_written_otherwise_fails():
    for text in (
        json.dumps(document()),
        json.dumps(document(), sort_keys=True, indent=2),
        json.dumps(document(), sort_keys=True, indent=1) + "\n",
        json.dumps(document(), sort_keys=True, indent=2, ensure_ascii=False) + "\n",
        file_of(0).decode().replace('"salt"', '"salt": "", "salt"'),
    ):
        assert not verify(text.encode()).ok


def test_a_receipt_moved_to_another_place_of_the_log_fails():
    found = document(0) | {"index": document(1)["index"], "proof": document(1)["proof"]}
    assert "not in the signed log" in verify(file_bytes(found)).statement


def test_a_newer_checkpoint_proves_an_older_receipt():
    first = issued([ASKED])
    more = issue(
        first.frontier,
        origin=ORIGIN,
        charged=charged(),
        salts=[bytes([9]) * 32] * 3,
        operator_secret=SECRET,
    )
    assert more.head.size == 4
    whole = type(first)(
        frontier=more.frontier,
        receipts=(*first.receipts, *more.receipts),
        leaf_hashes=(*first.leaf_hashes, *more.leaf_hashes),
        nodes=(),
        head=more.head,
    )
    assert verify(file_of(0, whole)).ok

"""Verify a receipt file offline, with nothing but the bytes and a public key the reader trusts.

Accepts exactly one serialisation of each receipt: a file that differs from it in any byte fails,
and so does a key that the file brings along. Uses only the standard library and its two
neighbours `proof` and `checkpoint`, so that it can be read, and rewritten, in one sitting.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from moulin.ledger.checkpoint import (
    BrokenEvidence,
    TreeHead,
    VerifierKey,
    VerifySignature,
    open_checkpoint,
)
from moulin.ledger.proof import leaf_hash, verify_inclusion

FILE_FORMAT: Final = "moulin-receipt/v1"
FILE_BYTES_MAX: Final = 1_000_000
LEAF_VERSION: Final = b"\x01"

_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)
_TEXT: Final = r"(?s).*"
_AMOUNT: Final = r"0|-?[1-9][0-9]{0,59}"
_DIGEST: Final = r"[0-9a-f]{64}"
_TIME: Final = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{9}Z"
# A mapping with the key "*" has any keys; a list has its one shape for each item; a key that ends in
# "?" may be absent: the line of a batch has a name and a part of the price, other receipts do not.
RECEIPT_SHAPE: Final[Mapping[str, Any]] = {
    "version": "1",
    **dict.fromkeys(("id", "origin", "organisation", "project", "workload", "attempt"), _TEXT),
    **dict.fromkeys(("request", "usage", "subject", "model_digest", "policy_decision"), _TEXT),
    "window": {"start": _TIME, "end": _TIME},
    "quantities": {"*": _AMOUNT},
    "energy": {
        "total_mj": _AMOUNT,
        "overhead_mj": _AMOUNT,
        "class": "[A-E]",
        "uncertainty_ppm": _AMOUNT,
        "method": _TEXT,
    },
    "carbon": {"location_ng": _AMOUNT, "market_ng": _AMOUNT, "source": _TEXT},
    "charge": {
        "amount_neur": _AMOUNT,
        "price_book": _TEXT,
        "price_book_digest": _TEXT,
        "lines": [
            dict.fromkeys(("sku", "meter"), _TEXT)
            | dict.fromkeys(
                ("quantity", "unit_price_neur", "per", "amount_neur", "factor_ppm?"), _AMOUNT
            )
        ],
    },
    "operator_cost_commitment": _DIGEST,
    "place": dict.fromkeys(("zone", "site", "country", "country_basis"), _TEXT),
    "is_estimated": bool,
    "line?": _TEXT,
}
FILE_SHAPE: Final[Mapping[str, Any]] = {
    "format": re.escape(FILE_FORMAT),
    "receipt": RECEIPT_SHAPE,
    "salt": _DIGEST,
    "index": _AMOUNT,
    "proof": [_DIGEST],
    "checkpoint": _TEXT,
    "key": _TEXT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the receipt is proved, in one sentence; `fields` is the receipt when it is."""

    ok: bool
    statement: str
    fields: Mapping[str, Any] = field(default_factory=dict)


def canonical_bytes(receipt: Mapping[str, Any]) -> bytes:
    """Return the one byte form of a receipt that the log commits to: sorted ASCII JSON, no numbers."""
    return _CANONICAL.encode(receipt).encode("ascii")


def file_bytes(document: Mapping[str, Any]) -> bytes:
    """Return the one byte form of a receipt file."""
    return json.dumps(document, sort_keys=True, indent=2, ensure_ascii=True).encode("ascii") + b"\n"


def leaf_bytes(receipt: Mapping[str, Any], salt: bytes) -> bytes:
    """Return the leaf that commits to a receipt: version byte, SHA-256 of salt and canonical bytes."""
    return leaf_of(canonical_bytes(receipt), salt)


def leaf_of(canonical: bytes, salt: bytes) -> bytes:
    """Return the leaf that commits to a receipt's canonical bytes."""
    return LEAF_VERSION + hashlib.sha256(salt + canonical).digest()


def verify_receipt(data: bytes, key: VerifierKey, verify: VerifySignature) -> Verdict:
    """Return whether a receipt file is proved by `key`; never raises, whatever the bytes.

    Checks, in order: the exact serialisation and shape, the key, the checkpoint's signature, the
    leaf's place in the signed tree, the receipt's log, and that its charge is the sum of its lines.
    """
    try:
        document = _parse(data)
        head = _prove(document, key, verify)
    except BrokenEvidence as broken:
        return Verdict(ok=False, statement=f"FAILED: {broken}")
    receipt = document["receipt"]
    statement = (
        f"OK: receipt {receipt['id']} is leaf {document['index']} of {head.size}"
        f" in {head.origin}, signed by {key.fingerprint}"
    )
    return Verdict(ok=True, statement=statement, fields=receipt)


def _prove(document: Mapping[str, Any], key: VerifierKey, verify: VerifySignature) -> TreeHead:
    if document["key"] != key.fingerprint:
        raise BrokenEvidence(f"the receipt names key {document['key']}, not {key.fingerprint}")
    head = open_checkpoint(document["checkpoint"], key, verify)
    receipt = document["receipt"]
    leaf = leaf_hash(leaf_bytes(receipt, bytes.fromhex(document["salt"])))
    proof = [bytes.fromhex(digest) for digest in document["proof"]]
    if not verify_inclusion(leaf, int(document["index"]), head.size, proof, head.root):
        raise BrokenEvidence("the receipt is not in the signed log")
    if receipt["origin"] != head.origin:
        raise BrokenEvidence("the receipt belongs to another log")
    charge = receipt["charge"]
    if sum(int(line["amount_neur"]) for line in charge["lines"]) != int(charge["amount_neur"]):
        raise BrokenEvidence("the charge is not the sum of its lines")
    return head


def _parse(data: bytes) -> dict[str, Any]:
    if len(data) > FILE_BYTES_MAX:
        raise BrokenEvidence("the file is larger than any receipt")
    try:
        document = json.loads(data.decode("ascii"), parse_constant=_refuse, parse_float=_refuse)
        is_exact = file_bytes(document) == data
    except (ValueError, RecursionError) as cause:
        raise BrokenEvidence("the file is not a receipt") from cause
    if not _fits(document, FILE_SHAPE):
        raise BrokenEvidence("the file does not have the fields of a receipt")
    if not is_exact:
        raise BrokenEvidence("the file was changed: it is not written as receipts are")
    return dict(document)


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is not an exact value")


def _fits(value: object, shape: Any) -> bool:
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return False
        known = {name.removesuffix("?"): inner for name, inner in shape.items()}
        needed = {name for name in shape if not name.endswith("?")}
        if "*" not in shape and not needed <= value.keys() <= known.keys():
            return False
        return all(_fits(item, known.get(name, shape.get("*"))) for name, item in value.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(item, shape[0]) for item in value)
    if shape is bool:
        return isinstance(value, bool)
    return isinstance(value, str) and re.fullmatch(shape, value) is not None

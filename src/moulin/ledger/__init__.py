"""From usages to money and evidence: charges, balanced entries, the Merkle log and receipts."""

from moulin.ledger.checkpoint import (
    BrokenEvidence,
    TreeHead,
    VerifierKey,
    checkpoint_text,
    open_checkpoint,
    parse_verifier_key,
    signed_note,
)
from moulin.ledger.consistency import verify_consistency
from moulin.ledger.entries import (
    Hold,
    Invoice,
    check_balanced,
    invoice,
    post,
    release,
    reserve,
    settle,
    totals,
)
from moulin.ledger.evidence import Evidence
from moulin.ledger.merkle import (
    Frontier,
    append,
    consistency_proof,
    inclusion_proof,
    read_frontier,
    root,
)
from moulin.ledger.pricing import book_at, charge_line, find_price, price, price_book_digest
from moulin.ledger.proof import leaf_hash, verify_inclusion
from moulin.ledger.receipts import (
    Issue,
    issue,
    key_name,
    make_receipt,
    make_salt,
    operator_commitment,
    operator_salt,
    receipt_document,
    receipt_file,
    receipt_id,
    shard_origin,
)
from moulin.ledger.tiles import missing_nodes, nodes_from_tiles
from moulin.ledger.verification import Verdict, verify_receipt

__all__ = [
    "BrokenEvidence",
    "Evidence",
    "Frontier",
    "Hold",
    "Invoice",
    "Issue",
    "TreeHead",
    "Verdict",
    "VerifierKey",
    "append",
    "book_at",
    "charge_line",
    "check_balanced",
    "checkpoint_text",
    "consistency_proof",
    "find_price",
    "inclusion_proof",
    "invoice",
    "issue",
    "key_name",
    "leaf_hash",
    "make_receipt",
    "make_salt",
    "missing_nodes",
    "nodes_from_tiles",
    "open_checkpoint",
    "operator_commitment",
    "operator_salt",
    "parse_verifier_key",
    "post",
    "price",
    "price_book_digest",
    "read_frontier",
    "receipt_document",
    "receipt_file",
    "receipt_id",
    "release",
    "reserve",
    "root",
    "settle",
    "shard_origin",
    "signed_note",
    "totals",
    "verify_consistency",
    "verify_inclusion",
    "verify_receipt",
]

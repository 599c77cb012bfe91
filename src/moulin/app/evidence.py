"""Reads what proves receipts out of the store, for the API: proofs are made when asked for."""

from dataclasses import dataclass
from functools import partial

from moulin.domain.errors import Conflict, NotFound
from moulin.domain.factory import ObjectKind
from moulin.ledger import (
    VerifierKey,
    inclusion_proof,
    make_receipt,
    nodes_from_tiles,
    receipt_file,
    shard_origin,
)
from moulin.ports.signer import Signer
from moulin.ports.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvidence:
    """Implements the API's `Evidence` over a store and the factory's signer."""

    store: Store
    signer: Signer
    factory: str
    site: str

    def origin(self) -> str:
        """Return the shard of the factory's own site, or of its first one by name."""
        declared = [row.name for row in self.store.declared() if row.kind == ObjectKind.SITE]
        is_own = self.site in declared or not declared
        return shard_origin(self.factory, self.site if is_own else declared[0])

    def public_key(self) -> bytes:
        """Return the file that verifies checkpoints offline."""
        return f"{self._key.text}\n".encode()

    def receipt_file(self, receipt: str) -> bytes:
        """Return the file `moulin receipt verify` reads.

        Cost:   O(log leaves) reads for the proof, at most two tiles for every eight levels.
        Raises `NotFound` for no such receipt, `Conflict` before a checkpoint covers it or after
        its salt was erased.
        """
        row = self.store.receipt(receipt)
        if row is None:
            raise NotFound(f"read receipt {receipt}: there is no such receipt")
        if not row.salt_hex:
            raise Conflict(f"prove receipt {receipt}: its salt was erased on request")
        head = self.store.checkpoint(row.origin)
        if head is None or head.tree_size <= row.leaf_index:
            raise Conflict(
                f"prove receipt {receipt}: no checkpoint covers it yet", hint="try again shortly"
            )
        opened = make_receipt(
            row.usage,
            row.charge,
            bytes.fromhex(row.salt_hex),
            (row.origin, row.leaf_index),
            self.signer.operator_secret,
        )
        read = nodes_from_tiles(partial(self.store.tree_hashes, row.origin))
        proof = inclusion_proof(row.leaf_index, head.tree_size, read)
        return receipt_file(opened, proof, head.note, self._key)

    @property
    def _key(self) -> VerifierKey:
        return VerifierKey(name=self.signer.key_name, public_key=self.signer.public_key)

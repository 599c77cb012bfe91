"""Verify a receipt file offline: the file, a public key file, and nothing else.

Never opens a connection, a database or Moulin's own state; never trusts a key that a receipt names.
"""

from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from moulin.ledger.checkpoint import BrokenEvidence, parse_verifier_key
from moulin.ledger.verification import FILE_BYTES_MAX, Verdict, verify_receipt


def verify_file(path: Path, public_key_path: Path) -> Verdict:
    """Return whether the receipt in a file is proved by the public key in another.

    A file that cannot be read is not proved: the verdict says why, nothing is raised.
    """
    try:
        key = parse_verifier_key(_read(public_key_path).decode("ascii", errors="replace"))
        data = _read(path)
    except (OSError, BrokenEvidence) as cause:
        return Verdict(ok=False, statement=f"FAILED: {cause}")
    return verify_receipt(data, key, _is_signed)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(FILE_BYTES_MAX + 1)


def _is_signed(public_key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True

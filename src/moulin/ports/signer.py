"""Signing of evidence checkpoints, apart from the pure code that builds the signed bytes."""

from typing import Protocol


class Signer(Protocol):
    """Holds the factory's signing key and the secret behind the operator's own figures."""

    @property
    def key_name(self) -> str:
        """The name under which the public key is published."""
        ...

    @property
    def public_key(self) -> bytes:
        """The 32 bytes of the Ed25519 public key."""
        ...

    @property
    def operator_secret(self) -> bytes:
        """What salts the commitments to the operator's own costs; never shown to tenants."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of `message`."""
        ...

"""The key with which one attempt of a replica registers: derived, so that nobody has to keep it."""

import hmac
from typing import Final

from moulin.domain.ids import AttemptId

REGISTRATION_KEY_CONTEXT: Final = b"moulin registration key v1\n"


def registration_key(pepper: bytes, attempt: AttemptId) -> str:
    """Return the key of an attempt; another attempt, of the same replica too, has another."""
    return hmac.digest(pepper, REGISTRATION_KEY_CONTEXT + attempt.encode(), "sha256").hex()


def may_register(pepper: bytes, attempt: AttemptId, shown: str) -> bool:
    """Say whether a credential is the key of this attempt."""
    expected = registration_key(pepper, attempt).encode()
    return hmac.compare_digest(shown.encode("utf-8", "replace"), expected)

"""Decides whether a shown credential is a valid key, and whose.

It never keeps a secret: keys are made from entropy handed in and known afterwards only by their
HMAC under the installation's pepper. A caller outside learns one thing, valid or not; the reason is
a value for counters and logs.

Format of a key: `mk_`, at least 27 characters of base 62 (160 bits and more), then six characters
of base 62 of the CRC-32 of all before it, so that a scanner or a form can tell a key from noise
without asking anybody. The checksum is no secret and no security.
"""

import hashlib
import hmac
import re
import zlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from moulin.domain.errors import Unauthenticated, check
from moulin.domain.principal import ApiKey, Principal

PREFIX: Final = "mk_"
ENTROPY_BYTES_MIN: Final = 20
KEY_CHARACTERS_MAX: Final = 128
_CHECKSUM_CHARACTERS: Final = 6
_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FORM: Final = re.compile(r"mk_[0-9A-Za-z]{33,125}")


class Rejection(StrEnum):
    """Why a credential is not accepted; never told to the caller."""

    MISSING = "missing"
    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    REVOKED = "revoked"
    EXPIRED = "expired"


def make_key(entropy: bytes) -> str:
    """Return a key made of `entropy`, at least 20 bytes from a source nobody can guess.

    Equal entropy gives an equal key; the length depends only on the number of bytes.

    >>> make_key(bytes(20))
    'mk_0000000000000000000000000001Ejstb'
    """
    check(len(entropy) >= ENTROPY_BYTES_MIN, "a key needs at least 160 bits of entropy")
    # 62**1000 > 2**5954, so this many digits hold every value of that many bytes.
    digits = -(-8 * len(entropy) * 1000 // 5954)
    body = PREFIX + _base62(int.from_bytes(entropy), digits)
    key = body + _checksum(body)
    check(len(key) <= KEY_CHARACTERS_MAX, "a key must fit the accepted length")
    return key


def is_well_formed(key: str) -> bool:
    """Say whether `key` has the form and the checksum of a key; it may still be unknown."""
    if _FORM.fullmatch(key) is None:
        return False
    return _checksum(key[:-_CHECKSUM_CHARACTERS]) == key[-_CHECKSUM_CHARACTERS:]


def digest(pepper: bytes, key: str) -> str:
    """Return the HMAC-SHA-256 of a key under the pepper, in hexadecimal: what is stored of it.

    A plain fast HMAC is enough because keys are drawn with 160 bits, not chosen by people.
    """
    return hmac.new(pepper, key.encode(), hashlib.sha256).hexdigest()


def webhook_secret(pepper: bytes, url: str) -> str:
    """Return the secret that alerts to an address are signed with, in hexadecimal.

    Whoever receives for one address cannot sign for another.
    """
    return hmac.new(pepper, f"moulin webhook v1\n{url}".encode(), hashlib.sha256).hexdigest()


def examine(
    credential: str, keyring: Mapping[str, ApiKey], now_ns: int, pepper: bytes
) -> ApiKey | Rejection:
    """Return the key that `credential` is, or why it is none; `keyring` maps digests to keys.

    The secret itself is never compared: the lookup is by HMAC, which a caller cannot steer, and
    the digests are compared in constant time.
    """
    if not credential:
        return Rejection.MISSING
    if len(credential) > KEY_CHARACTERS_MAX or not is_well_formed(credential):
        return Rejection.MALFORMED
    shown = digest(pepper, credential)
    key = keyring.get(shown)
    if key is None or not hmac.compare_digest(key.digest, shown):
        return Rejection.UNKNOWN
    if key.revoked_at_ns != 0:
        return Rejection.REVOKED
    if key.expires_at_ns != 0 and now_ns >= key.expires_at_ns:
        return Rejection.EXPIRED
    return key


def identify(
    credential: str, keyring: Mapping[str, ApiKey], now_ns: int, pepper: bytes
) -> Principal:
    """Return who shows `credential`.

    Raises `Unauthenticated`, the same for every reason, so that nothing is learned from it.
    """
    found = examine(credential, keyring, now_ns, pepper)
    if isinstance(found, Rejection):
        raise unauthenticated()
    return principal_of(found)


def principal_of(key: ApiKey) -> Principal:
    """Return the principal a valid key stands for."""
    return Principal(
        key=key.id,
        name=key.name,
        role=key.role,
        organisation=key.organisation,
        project=key.project,
    )


def unauthenticated() -> Unauthenticated:
    """Return the one answer to every credential that is not accepted."""
    return Unauthenticated(
        "identify the caller: no valid API key was shown",
        hint="send `Authorization: Bearer mk_…` with a key that is neither expired nor revoked",
    )


def _checksum(text: str) -> str:
    return _base62(zlib.crc32(text.encode()), _CHECKSUM_CHARACTERS)


def _base62(value: int, digits: int) -> str:
    found = []
    for _ in range(digits):
        value, digit = divmod(value, 62)
        found.append(_ALPHABET[digit])
    check(value == 0, "the digits must hold the value")
    return "".join(reversed(found))

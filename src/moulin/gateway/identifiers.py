"""Request ids at the rate of requests: the same form as `moulin.domain.ids.make_id`, made in bulk.

The random halves of 512 ids are drawn and written in base 32 at once; it never repeats one.
"""

import os
from typing import Final

from moulin.domain.ids import make_id

_BATCH: Final = 512
_ENTROPY_CHARACTERS: Final = 16
_CROCKFORD: Final = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Each random byte gives one character of 5 bits, evenly: 256 is a multiple of 32.
_CHARACTER_BY_BYTE: Final = bytes(_CROCKFORD[byte & 31] for byte in range(256))
# The last two characters of a millisecond; those before them change once in 1024 ms.
_PAIRS: Final = tuple(bytes((high, low)) for high in _CROCKFORD for low in _CROCKFORD)


class RequestIds:
    """Draws the 26 characters of request ids."""

    __slots__ = ("_pool", "_span", "_time")

    def __init__(self) -> None:
        self._pool: list[bytes] = []
        self._span = -1
        self._time = b""

    def draw(self, at_ns: int) -> bytes:
        """Return 26 characters: 48 bits of milliseconds, 80 bits of entropy."""
        span, rest = divmod(at_ns // 1_000_000, len(_PAIRS))
        if span != self._span:
            self._span = span
            self._time = make_id("", at_ns, 0)[1 : -_ENTROPY_CHARACTERS - 2].encode()
        if not self._pool:
            self._pool = _entropy_texts()
        return self._time + _PAIRS[rest] + self._pool.pop()


def call_id(request: bytes, number: int, *, is_mistral: bool) -> str:
    """Return the id of one call of a request's answer; Mistral's templates want nine characters."""
    if is_mistral:
        return (request[-8:] + _CROCKFORD[number & 31 :][:1]).decode()
    return f"call_{request.decode()}{number}"


def _entropy_texts() -> list[bytes]:
    text = os.urandom(_BATCH * _ENTROPY_CHARACTERS).translate(_CHARACTER_BY_BYTE)
    return [text[i : i + _ENTROPY_CHARACTERS] for i in range(0, len(text), _ENTROPY_CHARACTERS)]

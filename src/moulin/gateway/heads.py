r"""Heads of requests that were read before, so that a client's next request costs one look-up.

A client sends the same head again and again; only its length changes. It decides nothing by itself:
a head is here only after the strict parser and the edge took it, and is found again only byte for
byte, but for the digits of its Content-Length. What is not one whole request with such a head goes
the long way. It never keeps a body.

Reference: RFC 9112 section 6.3; `benchmarks smuggling` drives both ways.
"""

from typing import Final

Traits = tuple[bytes, bytes, bool, bool, bool, bool, bytes, bytes, bytes]
"""What a head says, in the order in which `moulin.gateway.edge.Inbound` has it."""

_HEAD_END: Final = b"\r\n\r\n"
_LINE_END: Final = b"\r\n"
_LENGTH: Final = b"\r\nContent-Length: "
_LENGTH_LOWER: Final = b"\r\ncontent-length: "
_DIGITS_MAX: Final = 9
# Clients choose what is remembered, so there is an end to it.
_REMEMBERED_MAX: Final = 1000
_REMEMBERED_BYTES_MAX: Final = 2048


class Heads:
    """What was read of each head, by its bytes without the digits of its length."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, Traits] = {}

    def find(self, data: bytes) -> tuple[Traits, bytes] | None:
        """Return what the head says and the body, where `data` is one request with a known head."""
        end = data.find(_HEAD_END) + 4
        key, length = _split(data, end)
        traits = self._known.get(key)
        if traits is None or len(data) - end != length:
            return None
        return traits, data[end:]

    def learn(self, data: bytes, traits: Traits, body_bytes: int) -> None:
        """Remember the head of a request that was taken, if all of it, and nothing else, is `data`."""
        end = data.find(_HEAD_END) + 4
        if end > _REMEMBERED_BYTES_MAX or len(data) - end != body_bytes:
            return
        key, length = _split(data, end)
        if length != body_bytes:
            return
        if len(self._known) >= _REMEMBERED_MAX:
            self._known.clear()
        self._known[key] = traits


def _split(data: bytes, end: int) -> tuple[bytes, int]:
    """Return a head without the digits of its length, and the length; -1 where there is none.

    The digits stand behind the first line that begins as one of the two spellings; the parser has
    refused heads with a second such field, so nothing else in a known head can be its length.
    """
    begin = data.find(_LENGTH, 0, end)
    if begin < 0:
        begin = data.find(_LENGTH_LOWER, 0, end)
        if begin < 0:
            return b"", -1
    begin += len(_LENGTH)
    after = data.find(_LINE_END, begin, end)
    digits = data[begin:after]
    if after - begin > _DIGITS_MAX or not digits.isdigit():
        return b"", -1
    return data[:begin] + data[after:end], int(digits)

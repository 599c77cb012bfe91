"""The head a client sent before, so that its next request is found by its bytes and not parsed.

A client sends the same head again and again on a connection; only its length changes. It decides
nothing by itself: a head is kept only after the strict parser and the edge took it, and is found
again only byte for byte, but for the digits of its Content-Length. What is not one whole request
with that head goes the long way. It never keeps a body.

Reference: RFC 9112 section 6.3; a property test holds it to the parser's own reading.
"""

from typing import Final

Traits = tuple[bytes, bytes, bool, bool, bool, bool, bool, bytes, bytes, bytes]
"""What a head says, in the order in which `moulin.gateway.edge.Inbound` has it."""

_HEAD_END: Final = b"\r\n\r\n"
_LINE_END: Final = b"\r\n"
_LENGTH: Final = b"\r\nContent-Length: "
_LENGTH_LOWER: Final = b"\r\ncontent-length: "
_DIGITS_MAX: Final = 9
_HEAD_BYTES_MAX: Final = 2048


class KnownHead:
    """A head that was taken: what it says, and its bytes before and behind the digits."""

    __slots__ = ("_before", "_behind", "authorization", "traits")

    def __init__(self, before: bytes, behind: bytes, traits: Traits) -> None:
        self._before = before
        self._behind = behind
        self.authorization = traits[-1]
        self.traits = traits

    def body_of(self, data: bytes) -> bytes | None:
        """Return the body where `data` is one whole request with this head, None for all else."""
        if not data.startswith(self._before):
            return None
        begin = len(self._before)
        end = data.find(_LINE_END, begin, begin + _DIGITS_MAX + 2)
        digits = data[begin:end]
        if end < 0 or not digits.isdigit() or not data.startswith(self._behind, end):
            return None
        body = data[end + len(self._behind) :]
        return body if len(body) == int(digits) else None


def learn(data: bytes, traits: Traits, body_bytes: int) -> KnownHead | None:
    """Return the head of a request that was taken, if all of it, and nothing else, is `data`.

    The digits stand behind the first line that begins as one of the two spellings; the parser has
    refused heads with a second such field, so nothing else in a known head can be its length.
    """
    end = data.find(_HEAD_END) + len(_HEAD_END)
    if end > _HEAD_BYTES_MAX or len(data) - end != body_bytes:
        return None
    begin = data.find(_LENGTH, 0, end)
    if begin < 0:
        begin = data.find(_LENGTH_LOWER, 0, end)
        if begin < 0:
            return None
    begin += len(_LENGTH)
    known = KnownHead(data[:begin], data[data.find(_LINE_END, begin) : end], traits)
    return known if known.body_of(data) is not None else None

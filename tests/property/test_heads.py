"""Heads: what is found by its head is framed and read as the parser would have."""

import itertools
from collections.abc import Iterator

import httptools
from hypothesis import given
from hypothesis import strategies as st

from moulin.gateway.heads import Traits, learn

TRAITS: Traits = (b"POST", b"/x", False, True, False, False, False, b"", b"/x", b"")
LINES = st.lists(
    st.sampled_from(
        [
            b"Content-Length: 2", b"content-length: 2", b"CONTENT-LENGTH: 2", b"Content-Length:2",
            b"X-Content-Length: 2", b"X: content-length: 2", b"X: \tContent-Length: 2", b"Host: a",
            b"X:", b" y", b"x y", b"Content-Length: 002", b"Transfer-Encoding: chunked",
        ]
    ),
    max_size=4,
)  # fmt: skip
DIGITS = (b"0", b"1", b"2", b"3", b"02", b"4", b"+2", b"2 ", b"2\n", b"0x2", b"")
BODIES = (b"", b"{}", b"[1]", b"\r\n", b"1\r\n\r\n", b"{}POST / HTTP/1.1\r\n\r\n")


class Reading:
    """What the parser makes of bytes: each message's target, fields and body."""

    def __init__(self, data: bytes) -> None:
        self.url = self.body = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.messages = 0
        httptools.HttpRequestParser(self).feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, b"" if name.lower() == b"content-length" else value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.messages += 1


def changed(head: bytes) -> Iterator[bytes]:
    """Yield requests whose heads differ from one in a number, with all kinds of bodies."""
    parts = head.split(b": 2")
    for place, digits, body in itertools.product(range(1, len(parts)), DIGITS, BODIES):
        before, after = b": 2".join(parts[:place]), b": 2".join(parts[place:])
        yield b"%b: %b%b\r\n\r\n%b" % (before, digits, after, body)


@given(lines=LINES)
def test_what_is_found_is_what_the_parser_reads(lines: list[bytes]) -> None:
    head = b"POST /x HTTP/1.1\r\n" + b"\r\n".join(lines)
    learned = head + b"\r\n\r\n{}"
    try:
        reading = Reading(learned)
    except httptools.HttpParserError:
        return
    known = learn(learned, TRAITS, len(reading.body))
    for asked in changed(head):
        body = known.body_of(asked) if known is not None else None
        if body is None:
            continue
        read = Reading(asked)
        assert read.messages == 1
        assert (read.url, read.fields, read.body) == (reading.url, reading.fields, body)

"""Which answers are read without the parser: whole ones that say all of it in the plainest way."""

import doctest

import pytest

from moulin.gateway import upstream
from moulin.gateway.upstream import whole_body

PLAIN = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 4\r\nX: y\r\n\r\nbody"


def test_the_examples_are_true() -> None:
    found = doctest.testmod(upstream)
    assert (found.failed, found.attempted > 0) == (0, True)


@pytest.mark.parametrize(
    "answer",
    [
        PLAIN,
        PLAIN.replace(b"Content-Length", b"content-length"),
        PLAIN.replace(b"X: y\r\n", b""),
        PLAIN.replace(b"X: y", b"Connection: keep-alive"),
    ],
)
def test_a_plain_answer_is_read(answer: bytes) -> None:
    assert whole_body(answer) == b"body"


def test_an_answer_may_be_empty() -> None:
    assert whole_body(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") == b""


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        PLAIN[:-1],
        PLAIN + b"x",
        PLAIN + PLAIN,
        PLAIN[: -len(b"body")],
        PLAIN.replace(b" 200 ", b" 503 "),
        PLAIN.replace(b"/1.1 ", b"/1.0 "),
        b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN,
        PLAIN.replace(b"X: y", b"Connection: close"),
        PLAIN.replace(b"X: y", b"Connection: X, Close"),
        PLAIN.replace(b"X: y", b"Transfer-Encoding: chunked"),
        PLAIN.replace(b"X: y", b"content-length: 4"),
        PLAIN.replace(b": 4", b": 04"),
        PLAIN.replace(b": 4", b": 4x"),
        PLAIN.replace(b": 4", b": 40"),
        PLAIN.replace(b"Content-Length: 4\r\n", b""),
        b"HTTP/1.1 200 OK\r\nContent-Length: 4body",
    ],
)
def test_every_other_answer_is_the_parsers(answer: bytes) -> None:
    assert whole_body(answer) is None

"""Which requests are found by a head that was read before, and which go the long way."""

import pytest

from moulin.gateway.heads import KnownHead, Traits, learn

TRAITS: Traits = (b"POST", b"/v1/x", False, True, False, False, False, b"", b"/v1/x", b"Bearer k")
FIELDS = b"Authorization: Bearer k\r\n"


def request(
    body: bytes,
    length: int | None = None,
    *,
    name: bytes = b"Content-Length",
    fields: bytes = FIELDS,
) -> bytes:
    said = len(body) if length is None else length
    return b"POST /v1/x HTTP/1.1\r\nHost: a\r\n%b: %d\r\n%b\r\n%b" % (name, said, fields, body)


def known(taken: bytes) -> KnownHead:
    head = learn(taken, TRAITS, len(taken.partition(b"\r\n\r\n")[2]))
    assert head is not None
    return head


@pytest.mark.parametrize("body", [b"{}", b"[]", b"", b"x" * 12_345, b"\r\n\r\n", b"\x00\t"])
@pytest.mark.parametrize("name", [b"Content-Length", b"content-length"])
def test_a_known_head_is_found_with_any_body(body: bytes, name: bytes) -> None:
    head = known(request(b"{}", name=name))
    assert head.traits == TRAITS
    assert head.body_of(request(body, name=name)) == body


@pytest.mark.parametrize(
    "other",
    [
        b"",
        b"{}",
        request(b"{}", 1),
        request(b"{}", 3),
        request(b"{}") + request(b"{}"),
        request(b"{}", 200),
        request(b"{}", name=b"content-length"),
        request(b"{}", name=b"Content-length"),
        request(b"{}", fields=FIELDS + b"Transfer-Encoding: chunked\r\n"),
        request(b"{}", fields=FIELDS + b"Content-Length: 1\r\n"),
        request(b"{}", fields=b"Content-Length: 1\r\n" + FIELDS),
        request(b"{}", fields=b"Authorization: Bearer l\r\n"),
        request(b"{}").replace(b": 2", b": +2"),
        request(b"{}").replace(b": 2", b": 2 "),
        request(b"{}").replace(b": 2", b":  2"),
        request(b"{}").replace(b": 2", b": "),
        request(b"{}").replace(b": 2", b": 2\n"),
        request(b"{}").replace(b": 2", b": 0000000002"),
        request(b"{}").replace(b"POST", b"post"),
    ],
)
def test_what_differs_is_not_found(other: bytes) -> None:
    assert known(request(b"{}")).body_of(other) is None


@pytest.mark.parametrize(
    ("data", "body_bytes"),
    [
        (request(b"{}")[:-1], 2),
        (request(b"{}") + b"x", 2),
        (request(b"{}") + request(b"{}"), 2),
        (b"{}", 2),
        (request(b"", 2), 2),
        (request(b"", 2), 0),
        (request(b"{}", name=b"CONTENT-LENGTH"), 2),
        (request(b"{}").replace(b": 2", b":2"), 2),
        (request(b"{}", fields=FIELDS + b"X: %b\r\n" % (b"x" * 2048)), 2),
    ],
)
def test_what_is_not_learned(data: bytes, body_bytes: int) -> None:
    assert learn(data, TRAITS, body_bytes) is None

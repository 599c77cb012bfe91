"""Which requests are found by a head that was read before, and which go the long way."""

import pytest

from moulin.gateway.heads import Heads, Traits

TRAITS: Traits = (b"POST", b"/v1/x", False, True, False, False, b"", b"/v1/x", b"Bearer k")
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


def known(*requests: bytes) -> Heads:
    heads = Heads()
    for each in requests:
        heads.learn(each, TRAITS, len(each.partition(b"\r\n\r\n")[2]))
    return heads


@pytest.mark.parametrize("body", [b"{}", b"[]", b"", b"x" * 12_345, b"\r\n\r\n", b"\x00\t"])
@pytest.mark.parametrize("name", [b"Content-Length", b"content-length"])
def test_a_known_head_is_found_with_any_body(body: bytes, name: bytes) -> None:
    heads = known(request(b"{}", name=name))
    assert heads.find(request(body, name=name)) == (TRAITS, body)


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
    assert known(request(b"{}")).find(other) is None


def test_what_did_not_come_in_one_piece_is_not_learned() -> None:
    whole = request(b"{}")
    heads = Heads()
    for data, body_bytes in ((whole[:-1], 2), (whole + b"x", 2), (whole + whole, 2), (b"{}", 2)):
        heads.learn(data, TRAITS, body_bytes)
    heads.learn(request(b"", 2), TRAITS, 2)
    assert heads.find(whole) is None


def test_a_long_head_is_not_learned() -> None:
    long = request(b"{}", fields=FIELDS + b"X: %b\r\n" % (b"x" * 2048))
    assert known(long).find(long) is None


def test_there_is_an_end_to_what_is_remembered() -> None:
    heads = known(*(request(b"", fields=b"X: %d\r\n" % number) for number in range(1500)))
    found = [heads.find(request(b"", fields=b"X: %d\r\n" % n)) is not None for n in range(1500)]
    assert sum(found) <= 1000
    assert found[-1]

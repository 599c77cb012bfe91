"""What a target and a Host field may say, and which heads only our parser would take."""

import doctest

import pytest

from benchmarks import smuggling, streams
from moulin.gateway import grammar
from moulin.gateway.grammar import is_host, is_misread, is_target


@pytest.mark.parametrize("module", [grammar, smuggling, streams])
def test_the_examples_are_true(module: object) -> None:
    found = doctest.testmod(module)  # type: ignore[arg-type]
    assert (found.failed, found.attempted > 0) == (0, True)


@pytest.mark.parametrize("host", ["a", "a.b-c.d.", "a:1", "[::1]:8701", "127.0.0.1", "_x"])
def test_a_host_is_taken_each_time(host: str) -> None:
    assert is_host(host.encode())
    assert is_host(host.encode())


@pytest.mark.parametrize(
    "host",
    ["", " ", "a b", "a,b", "a..b", ".", "a/b", "a@b", "[::1", "[::1]x", "a:b", "é", "a:123456"],
)
def test_what_is_no_host(host: str) -> None:
    assert not is_host(host.encode())


@pytest.mark.parametrize(
    "target", ["/", "/v1/models", "/v1/models/a%2Fb:c", "/x?a=/../&b=%20", "/a..b"]
)
def test_a_target_is_taken_each_time(target: str) -> None:
    assert is_target(target.encode())
    assert is_target(target.encode())


@pytest.mark.parametrize(
    "target",
    [
        "",
        "*",
        "a:1",
        "http://a/",
        "/..",
        "/a/./b",
        "/a/%2E./b",
        "/%2e%2e%2fx",
        "/%00",
        "/%zz",
        "/é",
        "/a b",
        "/\\",
        "/a#b",
    ],
)
def test_what_is_no_plain_target(target: str) -> None:
    assert not is_target(target.encode())


def test_a_prompt_about_old_protocols_is_no_head() -> None:
    assert not is_misread(b'{"content": "What is GET / RTSP/1.0?\\r\\nhost:\\ta"}')
    assert not is_misread(b'{\r\n\t"model":\t"a",\r\n\t"n":\t1}')
    assert is_misread(b"GET / RTSP/1.0\r\n")
    assert is_misread(b"transfer-encoding: chunked\t\r\n")

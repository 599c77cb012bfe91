"""Which addresses are bound, whom they reach, and what is refused without TLS."""

import pytest

from moulin.domain.addresses import addresses_of, check_reach, is_loopback, reaches_others
from moulin.domain.errors import InvalidRequest


@pytest.mark.parametrize(
    ("listen", "bound", "is_open"),
    [
        ("127.0.0.1", ("127.0.0.1",), False),
        ("localhost", ("127.0.0.1",), False),
        ("127.0.0.2", ("127.0.0.2", "127.0.0.1"), False),
        ("::1", ("::1", "127.0.0.1"), False),
        ("0.0.0.0", ("0.0.0.0",), True),
        ("::", ("::", "0.0.0.0"), True),
        ("10.0.0.5", ("10.0.0.5", "127.0.0.1"), True),
        ("fd00::5", ("fd00::5", "127.0.0.1"), True),
    ],
)
def test_loopback_is_always_bound(listen: str, bound: tuple[str, ...], is_open: bool) -> None:
    assert addresses_of(listen) == bound
    assert reaches_others(listen) is is_open


@pytest.mark.parametrize("listen", ["", "mill.example", "10.0.0", "10.0.0.5:8700", "[::]"])
def test_what_is_no_address(listen: str) -> None:
    with pytest.raises(InvalidRequest, match="that is no address"):
        addresses_of(listen)


@pytest.mark.parametrize(
    ("listen", "is_tls", "is_allowed", "is_refused"),
    [
        ("127.0.0.1", False, False, False),
        ("10.0.0.5", True, False, False),
        ("10.0.0.5", False, True, False),
        ("10.0.0.5", False, False, True),
        ("::", False, False, True),
    ],
)
def test_others_are_served_in_the_clear_only_when_that_was_said(
    listen: str, is_tls: bool, is_allowed: bool, is_refused: bool
) -> None:
    if not is_refused:
        check_reach(listen, is_tls=is_tls, is_plain_allowed=is_allowed)
        return
    with pytest.raises(InvalidRequest, match="without TLS") as caught:
        check_reach(listen, is_tls=is_tls, is_plain_allowed=is_allowed)
    assert "--insecure-plain-http" in caught.value.hint


def test_hosts_of_urls() -> None:
    assert is_loopback("localhost")
    assert is_loopback("127.0.0.1")
    assert not is_loopback("")
    assert not is_loopback("localhost.example")

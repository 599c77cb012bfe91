"""Which addresses of this machine a process listens on, and whom each of them reaches.

It decides from the words alone: nothing is resolved, since a name may lead elsewhere tomorrow.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from moulin.domain.errors import InvalidRequest

LOOPBACK: Final = "127.0.0.1"
_NAME: Final = "localhost"


def addresses_of(listen: str) -> tuple[str, ...]:
    """Return what to bind for an address: itself, and loopback, where Moulin speaks to itself.

    Raises `InvalidRequest` for a name or anything else that is no address.

    >>> addresses_of("localhost"), addresses_of("10.0.0.5"), addresses_of("::")
    (('127.0.0.1',), ('10.0.0.5', '127.0.0.1'), ('::', '0.0.0.0'))
    """
    found = _address(listen)
    if found.version == 6 and found.is_unspecified:
        return (str(found), str(IPv4Address(0)))
    if str(found) == LOOPBACK or found.is_unspecified:
        return (str(found),)
    return (str(found), LOOPBACK)


def reaches_others(listen: str) -> bool:
    """Say whether other machines can connect to an address; raises as `addresses_of` does.

    >>> reaches_others("127.0.0.7"), reaches_others("0.0.0.0")
    (False, True)
    """
    return not _address(listen).is_loopback


def is_every_address(listen: str) -> bool:
    """Say whether an address stands for all that this machine has; raises as `addresses_of` does."""
    return _address(listen).is_unspecified


def is_loopback(host: str) -> bool:
    """Say whether a host, as a URL names it, is the machine that asks.

    >>> is_loopback("localhost"), is_loopback("::1"), is_loopback("mill.example")
    (True, True, False)
    """
    try:
        return _address(host).is_loopback
    except InvalidRequest:
        return False


def check_reach(listen: str, *, is_tls: bool, is_plain_allowed: bool) -> None:
    """Raise `InvalidRequest` where other machines would be served in the clear unasked."""
    if not reaches_others(listen) or is_tls or is_plain_allowed:
        return
    raise InvalidRequest(
        f"listen on {listen} without TLS: everybody on the way could read keys, prompts and answers",
        hint="`--tls self` makes a certificate, --tls-cert and --tls-key take yours; "
        "--insecure-plain-http serves without, where something else protects the way",
    )


def _address(text: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(LOOPBACK if text == _NAME else text)
    except ValueError:
        raise InvalidRequest(
            f"listen on {text!r}: that is no address",
            hint="give one of this machine's addresses such as 10.0.0.5, or 0.0.0.0 for all of them",
        ) from None

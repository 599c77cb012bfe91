"""What a request line and a Host field may say here: less than RFC 9112 allows, never more.

It decides form only, and remembers the forms it met, so that the usual ones cost one look-up. What
nginx in front, or beside, would refuse or read differently is refused (`benchmarks smuggling`).

Reference: RFC 9110 sections 4.2 and 7.2, RFC 9112 section 3.2, RFC 3986 sections 3.2.2 and 3.3.
"""

import re
from typing import Final

METHODS: Final = frozenset({b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"HEAD", b"OPTIONS"})
_HOST: Final = re.compile(
    rb"(?:[0-9A-Za-z_-]+(?:\.[0-9A-Za-z_-]+)*\.?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
)
_TARGET: Final = re.compile(
    rb"/(?:[0-9A-Za-z._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*"
    rb"(?:\?(?:[0-9A-Za-z._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?"
)
_MISREAD: Final = re.compile(
    rb"(?i:\b(?:host|content-length|transfer-encoding):[^\r\n]*\t)| RTSP/[0-9.]+ *\r?\n"
)
_DOT: Final = re.compile(rb"%2e", re.IGNORECASE)
_SLASH: Final = re.compile(rb"%2f", re.IGNORECASE)
# Clients choose what is remembered, so there is an end to it.
_REMEMBERED_MAX: Final = 1000
_REMEMBERED_BYTES_MAX: Final = 256
_hosts: Final[set[bytes]] = set()
_targets: Final[set[bytes]] = set()


def is_host(value: bytes) -> bool:
    """Say whether a Host field names one host, with or without a port.

    >>> is_host(b"localhost:8701"), is_host(b"[::1]"), is_host(b"a, b"), is_host(b"")
    (True, True, False, False)
    """
    if value in _hosts:
        return True
    if _HOST.fullmatch(value) is None:
        return False
    _remember(_hosts, value)
    return True


def is_target(target: bytes) -> bool:
    """Say whether a target is a path, with or without a query, that means the same to everybody.

    >>> is_target(b"/v1/models?limit=2"), is_target(b"/v1/models/a%2Fb")
    (True, True)
    >>> is_target(b"http://a/v1"), is_target(b"/v1/../x"), is_target(b"/%2e%2e/x"), is_target(b"/a#b")
    (False, False, False, False)
    """
    if target in _targets:
        return True
    if _TARGET.fullmatch(target) is None or b"%00" in target:
        return False
    path = _SLASH.sub(b"/", _DOT.sub(b".", target.partition(b"?")[0]))
    if not {b".", b".."}.isdisjoint(path.split(b"/")):
        return False
    _remember(_targets, target)
    return True


def is_misread(data: bytes) -> bool:
    r"""Say whether whole heads in `data` hold what our parser takes for HTTP/1.1 and nginx does not.

    That is a tab around a value that frames requests, and the protocol of another day. A line of a
    JSON body never looks like either: names there end with a quote, and strings have no line end.

    >>> is_misread(b"Host: a\r\nContent-Length:\t5\r\n"), is_misread(b'{"host":\t"a"}')
    (True, False)
    """
    return _MISREAD.search(data) is not None


def _remember(known: set[bytes], form: bytes) -> None:
    if len(known) < _REMEMBERED_MAX and len(form) <= _REMEMBERED_BYTES_MAX:
        known.add(form)

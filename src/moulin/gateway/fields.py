"""What the fields of a request's head mean to the edge, and which of them may stand there once.

It decides field by field, without the rest of the head; the edge judges the whole. Most fields mean
nothing here and are not kept.
"""

from collections.abc import Callable
from typing import Final, Protocol


class Head(Protocol):
    """What is remembered of the head being read; `problem` is why it is refused."""

    authorization: bytes
    drops_params: bool
    host: bytes
    hosts: int
    is_mistral: bool
    length: int
    once: bytes
    problem: str
    transfer_encodings: int
    wants_close: bool
    wants_continue: bool
    wants_figures: bool
    where: bytes


def _keep_authorization(client: Head, value: bytes) -> None:
    if client.authorization:
        client.problem = "it has two Authorization headers"
    client.authorization = value


def _keep_length(client: Head, value: bytes) -> None:
    # llhttp has already refused two lengths, signs, and a length beside a transfer encoding.
    client.length = int(value) if value.isdigit() and len(value) < 20 else 1 << 62


def _keep_host(client: Head, value: bytes) -> None:
    client.hosts += 1
    client.host = value


def _keep_transfer_encoding(client: Head, value: bytes) -> None:
    client.transfer_encodings += 1
    if value.strip().lower() != b"chunked":
        client.problem = "only the transfer encoding chunked is understood"


def _keep_expect(client: Head, value: bytes) -> None:
    _keep_once(client, b"expect\n")
    client.wants_continue = value.lower() == b"100-continue"


def _keep_connection(client: Head, value: bytes) -> None:
    # nginx looks for the word anywhere, also where the list is not well-formed.
    client.wants_close = client.wants_close or b"close" in value.lower()


def _keep_once(client: Head, name: bytes) -> None:
    if name in client.once:
        client.problem = f"it has two {name.decode().strip().title()} headers"
    client.once += name


def _once(name: bytes) -> "Keep":
    """Return the keeper of a field that a request has once, and that means nothing here."""
    line = name + b"\n"  # no name ends with another
    return lambda client, _value: _keep_once(client, line)


def _keep_upgrade(client: Head, value: bytes) -> None:
    client.problem = "this gateway does not switch protocols"


def _keep_user_agent(client: Head, value: bytes) -> None:
    client.is_mistral = b"mistral" in value


def _keep_drop_params(client: Head, value: bytes) -> None:
    client.drops_params = value.lower() == b"true"


def _keep_figures(client: Head, value: bytes) -> None:
    client.wants_figures = value.lower() == b"true"


def _keep_where(client: Head, value: bytes) -> None:
    if client.where:
        client.problem = "it has two X-Moulin-Where headers"
    # An empty one narrows to nothing, which the directory refuses.
    client.where = value or b" "


Keep = Callable[[Head, bytes], None]
_SINGLE: Final = (
    b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range",
    b"content-range",
)  # fmt: skip
_KEEP_BY_NAME: Final[dict[bytes, Keep]] = {
    b"authorization": _keep_authorization,
    b"content-length": _keep_length,
    b"host": _keep_host,
    b"transfer-encoding": _keep_transfer_encoding,
    b"expect": _keep_expect,
    b"upgrade": _keep_upgrade,
    b"user-agent": _keep_user_agent,
    b"connection": _keep_connection,
    **{name: _once(name) for name in _SINGLE},
    b"x-moulin-drop-params": _keep_drop_params,
    b"x-moulin-usage-figures": _keep_figures,
    b"x-moulin-where": _keep_where,
}


# Spellings met so far, so that a header line costs one look-up; bounded, because clients choose them.
KEEP_BY_SPELLING: Final[dict[bytes, Keep | None]] = {}
_SPELLINGS_MAX: Final = 1000


def learn_spelling(name: bytes) -> Keep | None:
    """Return what a field of this name does, None for nothing; remember its spelling."""
    keep = _KEEP_BY_NAME.get(name.lower())
    if len(KEEP_BY_SPELLING) < _SPELLINGS_MAX and len(name) < 64:
        KEEP_BY_SPELLING[name] = keep
    return keep

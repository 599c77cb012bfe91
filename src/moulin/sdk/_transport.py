"""How both shells set up their HTTP client, and how a call becomes its arguments."""

from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from moulin.sdk._core import Call
from moulin.sdk.credentials import Credentials

TIMEOUT: Final = httpx.Timeout(40.0, connect=5.0)
# Longer than two heartbeats of the server: silence beyond that is a dead connection.
STREAM_TIMEOUT: Final = httpx.Timeout(40.0, connect=5.0)
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


def arguments(credentials: Credentials) -> dict[str, Any]:
    """Return the keyword arguments of an httpx client for these credentials."""
    headers = {"accept-language": "en"}
    if credentials.api_key:
        headers["authorization"] = f"Bearer {credentials.api_key}"
    return {
        "base_url": credentials.control_url,
        "headers": headers,
        "timeout": TIMEOUT,
        "follow_redirects": False,
        # A proxy of the environment cannot reach this machine's own loopback.
        "trust_env": urlsplit(credentials.control_url).hostname not in _LOOPBACK,
    }


def headers_of(call: Call[Any]) -> dict[str, str]:
    """Return the headers of one call."""
    found = dict(call.headers)
    if call.body:
        found["content-type"] = "application/json"
    return found


def query(call: Call[Any]) -> httpx.QueryParams:
    """Return the parameters of one call; a tuple becomes the same name several times."""
    pairs: list[tuple[str, str | int | float | bool | None]] = []
    for name, value in call.parameters.items():
        values = value if isinstance(value, tuple) else (value,)
        pairs.extend((name, str(each)) for each in values)
    return httpx.QueryParams(pairs)

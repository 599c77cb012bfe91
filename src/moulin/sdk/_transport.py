"""How both shells set up their HTTP client, and how a call becomes its arguments."""

from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from moulin.domain.addresses import is_loopback
from moulin.domain.errors import MoulinError, Unavailable
from moulin.sdk._core import Call, unreachable, wait_before_repeat
from moulin.sdk.credentials import Credentials, trust_of

TIMEOUT: Final = httpx.Timeout(40.0, connect=5.0)
# Longer than two heartbeats of the server: silence beyond that is a dead connection.
STREAM_TIMEOUT: Final = httpx.Timeout(40.0, connect=5.0)


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
        "trust_env": not is_loopback(urlsplit(credentials.control_url).hostname or ""),
        "verify": trust_of(credentials, credentials.control_url),
    }


def wait_after(call: Call[Any], attempt: int, error: httpx.TransportError) -> float | None:
    """Return how many seconds to wait before sending again after no answer came, None for never."""
    return None if _is_distrusted(error) else wait_before_repeat(call, attempt, None)


def failure_of(error: httpx.TransportError, url: str) -> MoulinError:
    """Return the error of a connection that failed for good."""
    if not _is_distrusted(error):
        return unreachable(url, type(error).__name__)
    words = str(error).partition("failed: ")[2].partition(" (_ssl")[0]
    return Unavailable(
        f"reach the control plane at {url}: its certificate is not trusted ({words})",
        hint="MOULIN_CA or --ca names a file of certificates to trust; a Moulin that made its own "
        "has it in tls/ca.pem of its data directory",
    )


def _is_distrusted(error: httpx.TransportError) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


def headers_of(call: Call[Any]) -> dict[str, str]:
    """Return the headers of one call."""
    found = dict(call.headers)
    if call.body:
        found["content-type"] = "application/json"
    return found


def content(call: Call[Any]) -> dict[str, Any]:
    """Return the arguments of httpx that are the body of one call."""
    upload = call.upload
    if upload is None:
        return {"content": call.body or None}
    file = (upload.name, upload.content, "application/octet-stream")
    return {"data": dict(upload.fields), "files": {"file": file}}


def query(call: Call[Any]) -> httpx.QueryParams:
    """Return the parameters of one call; a tuple becomes the same name several times."""
    pairs: list[tuple[str, str | int | float | bool | None]] = []
    for name, value in call.parameters.items():
        values = value if isinstance(value, tuple) else (value,)
        pairs.extend((name, str(each)) for each in values)
    return httpx.QueryParams(pairs)

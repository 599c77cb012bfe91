"""Fetches one address into one file, continuing where an earlier try stopped.

It never decides whether the bytes are right: whoever asked compares the digest before the file
gets its name. Reference: RFC 9110, section 14 (range requests).
"""

import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from moulin import __version__
from moulin.domain.errors import DigestMismatch, SourceUnavailable
from moulin.sources.disk import CHUNK_BYTES, full_disk_named, size_or_zero

if TYPE_CHECKING:
    import httpx

_WORTH_RETRYING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")

Count = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a server may be silent and how often in a row it may fail.

    `tries_max` counts tries that brought no byte; a slow server that goes on sending is waited for.
    """

    connect_s: float = 10.0
    silence_s: float = 30.0
    tries_max: int = 5
    backoff_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the bytes are; `headers` may hold a token and are never shown. `size_bytes` 0: unknown.

    `certificates` names a file of trusted authorities; empty means the usual ones.
    """

    url: str
    size_bytes: int = 0
    certificates: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class _Interrupted(Exception):
    """This try ended early; another one may go on."""


def download(address: Address, part: Path, patience: Patience, count: Count) -> None:
    """Bring `part` to its full length; `count` is told the bytes in it after each chunk.

    What is already in `part` is kept and only the rest is asked for.

    Raises `SourceUnavailable` when the server has no such file, refuses, or fails too often in a
    row (`part` stays for the next time), `DigestMismatch` when it sends more than it promised and
    `DiskFull` when the disk has no room.
    """
    failures = 0
    while True:
        before = size_or_zero(part)
        try:
            _fetch_once(address, part, patience, count)
        except _Interrupted as cause:
            failures = 0 if size_or_zero(part) > before else failures + 1
            if failures >= patience.tries_max:
                raise SourceUnavailable(
                    f"fetch {_shown(address.url)}: {cause}",
                    hint="try again later; what was fetched is kept and continued",
                    details={"bytes_done": size_or_zero(part)},
                ) from cause
            time.sleep(min(patience.backoff_s * 2**failures, 30.0))
        else:
            return


def _fetch_once(address: Address, part: Path, patience: Patience, count: Count) -> None:
    offset = size_or_zero(part)
    if address.size_bytes and offset > address.size_bytes:
        part.unlink()
        offset = 0
    if address.size_bytes and offset == address.size_bytes:
        count(offset)
        return
    if urlsplit(address.url).scheme == "file":
        _copy_local(address, part, offset, count)
    else:
        _get(address, part, offset, patience, count)
    if address.size_bytes and size_or_zero(part) < address.size_bytes:
        raise _Interrupted(f"it ended after {size_or_zero(part)} of {address.size_bytes} bytes")


def _get(address: Address, part: Path, offset: int, patience: Patience, count: Count) -> None:
    import httpx

    headers = {
        # Compressed bytes could neither be resumed nor compared with the promised size.
        "accept-encoding": "identity",
        "user-agent": f"moulin/{__version__}",
        **address.headers,
        **({"range": f"bytes={offset}-"} if offset else {}),
    }
    timeout = httpx.Timeout(patience.silence_s, connect=patience.connect_s)
    trusted = address.certificates
    verify = ssl.create_default_context(cafile=trusted) if trusted else True
    try:
        with (
            httpx.Client(timeout=timeout, follow_redirects=True, verify=verify) as client,
            client.stream("GET", address.url, headers=headers) as response,
        ):
            offset = _start_of_body(response, address, part, offset)
            _write(response, address, part, offset, count)
    except httpx.TransportError as cause:
        if "CERTIFICATE_VERIFY_FAILED" in str(cause):
            raise _unusable(address, cause) from cause
        raise _Interrupted(str(cause) or type(cause).__name__) from cause
    except (httpx.InvalidURL, httpx.TooManyRedirects) as cause:
        raise _unusable(address, cause) from cause


def _unusable(address: Address, cause: Exception) -> SourceUnavailable:
    return SourceUnavailable(
        f"fetch {_shown(address.url)}: {cause}", hint="check the address, proxy and certificates"
    )


def _start_of_body(response: "httpx.Response", address: Address, part: Path, offset: int) -> int:
    """Return where in the file the body of this answer begins."""
    status = response.status_code
    if status == 206:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if found is not None and int(found[1]) == offset:
            return offset
        part.unlink(missing_ok=True)
        raise _Interrupted("it answered with another range than asked for")
    if status == 200:
        return 0
    if status == 416:
        part.unlink(missing_ok=True)
        raise _Interrupted("the file is shorter than what was fetched before")
    if status in _WORTH_RETRYING:
        raise _Interrupted(f"it answered {status}")
    raise SourceUnavailable(
        f"fetch {_shown(address.url)}: it answered {status}",
        hint="check the name, the revision and, for what is not public, the token",
        details={"status": status},
    )


def _write(
    response: "httpx.Response", address: Address, part: Path, offset: int, count: Count
) -> None:
    with full_disk_named(part), part.open("r+b" if part.exists() else "xb", buffering=0) as file:
        file.seek(offset)
        file.truncate()
        # As the network delivers: a chunk size would hold back, and lose, up to a whole chunk when
        # the connection drops.
        for chunk in response.iter_raw():
            offset += len(chunk)
            if address.size_bytes and offset > address.size_bytes:
                part.unlink()
                raise DigestMismatch(
                    f"fetch {_shown(address.url)}: it sends more than the {address.size_bytes} "
                    "bytes it promised; nothing was kept",
                    hint="the file changed or is not the one that was announced; try again",
                )
            _write_all(file.write, chunk)
            count(offset)


def _write_all(write: Callable[[memoryview], int | None], chunk: bytes) -> None:
    """Write every byte; an unbuffered file may take fewer at a time (it does on a full disk)."""
    left = memoryview(chunk)
    while left:
        left = left[write(left) or 0 :]


def _copy_local(address: Address, part: Path, offset: int, count: Count) -> None:
    origin = Path(unquote(urlsplit(address.url).path))
    try:
        source = origin.open("rb")
    except OSError as cause:
        raise SourceUnavailable(f"read {origin}: {cause.strerror}") from cause
    with source, full_disk_named(part), part.open("ab") as file:
        source.seek(offset)
        while chunk := source.read(CHUNK_BYTES):
            file.write(chunk)
            offset += len(chunk)
            count(offset)


def _shown(url: str) -> str:
    """Return an address without what may be secret in it: credentials and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"

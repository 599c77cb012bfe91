"""How a process speaks TLS to others of Moulin: with the certificates of one file, or the system's.

It reads the file again when it changes, so that a renewed certificate needs no restart; connections
that are open stay. It never turns verification off.
"""

import ssl
from pathlib import Path
from urllib.parse import urlsplit

from moulin.domain.errors import InvalidRequest
from moulin.domain.trust import trusting

_State = tuple[int, int, int]


class Trust:
    """The certificates that servers are judged by; None stands for those of the system."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._known: dict[str, tuple[_State, ssl.SSLContext]] = {}

    def context(self, url: str) -> ssl.SSLContext | None:
        """Return what a new connection to a URL uses; None for plain HTTP.

        Raises `InvalidRequest` for a file that has no certificates.
        """
        parts = urlsplit(url)
        if parts.scheme != "https":
            return None
        host = parts.hostname or ""
        state = self._state()
        known = self._known.get(host)
        if known is None or known[0] != state:
            known = self._known[host] = (state, self._load(host))
        return known[1]

    def _state(self) -> _State:
        if self._file is None:
            return (0, 0, 0)
        try:
            status = self._file.stat()
        except OSError as cause:
            raise _unreadable(self._file, cause) from cause
        return (status.st_ino, status.st_mtime_ns, status.st_size)

    def _load(self, host: str) -> ssl.SSLContext:
        if self._file is None:
            return ssl.create_default_context()
        try:
            pem = self._file.read_text("ascii", errors="replace")
        except OSError as cause:
            raise _unreadable(self._file, cause) from cause
        return trusting(pem, host, str(self._file))


def why(cause: Exception) -> str:
    """Return in a word why no connection came about; a certificate's fault in OpenSSL's words."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message}"
    return type(cause).__name__


def _unreadable(file: Path, cause: OSError) -> InvalidRequest:
    return InvalidRequest(
        f"trust the certificates in {file}: {cause.strerror}", hint="give another --control-ca"
    )

"""TLS at the gateway: which versions and ciphers, and a certificate that can change while it serves.

It decides what a client may negotiate: TLS 1.2 with forward secrecy and an authenticated cipher, or
1.3, and HTTP/1.1 above it. A renewed pair of files is used for connections that begin afterwards; one
that cannot be used leaves the pair before it in force. It never asks for a passphrase.

Reference: RFC 9325 (Recommendations for Secure Use of TLS), sections 3 and 4.
"""

import logging
import ssl
from pathlib import Path
from typing import Final

from moulin.domain.errors import InvalidRequest

HANDSHAKE_S: Final = 10.0
"""How long a client may take to agree on a key."""
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
_LOG: Final = logging.getLogger(__name__)
_State = tuple[tuple[int, int, int], ...]


class Certificate:
    """The pair of files and what is in force of them. `context` is for the listening socket."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._seen = self._state()
        self._current = self._load()
        # The socket keeps this one for ever; each handshake is handed on to the current one.
        self.context = _context()
        self.context.sni_callback = self._hand_on

    def renew(self) -> bool:
        """Read the files again; False, with a line in the log, when they cannot be used."""
        self._seen = self._state()
        try:
            self._current = self._load()
        except InvalidRequest as problem:
            _LOG.warning("the former certificate stays in force: %s", problem.message)
            return False
        _LOG.info("a certificate from %s is in force", self._files[0])
        return True

    def renew_if_changed(self) -> bool:
        """Read the files again when they are not those that were read last."""
        return self._state() != self._seen and self.renew()

    def _hand_on(self, connection: ssl.SSLObject, _name: str | None, _context: object) -> None:
        connection.context = self._current

    def _load(self) -> ssl.SSLContext:
        context = _context()
        certificate, key = self._files
        try:
            context.load_cert_chain(certificate, key, password=_no_passphrase)
        except (OSError, ValueError) as cause:
            raise InvalidRequest(
                f"use the certificate {certificate} with the key {key}: {_why(cause)}",
                hint="give a PEM file with the certificate and its chain, and one with its key, "
                "not encrypted",
            ) from cause
        return context

    def _state(self) -> _State:
        """Return what tells these files from others: a renewed file has another inode or time."""
        found = []
        for path in self._files:
            try:
                status = path.stat()
            except OSError:
                found.append((0, 0, 0))
            else:
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    return context


def _no_passphrase() -> str:
    raise ValueError("the key is encrypted")


def _why(cause: Exception) -> str:
    """Return the cause without the name of a source file of OpenSSL."""
    if isinstance(cause, ssl.SSLError):
        return str(cause.reason or "not PEM").replace("_", " ").lower()
    return str(getattr(cause, "strerror", None) or cause)

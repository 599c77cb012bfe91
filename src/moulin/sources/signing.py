"""Hold the factory's Ed25519 key in a file only its owner can read, and sign checkpoints with it.

Never decides what is signed and never shows the private key. File format: one line, the signer key
of C2SP notes, `PRIVATE+KEY+name+id+base64(0x01 || seed)`; beside it `*.pub` holds the public key.
"""

import base64
import hashlib
import hmac
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from moulin.domain.errors import LocalError
from moulin.ledger.checkpoint import VerifierKey

_PREFIX = "PRIVATE+KEY+"
_FILE_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class FileSigner:
    """A signer whose key lies in a file; implements `moulin.ports.signer.Signer`."""

    key: VerifierKey
    operator_secret: bytes
    _private: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"FileSigner({self.key.fingerprint})"

    @property
    def key_name(self) -> str:
        """The name under which the public key is published."""
        return self.key.name

    @property
    def public_key(self) -> bytes:
        """The 32 bytes of the public key."""
        return self.key.public_key

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of `message`."""
        return self._private.sign(message)


def open_signer(path: Path, name: str) -> FileSigner:
    """Return the signer of the key file, which is made with a fresh key when it does not exist.

    The public key is (re)written beside it as `<path>.pub`. The file is complete or absent, also
    after a crash, and of two processes that make it at once one wins.
    Raises `LocalError` when the file is readable by others, of another name, or no key.
    """
    if not path.exists():
        _create(path, name, Ed25519PrivateKey.generate().private_bytes_raw())
    signer = _signer(name, _read_seed(path, name))
    _write_new(path.with_name(path.name + ".pub"), signer.key.text + "\n", 0o644, replace=True)
    return signer


def _signer(name: str, seed: bytes) -> FileSigner:
    private = Ed25519PrivateKey.from_private_bytes(seed)
    key = VerifierKey(name=name, public_key=private.public_key().public_bytes_raw())
    secret = hmac.digest(seed, b"moulin operator secret v1", hashlib.sha256)
    return FileSigner(key, secret, private)


def _create(path: Path, name: str, seed: bytes) -> None:
    line = f"{_PREFIX}{_signer(name, seed).key.fingerprint}+"
    line += base64.b64encode(b"\x01" + seed).decode("ascii") + "\n"
    _write_new(path, line, 0o600, replace=False)


def _write_new(path: Path, text: str, mode: int, *, replace: bool) -> None:
    """Write a file whole under a temporary name, then give it its own, unless it is taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    os.fchmod(descriptor, mode)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    try:
        if replace:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)
    except FileExistsError:
        return
    finally:
        temporary.unlink(missing_ok=True)


def _read_seed(path: Path, name: str) -> bytes:
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise LocalError(
            f"use the signing key {path}: others may read it",
            hint=f"chmod 600 {path}, and make a new key if others have read it",
        )
    with path.open("rb") as file:
        line = file.read(_FILE_BYTES_MAX).decode("ascii", errors="replace")
    fields = line.removeprefix(_PREFIX).rstrip("\n").split("+", 2)
    try:
        raw = base64.b64decode(fields[2], validate=True)
        seed = raw[1:]
        is_whole = line.startswith(_PREFIX) and raw[:1] == b"\x01"
        is_own = is_whole and "+".join(fields[:2]) == _signer(fields[0], seed).key.fingerprint
    except (IndexError, ValueError) as cause:
        raise _no_key(path) from cause
    if not is_own:
        raise _no_key(path)
    if fields[0] != name:
        raise LocalError(
            f"use the signing key {path}: it is of {fields[0]!r}, not of {name!r}",
            hint="a factory's name is part of its evidence; give back its name or move the key away",
        )
    return seed


def _no_key(path: Path) -> LocalError:
    return LocalError(
        f"read the signing key {path}: it is not a key file",
        hint="restore it from a backup; without it new receipts need a new key",
    )

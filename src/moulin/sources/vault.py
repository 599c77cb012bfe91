"""Seals secrets, and destroys the keys of those that are deleted.

Envelope: every secret has a key of its own, in a file of its own; the master key, beside the pepper,
wraps those keys and nothing else. AES-256-GCM both times, bound to organisation, project, name and
id, so that no ciphertext can stand for another's. It never decides who may have a secret and never
writes a value anywhere. Deleting the file of a key makes the secret unreadable wherever its
ciphertext was copied to; rotating the master key makes older copies of key files unreadable too.
Decision 0041.
"""

import contextlib
import hmac
import json
import os
import re
import stat
import threading
from base64 import b64decode, b64encode
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from moulin.domain.errors import DiskFull, LocalError, NotFound
from moulin.domain.secrets import SealedSecret

FORMAT: Final = "moulin-secrets/v1"
KEY_BITS: Final = 256
NONCE_BYTES: Final = 12
MASTER_NAME_BYTES: Final = 8
SUFFIX: Final = ".key"
_ID: Final = re.compile(r"[a-z]{2,8}_[0-9A-Z]{26}")


class Vault:
    """The keys of one factory's secrets; safe to use from several threads."""

    def __init__(self, folder: Path, master: Path) -> None:
        """Open the folder of keys and the master key, making both when there is neither.

        A rotation that a crash cut short is ended first. Raises `LocalError` when the master key
        is missing while there are keys, is damaged, or is readable by others.
        """
        self._folder = folder
        self._master_path = master
        self._lock = threading.Lock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in sorted(folder.glob(".*")):
            part.unlink()
        if not master.exists() and not self.ids():
            self._write_masters([AESGCM.generate_key(KEY_BITS)])
        self._masters = _read_masters(master)
        if len(self._masters) > 1:
            self._rewrap()

    def seal(self, secret: SealedSecret, value: bytes) -> SealedSecret:
        """Return the secret with its value sealed under a new key; any ciphertext it had is dropped.

        Raises `DiskFull` and `LocalError` when the key cannot be kept.
        """
        key, nonce = AESGCM.generate_key(KEY_BITS), os.urandom(NONCE_BYTES)
        sealed = nonce + AESGCM(key).encrypt(nonce, value, _context(secret, "value"))
        with self._lock:
            self._write_key(secret.id, self._wrapped(secret.id, key))
        return replace(secret, ciphertext=sealed)

    def open(self, secret: SealedSecret) -> bytes:
        """Return the value; raises `NotFound` when its key is gone, `LocalError` for a wrong one."""
        with self._lock:
            key = self._key(secret.id)
        nonce, sealed = secret.ciphertext[:NONCE_BYTES], secret.ciphertext[NONCE_BYTES:]
        try:
            return AESGCM(key).decrypt(nonce, sealed, _context(secret, "value"))
        except InvalidTag as cause:
            raise _damaged(f"open secret {secret.name}") from cause

    def shred(self, ids: Collection[str]) -> None:
        """Destroy the keys of secrets; what has none is left as it is. Raises `LocalError`."""
        for name in sorted(ids):
            path = self._path(name)
            try:
                path.unlink(missing_ok=True)
            except OSError as cause:
                raise LocalError(f"destroy {path}: {cause.strerror}") from cause

    def ids(self) -> tuple[str, ...]:
        """Return the secrets that have a key, by id."""
        names = (path.name.removesuffix(SUFFIX) for path in self._folder.glob(f"*{SUFFIX}"))
        return tuple(sorted(name for name in names if _ID.fullmatch(name)))

    def rotate(self) -> int:
        """Wrap every key with a new master key, destroy the former one, and return how many there are.

        What stops half-way leaves both master keys, and the next start or rotation goes on. Raises
        `DiskFull` and `LocalError`.
        """
        with self._lock:
            masters = [AESGCM.generate_key(KEY_BITS), *self._masters]
            self._write_masters(masters)
            self._masters = masters
            return self._rewrap()

    def _rewrap(self) -> int:
        ids = self.ids()
        for name in ids:
            self._write_key(name, self._wrapped(name, self._key(name)))
        self._write_masters(self._masters[:1])
        self._masters = self._masters[:1]
        return len(ids)

    def _wrapped(self, name: str, key: bytes) -> bytes:
        master, nonce = self._masters[0], os.urandom(NONCE_BYTES)
        sealed = AESGCM(master).encrypt(nonce, key, f"{FORMAT} key {name}".encode())
        return _name_of(master) + nonce + sealed

    def _key(self, name: str) -> bytes:
        try:
            data = self._path(name).read_bytes()
        except FileNotFoundError:
            raise NotFound("open a secret: it was deleted", details={"secret": name}) from None
        known = {_name_of(master): master for master in self._masters}
        master = known.get(data[:MASTER_NAME_BYTES])
        if master is None:
            raise _damaged("open a secret: its key was wrapped with another master key")
        nonce = data[MASTER_NAME_BYTES : MASTER_NAME_BYTES + NONCE_BYTES]
        sealed = data[MASTER_NAME_BYTES + NONCE_BYTES :]
        try:
            return AESGCM(master).decrypt(nonce, sealed, f"{FORMAT} key {name}".encode())
        except InvalidTag as cause:
            raise _damaged("open a secret: its key is damaged") from cause

    def _path(self, name: str) -> Path:
        if not _ID.fullmatch(name):
            raise NotFound(f"find a secret {name[:40]!r}: that is no id")
        return self._folder / f"{name}{SUFFIX}"

    def _write_key(self, name: str, data: bytes) -> None:
        _write(self._path(name), data)

    def _write_masters(self, masters: list[bytes]) -> None:
        lines = [FORMAT, *(b64encode(master).decode() for master in masters)]
        _write(self._master_path, "\n".join(lines).encode() + b"\n")


def _context(secret: SealedSecret, part: str) -> bytes:
    owner = [secret.organisation, secret.project, secret.name, secret.id]
    return json.dumps([FORMAT, part, *owner]).encode()


def _name_of(master: bytes) -> bytes:
    """Return by which name a wrapped key knows its master key: a digest that says nothing of it."""
    return hmac.digest(master, b"name", "sha256")[:MASTER_NAME_BYTES]


def _read_masters(path: Path) -> list[bytes]:
    try:
        mode, lines = path.stat().st_mode, path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        raise _damaged(f"read {path}: it is not there or no key file") from cause
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise LocalError(
            f"read {path}: others may read it",
            hint=f"chmod 600 {path}, then `moulin secrets rotate` if others have read it",
        )
    try:
        masters = [b64decode(line, validate=True) for line in lines[1:]]
    except ValueError as cause:
        raise _damaged(f"read {path}: it is no key file") from cause
    if lines[:1] != [FORMAT] or not masters or any(len(each) * 8 != KEY_BITS for each in masters):
        raise _damaged(f"read {path}: it is no key file")
    return masters


def _write(path: Path, data: bytes) -> None:
    """Put a file in place whole and durable, for this user alone."""
    part = path.with_name(f".{path.name}")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fsync(folder)
        os.close(folder)
    except OSError as cause:
        with contextlib.suppress(OSError):
            part.unlink()
        error = DiskFull if cause.errno == 28 else LocalError
        raise error(f"keep a key in {path}: {cause.strerror}", hint="make room there") from cause


def _damaged(doing: str) -> LocalError:
    return LocalError(
        doing, hint="restore secrets.key and the folder secrets from one backup, or set it again"
    )

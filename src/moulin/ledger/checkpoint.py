"""Write and open signed tree heads: which log, how many leaves, which root, signed by whom.

Never signs: the bytes to sign are built here and signed by what holds the key. One note carries
exactly one signature line, so that no byte of it stays unchecked.
Source: C2SP tlog-checkpoint and signed-note (Ed25519, signature type 0x01).
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_NAME: Final = re.compile(r"[!-*,-~]+")
_ED25519: Final = b"\x01"

# (public key of 32 bytes, signature, message) to whether the signature holds.
VerifySignature = Callable[[bytes, bytes, bytes], bool]


class BrokenEvidence(ValueError):
    """What was presented as evidence is not; the text says what does not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierKey:
    """A public key that the reader trusts, under the name that its notes carry."""

    name: str
    public_key: bytes

    @property
    def id(self) -> bytes:
        """The four bytes by which a signature line points at this key."""
        named = self.name.encode("ascii") + b"\n" + _ED25519 + self.public_key
        return hashlib.sha256(named).digest()[:4]

    @property
    def fingerprint(self) -> str:
        """The name with the key id, as receipts name their key."""
        return f"{self.name}+{self.id.hex()}"

    @property
    def text(self) -> str:
        """The one-line form in which public keys are published."""
        return f"{self.fingerprint}+{_base64(_ED25519 + self.public_key)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeHead:
    """A log's state: its origin, number of leaves and root."""

    origin: str
    size: int
    root: bytes


def parse_verifier_key(text: str) -> VerifierKey:
    """Read a public key's one-line form; raises `BrokenEvidence` when it is not exactly that."""
    parts = text.strip().split("+", 2)
    raw = _unbase64(parts[2]) if len(parts) == 3 else b""
    if len(raw) != 33 or raw[:1] != _ED25519 or not _NAME.fullmatch(parts[0]):
        raise BrokenEvidence("the public key is not in the form name+id+key")
    key = VerifierKey(name=parts[0], public_key=raw[1:])
    if key.text != text.strip():
        raise BrokenEvidence("the public key does not match its own id")
    return key


def checkpoint_text(head: TreeHead) -> str:
    """Return the text of a checkpoint, which is what gets signed."""
    return f"{head.origin}\n{head.size}\n{_base64(head.root)}\n"


def signed_note(text: str, key: VerifierKey, signature: bytes) -> str:
    """Return the note: the text, an empty line, and the signature line."""
    return f"{text}\n— {key.name} {_base64(key.id + signature)}\n"


def open_checkpoint(note: str, key: VerifierKey, verify: VerifySignature) -> TreeHead:
    """Return the tree head of a note signed by `key`.

    Raises `BrokenEvidence` unless the note is exactly a checkpoint of one of the key's logs with
    one valid signature of that key.
    """
    text, separator, line = note.rpartition("\n\n")
    text += "\n"
    prefix = f"— {key.name} "
    signed = _unbase64(line.removeprefix(prefix).removesuffix("\n"))
    if not separator or note != signed_note(text, key, signed[4:]):
        raise BrokenEvidence(f"the checkpoint is not signed by {key.fingerprint}")
    if not verify(key.public_key, signed[4:], text.encode()):
        raise BrokenEvidence("the checkpoint's signature is wrong")
    lines = text.split("\n")
    if len(lines) != 4 or not _NUMBER.fullmatch(lines[1]):
        raise BrokenEvidence("the checkpoint does not state a log, a size and a root")
    head = TreeHead(origin=lines[0], size=int(lines[1]), root=_unbase64(lines[2]))
    if checkpoint_text(head) != text or not head.origin.startswith(f"{key.name}/"):
        raise BrokenEvidence(f"the checkpoint is not of a log of {key.name}")
    return head


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as cause:
        raise BrokenEvidence("a part is not base 64") from cause

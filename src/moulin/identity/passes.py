"""Passes: how Moulin's own work acts with the rights of a key whose secret it does not have.

A pass names a key and is an HMAC under the installation's pepper, which only Moulin's processes
can read. It lasts as long as the key: whoever checks it looks the key up by its id.
"""

import hashlib
import hmac
from typing import Final

PREFIX: Final = "mp_"
_CONTEXT: Final = b"moulin pass for lines of batches v1\n"


def make_pass(pepper: bytes, key: str) -> str:
    """Return the pass with which lines of a batch are carried out for the key of this id.

    >>> make_pass(b"pepper", "key_1")[:9]
    'mp_key_1_'
    """
    return f"{PREFIX}{key}_{_tag(pepper, key)}"


def read_pass(pepper: bytes, shown: str) -> str | None:
    """Return the id of the key a pass is for, None for what is no pass."""
    key, _, tag = shown.removeprefix(PREFIX).rpartition("_")
    if not shown.startswith(PREFIX) or not tag.isascii():
        return None
    return key if hmac.compare_digest(tag, _tag(pepper, key)) else None


def _tag(pepper: bytes, key: str) -> str:
    return hmac.new(pepper, _CONTEXT + key.encode(), hashlib.sha256).hexdigest()

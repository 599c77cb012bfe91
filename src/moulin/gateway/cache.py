"""The last snapshot on disk, so that a gateway serves while the control plane is away.

When it was confirmed is kept beside it, in the file and not in file times, so that a copied or
restored file is never younger than it was. It holds keys of replicas: owner-readable only.
"""

import os
from pathlib import Path
from typing import Any, Final

import orjson

from moulin.domain.errors import InvalidSpec
from moulin.domain.snapshot import GatewaySnapshot
from moulin.domain.wire import decode

SNAPSHOT: Final = "snapshot.json"
CONFIRMED: Final = "confirmed.json"


class SnapshotCache:
    """Two small files in the gateway's folder, each replaced as a whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, snapshot: Any, confirmed_at_ns: int) -> None:
        """Keep a snapshot in its wire form."""
        _replace(self._folder / SNAPSHOT, orjson.dumps(snapshot))
        self.confirm(confirmed_at_ns)

    def confirm(self, confirmed_at_ns: int) -> None:
        """Note that the kept snapshot was current at that time."""
        _replace(self._folder / CONFIRMED, b'{"at_ns":"%d"}' % confirmed_at_ns)

    def load(self) -> tuple[GatewaySnapshot, int] | None:
        """Return the kept snapshot and when it was confirmed; None when there is none to trust."""
        try:
            snapshot = orjson.loads((self._folder / SNAPSHOT).read_bytes())
            confirmed = orjson.loads((self._folder / CONFIRMED).read_bytes())
            return decode(GatewaySnapshot, snapshot), int(confirmed["at_ns"])
        except (OSError, orjson.JSONDecodeError, InvalidSpec, KeyError, TypeError, ValueError):
            return None


def _replace(path: Path, data: bytes) -> None:
    """Write beside and rename: a reader sees the old file or the new one, whole."""
    beside = path.with_suffix(".new")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    beside.replace(path)

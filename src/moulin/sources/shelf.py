"""The model store on disk: whole, verified files by digest, half-fetched ones out of sight.

    models/SHA256/model.gguf     appears by one rename, after its digest was compared
    models/SHA256/checkpoint/    the same for a folder in the form of the model hub
    models/SHA256/verified.json  size, time and inode at that moment: a later change is noticed
    partial/                     what is being fetched; safe to delete when nothing runs
    pins/MODEL--VARIANT.json     the digest the hub stated at the first download

Nothing under `models/` was ever seen half-made by anyone.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from moulin.domain.errors import DigestMismatch, SourceError
from moulin.domain.model import Progress
from moulin.sources.checkpoints import checkpoint_bytes, checkpoint_files, digest_of_checkpoint
from moulin.sources.disk import Report, digest_of, full_disk_named, make_durable, report_nothing

_POLL_S: Final = 0.2
_FILE_NAME: Final = "model.gguf"
_FOLDER_NAME: Final = "checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What the hub said of a file the first time: later downloads have to agree."""

    sha256: str
    size_bytes: int
    source: str
    commit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """The store below one directory."""

    directory: Path

    def path_of(self, sha256: str) -> Path:
        """Return where the file or folder with this digest is, or a file would be."""
        place = self.directory / "models" / sha256
        folder = place / _FOLDER_NAME
        return folder if folder.is_dir() else place / _FILE_NAME

    def size_bytes(self, sha256: str) -> int:
        """Return the size of what is held, of a folder that of its files."""
        path = self.path_of(sha256)
        return checkpoint_bytes(path) if path.is_dir() else path.stat().st_size

    def part_of(self, name: str) -> Path:
        """Return the place of a file that is being fetched."""
        folder = self.directory / "partial"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    @staticmethod
    def digest_of(path: Path, report: Report = report_nothing) -> str:
        """Return the digest by which a file or folder is known here. Cost: one read of it."""
        return digest_of_checkpoint(path, report) if path.is_dir() else digest_of(path, report)

    def holds(self, sha256: str, report: Report = report_nothing) -> bool:
        """Return whether the file or folder is here and still is what its digest says.

        Reads the whole file only when its size, time or inode changed since it was verified; a
        file that was tampered with or cut off is deleted.
        """
        path = self.path_of(sha256)
        if not path.exists():
            return False
        if self._mark_of(path) == _read_json(path.with_name("verified.json")):
            return True
        if self.digest_of(path, report) == sha256:
            self._note_verified(path)
            return True
        _remove(path)
        return False

    def admit(self, part: Path, sha256: str, report: Report = report_nothing) -> None:
        """Give a complete file or folder its name, if it is what was promised.

        Raises `DigestMismatch` otherwise; the file is then deleted.
        """
        found = self.digest_of(part, report)
        if found != sha256:
            _remove(part)
            raise DigestMismatch(
                f"verify a model file: its SHA-256 is {found}, promised was {sha256}; "
                "it was not kept",
                hint="the source was tampered with or replaced; choose another source",
                details={"sha256": found, "sha256_promised": sha256},
            )
        is_folder = part.is_dir()
        name = _FOLDER_NAME if is_folder else _FILE_NAME
        path = self.directory / "models" / sha256 / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for piece in checkpoint_files(part) if is_folder else ():
            make_durable(piece)
        make_durable(part)
        part.replace(path)
        make_durable(path)
        self._note_verified(path)

    def pinned(self, name: str) -> Pin | None:
        """Return what was pinned for a model's variant; None before its first download.

        Raises `SourceError` for a pin that cannot be read: trust is not renewed silently.
        """
        path = self._pin_path(name)
        if not path.exists():
            return None
        values = _read_json(path)
        sha256, size_bytes = values.get("sha256"), values.get("size_bytes")
        if not isinstance(sha256, str) or not isinstance(size_bytes, int):
            raise SourceError(
                f"read the pinned digest {path}: it is damaged",
                hint="restore it, or delete it to trust the hub anew",
            )
        return Pin(
            sha256=sha256,
            size_bytes=size_bytes,
            source=str(values.get("source", "")),
            commit=str(values.get("commit", "")),
        )

    def pin(self, name: str, pin: Pin) -> None:
        """Remember what the hub stated; a pin is never overwritten."""
        if self.pinned(name) is None:
            _write_json(self._pin_path(name), asdict(pin))

    @contextmanager
    def alone(self, sha256: str, report: Report = report_nothing) -> Iterator[None]:
        """Hold the right to fetch one file; another process that wants it waits."""
        lock = self.part_of(f"{sha256}.lock")
        with lock.open("ab") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    report(Progress(stage="waiting", bytes_done=0, bytes_total=0))
                    time.sleep(_POLL_S)
            yield

    def _pin_path(self, name: str) -> Path:
        return self.directory / "pins" / f"{name}.json"

    def _mark_of(self, path: Path) -> dict[str, object]:
        if path.is_dir():
            return {piece.name: _mark(piece) for piece in checkpoint_files(path)}
        return _mark(path)

    def _note_verified(self, path: Path) -> None:
        _write_json(path.with_name("verified.json"), self._mark_of(path))


def _mark(path: Path) -> dict[str, object]:
    found = path.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "inode": found.st_ino}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _read_json(path: Path) -> dict[str, object]:
    """Return a small record; an unreadable one counts as missing, since it can be made again."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, values: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with full_disk_named(draft):
        draft.write_text(json.dumps(values, sort_keys=True) + "\n")
        make_durable(draft)
    draft.replace(path)

"""Puts bundles where the nodes of a pool see them, each once, for as long as an attempt needs them.

A bundle is kept under its digest and linked into every attempt that starts with it, so the file
system itself counts who needs it. A large one is copied beside the cycle, which never waits for it.
"""

import contextlib
import hashlib
import os
import re
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from moulin.domain.errors import EngineRefused, EngineUnavailable
from moulin.domain.plan import StartStep
from moulin.engines.task.data import Beside, placed
from moulin.engines.task.spool import StepFiles, make_directory

FOLDER: Final = ".bundles"  # no attempt's name begins with a dot
# Copied at once: about what a disk takes in a tenth of a second.
SMALL_BYTES: Final = 8 << 20
UNUSED_S: Final = 3600
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class BundleShelf:
    """The bundles of one spool that several machines share."""

    def __init__(self, spool: Path) -> None:
        self._folder = f"{spool}/{FOLDER}"
        self._lock = threading.Lock()
        self._copying: dict[str, OSError | None] = {}

    def linked(self, step: StartStep, files: StepFiles) -> StartStep:
        """Return the step with where the nodes see its bundle; one without a bundle as it is.

        Raises `EngineUnavailable` while it is being copied, and `OSError` when it cannot be.
        """
        if not step.task.bundle:
            return step
        kept, link = f"{self._folder}/{step.task.bundle}", f"{files.attempt_directory}/bundle"
        if not os.path.exists(link):
            if not os.path.exists(kept) and not step.bundle_path:
                raise EngineUnavailable(f"start {step.step}: its folder is not on this node yet")
            if not os.path.exists(kept):
                self._copy(step.bundle_path, kept, step.step)
            with contextlib.suppress(FileExistsError):
                os.link(kept, link)
        return replace(step, bundle_path=link)

    def take(self, digest: str, offset: int, data: bytes, *, is_last: bool) -> int:
        """Add a piece of a bundle that somebody sends; return what is wanted next, -1 for nothing.

        A piece from another place than what is wanted changes nothing. Raises `EngineRefused` when
        the whole is not what its digest says, and `OSError`.
        """
        kept = f"{self._folder}/{_checked(digest)}"
        if os.path.exists(kept):
            return -1
        make_directory(self._folder)
        part = f"{kept}.part"
        size = os.stat(part).st_size if os.path.exists(part) else 0
        if not data or offset != size:
            return size
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
            file.write(data)
        if not is_last:
            return size + len(data)
        self._sweep()
        with open(part, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                os.unlink(part)
                raise EngineRefused(f"take bundle {digest[:12]}: other bytes came")
        os.rename(part, kept)
        return -1

    def _copy(self, source: str, kept: str, step: str) -> None:
        make_directory(self._folder)
        self._sweep()
        if os.stat(source).st_size <= SMALL_BYTES:
            _copy_whole(source, kept)
            return
        with self._lock:
            is_begun = kept in self._copying
            failure = self._copying.get(kept)
            if failure is not None:
                del self._copying[kept]
                raise failure
            self._copying[kept] = None
        if not is_begun:
            threading.Thread(target=self._copy_beside, args=(source, kept), daemon=True).start()
        raise EngineUnavailable(
            f"start {step}: its folder is being copied to the nodes",
            hint="it starts when it is there",
        )

    def _copy_beside(self, source: str, kept: str) -> None:
        try:
            _copy_whole(source, kept)
        except OSError as cause:
            with self._lock:
                self._copying[kept] = cause
        else:
            with self._lock:
                self._copying.pop(kept, None)

    def _sweep(self) -> None:
        """Remove what no attempt has a link to any more."""
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):
                found = entry.stat()
                if found.st_nlink == 1 and found.st_mtime < time.time() - UNUSED_S:
                    os.unlink(entry.path)


class SharedData:
    """What is prepared for tasks of a pool whose nodes share a file system with the control plane."""

    def __init__(self, spool: Path, beside: Beside) -> None:
        self._shelf = BundleShelf(spool)
        self._beside = beside

    def prepared(self, step: StartStep, files: StepFiles) -> tuple[StartStep, tuple[str, ...]]:
        """Return a step with its folder, and what stands before its argv.

        Raises what `BundleShelf.linked` does.
        """
        step = placed(self._shelf.linked(step, files), files)
        return step, self._beside.words(step, files)


def _checked(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise EngineRefused(f"take bundle {digest[:12]!r}: that is no digest")
    return digest


def _copy_whole(source: str, kept: str) -> None:
    part = f"{kept}.{os.getpid()}.part"
    try:
        shutil.copyfile(source, part)
        os.chmod(part, 0o600)
        os.rename(part, kept)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)

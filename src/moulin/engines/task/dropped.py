"""Takes directories out of the spool at once and removes them at leisure, in a thread of its own.

A task may leave a million files: whoever forgets it must not wait for their removal. What a crash
leaves here is removed after the next start. It decides nothing about whose time has come.
"""

import logging
import os
import tempfile
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from moulin.engines.task.spool import make_directory

log = logging.getLogger(__name__)
NAME: Final = ".dropped"  # no attempt's name begins with a dot


class Dropped:
    """The directories of one spool that are on their way out."""

    def __init__(self, spool: Path) -> None:
        """Go on with what an earlier process could not finish."""
        self._directory = spool / NAME
        self._waiting: SimpleQueue[str] = SimpleQueue()
        self._is_removing = False
        if self._directory.is_dir():
            for left in sorted(self._directory.iterdir()):
                self._remove_later(str(left))

    def take(self, path: str) -> None:
        """Move a directory away in one step, and let it be removed; nothing when it is not there.

        Raises `OSError` when it could not be moved.
        """
        make_directory(str(self._directory))
        place = tempfile.mkdtemp(dir=self._directory)
        try:
            os.rename(path, f"{place}/taken")
        except (FileNotFoundError, NotADirectoryError):
            os.rmdir(place)
            return
        self._remove_later(place)

    def _remove_later(self, path: str) -> None:
        self._waiting.put(path)
        if not self._is_removing:
            self._is_removing = True
            threading.Thread(target=self._remove, name="dropped", daemon=True).start()

    def _remove(self) -> None:
        while True:
            path = self._waiting.get()
            try:
                remove_tree(path)
            except OSError as error:
                log.warning("%s cannot be removed: %s", path, error.strerror)


def remove_tree(path: str) -> None:
    """Remove a directory with all below it, also what its owner had made read-only.

    Raises `OSError` for what cannot be removed; what is gone already is no error.

    Cost:   O(files), and the memory of the directories' names; no recursion, however deep.
    """
    pending, emptied = [path], []
    while pending:
        directory = pending.pop()
        try:
            os.chmod(directory, 0o700)
            entries = list(os.scandir(directory))
        except FileNotFoundError:
            continue
        emptied.append(directory)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            else:
                Path(entry.path).unlink(missing_ok=True)
    for directory in reversed(emptied):
        os.rmdir(directory)

"""A terminal that a test types into and reads from, with a program on its other side."""

import os
import pty
import subprocess
from collections.abc import Mapping

from moulin.domain.session import Entry


class Terminal:
    """The side of a person; the program leads a session of its own."""

    def __init__(self, entry: Entry, variables: Mapping[str, str] | None = None) -> None:
        self._ours, theirs = pty.openpty()
        self._seen = b""
        self.process = subprocess.Popen(
            entry.argv,
            env={**entry.env, **(variables or {})},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def type(self, data: bytes) -> None:
        os.write(self._ours, data)

    def expect(self, word: bytes) -> None:
        """Read until a word has come; what came after it is kept for the next."""
        while word not in self._seen:
            self._seen += os.read(self._ours, 4096)
        self._seen = self._seen[self._seen.index(word) + len(word) :]

    def close(self) -> None:
        os.close(self._ours)

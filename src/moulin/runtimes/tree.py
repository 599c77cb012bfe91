"""A library's own server as a tree of processes that lives and dies as one.

A runtime whose library brings a server starts it here. Its words are kept while it starts, for the
case that it does not, and nowhere afterwards. Each process of the tree dies with the one that
started it, and the memory they share loses its name once all have it.

Reference: prctl(2), PR_SET_PDEATHSIG; shm_overview(7).
"""

import ctypes
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

_PARENT_DEATH: Final = 1  # PR_SET_PDEATHSIG
_SHARED: Final = Path("/dev/shm")  # noqa: S108 - names of POSIX shared memory, none is made here
_PIECE_BYTES: Final = 4096
_PIECES_KEPT: Final = 64
_WORDS_CHARACTERS: Final = 16_000
_JOIN_S: Final = 5
# A `sitecustomize` for every process of a tree that is Python. Its tracker of shared memory has to
# outlive the others: it removes what they leave.
TIED: Final = f"""
import ctypes, signal, sys
if not any("resource_tracker" in word for word in sys.orig_argv):
    ctypes.CDLL(None).prctl({_PARENT_DEATH}, signal.SIGKILL)
"""


def start(
    argv: Sequence[str], variables: Mapping[str, str], folder: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a server in a folder, which dies with this process; its words come through a pipe.

    To be called while this process has one thread.
    """
    return subprocess.Popen(
        argv,
        env=variables,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=_die_with_parent,  # noqa: PLW1509
    )


def end(server: subprocess.Popen[bytes], grace_s: float) -> None:
    """Ask a server to end, and make it end when it takes longer; what is below it follows."""
    server.terminate()
    try:
        server.wait(timeout=grace_s)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


class Words:
    """The end of a server's output, until it is to be forgotten."""

    def __init__(self, server: subprocess.Popen[bytes]) -> None:
        assert server.stdout is not None
        self._pieces: deque[bytes] = deque(maxlen=_PIECES_KEPT)
        self._reader = threading.Thread(target=self._read, args=(server.stdout,), daemon=True)
        self._reader.start()

    def last(self) -> str:
        """Return the end of what a server said that has ended."""
        self._reader.join(_JOIN_S)
        return b"".join(self._pieces).decode("utf-8", "replace")[-_WORDS_CHARACTERS:]

    def forget(self) -> None:
        """Keep nothing from now on: it may quote a request."""
        self._pieces = deque(maxlen=0)

    def _read(self, output: IO[bytes]) -> None:
        with output:
            while piece := os.read(output.fileno(), _PIECE_BYTES):
                self._pieces.append(piece)


def unname_shared_memory(root: int) -> None:
    """Take away the names of the memory that a process and those below it share.

    All of them have it open by then. Without a name it is gone with the last of them, however they
    end; with one it would stay until the machine starts again.
    """
    held = set[int]().union(*map(_shared_inodes, (root, *below(root))))
    for path in sorted(_SHARED.iterdir()):
        if path.lstat().st_ino in held:
            path.unlink(missing_ok=True)


def _shared_inodes(pid: int) -> set[int]:
    """Return the shared memory a process has mapped; the C library renames some once it is made."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text("utf-8", "replace")
    except OSError:
        return set()
    lines = (line.split(maxsplit=5) for line in maps.splitlines() if f" {_SHARED}/" in line)
    return {int(fields[4]) for fields in lines}


def below(root: int) -> list[int]:
    """Return every process below one."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = list(children.get(root, ()))
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)

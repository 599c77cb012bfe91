"""Finds, from outside, every process that belongs to one data directory: by its words in /proc.

It asks neither Moulin nor its files, so that it would notice what Moulin has forgotten.
"""

import os
from pathlib import Path
from typing import Final

from moulin.app.processes import ProcessMark, mark_of

COMMAND_CHARACTERS_MAX: Final = 300


def processes_of(data: Path) -> tuple[ProcessMark, ...]:
    """Return the living processes whose command line or environment names the directory.

    This process and those that started it are left out: they name it because it was asked for.
    """
    wanted = os.fsencode(str(data))
    family = set(_ancestors(os.getpid()))
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in family:
            continue
        if wanted in _read(entry / "cmdline") or wanted in _read(entry / "environ"):
            mark = mark_of(int(entry.name))
            if mark is not None:
                found.append(mark)
    return tuple(sorted(found, key=lambda mark: mark.pid))


def command_of(pid: int) -> str:
    """Return the command line of a process for people, empty when it has gone."""
    words = _read(Path(f"/proc/{pid}/cmdline")).split(b"\0")
    return b" ".join(words).decode(errors="replace").strip()[:COMMAND_CHARACTERS_MAX]


def _ancestors(pid: int) -> list[int]:
    chain = []
    while pid > 1:
        chain.append(pid)
        after_name = _read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
        pid = int(after_name[1]) if len(after_name) > 1 else 0
    return chain


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # another user's, or gone

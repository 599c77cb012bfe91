"""Which processes of a data directory live, and which of them nobody owns.

A task's process is owned by the living shim above it. One without is nobody's until the engine has
noticed, which may wait for the control plane to come back; after that it is an orphan.
"""

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks._crash_kills import shim_of
from moulin.app.processes import mark_of

PERIOD_S = 0.5
# A control plane killed again and again comes back after at most 10 s of back-off and a slow start.
NOTICED_S_MAX = 45.0


class Census(threading.Thread):
    """Looks around all the time; `orphans` are processes that stayed nobody's for too long."""

    def __init__(self, spools: Sequence[Path]) -> None:
        super().__init__(daemon=True)
        self.spools = spools
        self.orphans: dict[int, str] = {}
        self._seen_s: dict[tuple[int, int], float] = {}
        self._stopping = threading.Event()

    def run(self) -> None:
        """Count until stopped."""
        while not self._stopping.wait(PERIOD_S):
            self.look(NOTICED_S_MAX)

    def stop(self) -> None:
        """Count no more."""
        self._stopping.set()
        self.join()

    def look(self, patience_s: float) -> None:
        """Note who has been nobody's for longer than that."""
        now_s = time.monotonic()
        found = unowned(*self.spools)
        marks = {pid: mark_of(pid) for pid in found}
        living = {(pid, m.started_ticks) for pid, m in marks.items() if m is not None}
        self._seen_s = {key: self._seen_s.get(key, now_s) for key in living}
        for (pid, ticks), since_s in self._seen_s.items():
            if now_s - since_s > patience_s:
                self.orphans[pid] = f"{found[pid]} (pid {pid}, since {ticks} ticks)"


def step_processes(*spools: Path) -> dict[int, str]:
    """Return living processes that carry a step directory of these spools, by pid."""
    found = {}
    for pid in _pids():
        directory = _step_directory(pid, spools)
        if directory:
            found[pid] = directory
    return found


def unowned(*spools: Path) -> dict[int, str]:
    """Return those of them that no living shim is above of, by pid."""
    found = step_processes(*spools)
    shims = {}
    for directory in set(found.values()):
        shim = shim_of(Path(directory))
        shims[directory] = shim.pid if shim is not None else 0
    return {pid: d for pid, d in found.items() if not _is_below(pid, shims[d])}


def own_processes(data: Path) -> dict[int, str]:
    """Return Moulin's own living processes on a data directory, by pid with their module."""
    found = {}
    for pid in _pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(data) in words and b"-m" in words:
            found[pid] = os.fsdecode(words[words.index(b"-m") + 1])
    return found


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _step_directory(pid: int, spools: Sequence[Path]) -> str:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    mark = b"MOULIN_STEP_DIR="
    wanted = tuple(mark + os.fsencode(spool) + b"/" for spool in spools)
    found = next((v for v in variables if v.startswith(wanted)), b"")
    return os.fsdecode(found[len(mark) :])


def _is_below(pid: int, shim: int) -> bool:
    """Whether a process is the shim or has it among its ancestors (or has just ended)."""
    while pid > 1:
        if pid == shim:
            return True
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return True
        if fields[0] in ("Z", "X"):
            return True
        pid = int(fields[1])
    return False

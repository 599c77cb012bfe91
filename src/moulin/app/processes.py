"""Which process is which: a pid counts only with its start time and the machine's boot id.

It ends processes that Moulin started and no others. Standard library only: the supervisor uses it.
"""

import contextlib
import os
import resource
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_POLL_S: Final = 0.02
_STATE_FIELD, _STARTED_FIELD = 0, 19  # of /proc/PID/stat after the name: fields 3 and 22


@dataclass(frozen=True, slots=True)
class ProcessMark:
    """A process beyond doubt: its pid, its start in clock ticks since boot, and which boot."""

    pid: int
    started_ticks: int
    boot_id: str

    def as_json(self) -> dict[str, Any]:
        """Return the form in which run.json keeps it."""
        return {"pid": self.pid, "started_ticks": self.started_ticks, "boot_id": self.boot_id}


def boot_id() -> str:
    """Return this machine's boot id; empty where the kernel has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def mark_of(pid: int) -> ProcessMark | None:
    """Return the mark of a process that lives now, None when there is none (or only its zombie)."""
    fields = _stat(pid)
    if fields is None or fields[_STATE_FIELD] in ("Z", "X"):
        return None
    return ProcessMark(pid, int(fields[_STARTED_FIELD]), boot_id())


def mark_from(data: object) -> ProcessMark | None:
    """Return the mark that run.json keeps, None when it holds none."""
    if not isinstance(data, dict):
        return None
    pid, ticks, boot = (data.get(name) for name in ("pid", "started_ticks", "boot_id"))
    if isinstance(pid, int) and isinstance(ticks, int) and isinstance(boot, str) and pid > 1:
        return ProcessMark(pid, ticks, boot)
    return None


def is_alive(mark: ProcessMark) -> bool:
    """Say whether exactly this process still lives."""
    return mark_of(mark.pid) == mark


def send(mark: ProcessMark, number: signal.Signals) -> None:
    """Send a signal if exactly this process still lives."""
    if is_alive(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(mark.pid, number)


def wait_until_gone(mark: ProcessMark, wait_s: float) -> bool:
    """Return whether the process ended within the time."""
    deadline_s = time.monotonic() + wait_s
    while is_alive(mark):
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(_POLL_S)
    return True


def end(mark: ProcessMark, grace_s: float) -> None:
    """Ask a process to end, and force it after the grace."""
    send(mark, signal.SIGTERM)
    if not wait_until_gone(mark, grace_s):
        send(mark, signal.SIGKILL)
        wait_until_gone(mark, grace_s)


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def forbid_core_dumps() -> None:
    """Keep keys and tenants' objects out of core dumps of this process.

    Tasks inherit it and may raise it again. A limit of 1 byte, unlike 0, also stops systems that
    pipe core dumps to a program: see core(5).
    """
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0 if hard == 0 else 1, hard))

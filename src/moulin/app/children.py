"""One process of Moulin under its supervisor: started, watched, started again with growing pauses.

It decides when a process that ended on its own is tried again, never whether Moulin as a whole goes
on. Standard library only: the supervisor uses it.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from moulin.app.listening import HOST

# Nothing is served meanwhile, and a start takes seconds by itself: a loop of them costs little.
BACKOFF_S: Final = (0.1, 0.5, 1.0, 2.0)
STEADY_S: Final = 10.0
LOG_BYTES_MAX: Final = 8 * 1024 * 1024
LAST_WORDS_BYTES: Final = 2_000


@dataclass(slots=True)
class Child:
    """One process of Moulin with its port and how often it ended on its own."""

    name: str
    command: list[str]
    port: int
    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    started_s: float = 0.0
    failures: int = 0
    restart_at_s: float = 0.0
    is_tls: bool = False

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"{'https' if self.is_tls else 'http'}://{HOST}:{self.port}"

    def start(self) -> None:
        """Start it in a session of its own, so that a Ctrl-C of the terminal reaches us first."""
        with _open_log(self.log) as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started_s = time.monotonic()

    def end_status(self) -> int | None:
        """Return the status with which it ended, None while it lives or has not started."""
        return self.process.poll() if self.process is not None else None

    def last_words(self) -> str:
        """Return the end of its log."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - LAST_WORDS_BYTES))
            return log.read().decode(errors="replace").strip()
        return ""


def revive(child: Child, say: Callable[[str], None]) -> bool:
    """Start a child again when it ended and its time has come; return whether it was started."""
    status = child.end_status()
    if status is None:
        return False
    now_s = time.monotonic()
    if not child.restart_at_s:
        steady = now_s - child.started_s > STEADY_S
        child.failures = 0 if steady else child.failures
        pause_s = BACKOFF_S[min(child.failures, len(BACKOFF_S) - 1)]
        child.failures += 1
        child.restart_at_s = now_s + pause_s
        how = f"signal {-status}" if status < 0 else f"status {status}"
        say(f"the {child.name} process ended with {how}; starting it again in {pause_s:g} s")
    if now_s < child.restart_at_s:
        return False
    child.restart_at_s = 0.0
    child.start()
    return True


def split_words(text: str, otherwise: str) -> tuple[str, str]:
    """Return message and hint of a process that says `error: …` and `hint: …` at its end."""
    _, found, tail = text.rpartition("error: ")
    message, _, hint = (tail if found else "").partition("hint: ")
    last = text.strip().splitlines()[-1] if text.strip() else otherwise
    return (message.strip() or last), hint.strip()


def _open_log(path: Path) -> IO[bytes]:
    if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
        path.replace(path.with_suffix(".log.1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "ab")

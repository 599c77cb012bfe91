"""Keeps the newest answer to one question, asked again in the background when it has grown old.

Whoever reads gets what is known now and never waits for a slow controller, except for a first answer
and for one so old that nothing could be concluded from it; and then not for long, and once: a controller
that hangs is silent from then on, and holds up nobody, until it answers again.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from moulin.domain.errors import EngineError, EngineUnavailable

T = TypeVar("T")
HURRY_S: Final = 3.0
HURRIED_PERIOD_S: Final = 0.25
_STALE_PERIODS: Final = 5
_STALE_S: Final = 5.0
HINT: Final = "the log has the whole of it; it is asked for again"
_LOG: Final = logging.getLogger(__name__)
# How long after its question an answer is waited for at most: everybody else waits, too.
WAIT_S: Final = 5.0
# A failure that takes longer than this is silence, too: commands wait for an answer before they give up.
SLOW_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """An answer, None when the last try failed; `asked_s` is monotonic, before the question."""

    number: int
    asked_s: float
    value: T | None
    failure: EngineError | None = None

    def known(self) -> T:
        """Return the answer; raises the `EngineError` that came instead."""
        if self.value is None:
            raise self.failure or EngineError("nothing was read")
        return self.value


class Watched(Generic[T]):
    """One question and its newest reading; safe to use from several threads."""

    def __init__(self, ask: Callable[[], T], period_s: float) -> None:
        """Ask with `ask` at most every `period_s`; whatever it raises makes the reading a failure."""
        self._ask = ask
        self._period_s = period_s
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._begun_s = 0.0
        self._reading: Reading[T] = Reading(0, float("-inf"), None)
        self._hurried_until_s = float("-inf")
        self._doubted_s = float("-inf")
        self._logged = ""
        self._answered: Reading[T] | None = None
        self._is_silent = False

    def hurry(self) -> None:
        """Ask more often for a moment: something was just done whose effect is waited for."""
        self._hurried_until_s = time.monotonic() + HURRY_S

    def doubt(self) -> None:
        """Wait for a new answer at the next reading: something is known to have changed."""
        self._doubted_s = time.monotonic()

    def read(self) -> Reading[T]:
        """Return the newest reading, and see to it that it does not grow old.

        Of a controller that hangs it is a failure.
        """
        now_s = time.monotonic()
        period_s = self._period_s
        if now_s < self._hurried_until_s:
            period_s = min(period_s, HURRIED_PERIOD_S)
        age_s = now_s - self._reading.asked_s
        while self._reading.asked_s < self._doubted_s:
            if not self._wait(self._refresh()):
                return self._hung()
            age_s = 0.0
        thread = self._refresh() if age_s >= period_s else None
        if thread is not None and age_s >= self._stale_s and not self._wait(thread):
            return self._hung()
        return self._reading

    def peek(self) -> tuple[Reading[T] | None, EngineError | None]:
        """Return the last answer there was, asking for none, and why it is not newer if it is too old."""
        answered, reading = self._answered, self._reading
        if reading.failure is not None:
            return answered, reading.failure
        is_old = time.monotonic() - reading.asked_s >= self._stale_s
        return answered, self._hung().failure if is_old else None

    @property
    def is_silent(self) -> bool:
        """Whether a question hung, or failed only after a while, and none was answered since."""
        return self._is_silent

    @property
    def _stale_s(self) -> float:
        return max(_STALE_S, _STALE_PERIODS * self._period_s)

    def _wait(self, thread: threading.Thread) -> bool:
        """Say whether a question has ended, after waiting for it unless the last one took too long."""
        left_s = self._begun_s + WAIT_S - time.monotonic()
        thread.join(0.0 if self._is_silent else max(0.0, left_s))
        self._is_silent = self._is_silent or thread.is_alive()
        return not thread.is_alive()

    def _hung(self) -> Reading[T]:
        """Return the newest reading as one that has failed: nothing can be concluded from it any more."""
        number, asked_s = self._reading.number, self._reading.asked_s
        silent = f"for {time.monotonic() - asked_s:.0f} s" if number else "yet"
        failure = EngineUnavailable(
            f"Slurm has not answered {silent}",
            hint="`scontrol ping` says whether the controller is up",
        )
        return Reading(number, asked_s, None, failure)

    def _refresh(self) -> threading.Thread:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="slurm", daemon=True)
                self._begun_s = time.monotonic()
                self._thread.start()
            return self._thread

    def _run(self) -> None:
        asked_s, number = time.monotonic(), self._reading.number + 1
        try:
            self._answered = self._reading = Reading(number, asked_s, self._ask())
            self._is_silent = False
        except EngineError as failure:
            self._reading = Reading(number, asked_s, None, failure)
            self._is_silent = self._is_silent or time.monotonic() > asked_s + SLOW_S
        except Exception as bug:  # noqa: BLE001 - it is no reason to believe the answer before it
            unread = EngineUnavailable(f"an answer cannot be read: {bug!r}", hint=HINT)
            self._reading = Reading(number, asked_s, None, unread)
            if repr(bug) != self._logged:
                self._logged = repr(bug)
                _LOG.exception("an answer cannot be read; it is asked for again")

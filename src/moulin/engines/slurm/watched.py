"""Keeps the newest answer to one question, asked again in the background when it has grown old.

Whoever reads gets what is known now and never waits for a slow controller, except for a first answer
and for one so old that nothing could be concluded from it.
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
        self._reading: Reading[T] = Reading(0, float("-inf"), None)
        self._hurried_until_s = float("-inf")
        self._doubted_s = float("-inf")
        self._logged = ""

    def hurry(self) -> None:
        """Ask more often for a moment: something was just done whose effect is waited for."""
        self._hurried_until_s = time.monotonic() + HURRY_S

    def doubt(self) -> None:
        """Wait for a new answer at the next reading: something is known to have changed."""
        self._doubted_s = time.monotonic()

    def read(self) -> Reading[T]:
        """Return the newest reading, and see to it that it does not grow old."""
        now_s = time.monotonic()
        period_s = self._period_s
        if now_s < self._hurried_until_s:
            period_s = min(period_s, HURRIED_PERIOD_S)
        age_s = now_s - self._reading.asked_s
        while self._reading.asked_s < self._doubted_s:
            self._refresh().join()
            age_s = 0.0
        thread = self._refresh() if age_s >= period_s else None
        if thread is not None and age_s >= max(_STALE_S, _STALE_PERIODS * self._period_s):
            thread.join()
        return self._reading

    def _refresh(self) -> threading.Thread:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="slurm", daemon=True)
                self._thread.start()
            return self._thread

    def _run(self) -> None:
        asked_s, number = time.monotonic(), self._reading.number + 1
        try:
            self._reading = Reading(number, asked_s, self._ask())
        except EngineError as failure:
            self._reading = Reading(number, asked_s, None, failure)
        except Exception as bug:  # noqa: BLE001 - it is no reason to believe the answer before it
            unread = EngineUnavailable(f"an answer cannot be read: {bug!r}", hint=HINT)
            self._reading = Reading(number, asked_s, None, unread)
            if repr(bug) != self._logged:
                self._logged = repr(bug)
                _LOG.exception("an answer cannot be read; it is asked for again")

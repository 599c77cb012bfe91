"""Keeps the newest answer to one question, asked again in the background when it has grown old.

Whoever reads gets what is known now and never waits for a slow controller, except for a first answer
and for one so old that nothing could be concluded from it; and then not for long, and once: a controller
that hangs is silent from then on, and holds up nobody, until it answers again.

Several may watch one question, each believing an answer for as long as it likes: whoever finds it too
old first has it asked, for all of them. Nobody is told when one stops watching: what nobody reads is
not asked, and no thread outlives its question.
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


class Question(Generic[T]):
    """One question, asked once at a time for all that watch it; safe to use from several threads."""

    def __init__(self, ask: Callable[[], T]) -> None:
        """Ask with `ask`; whatever it raises makes the reading a failure."""
        self._ask = ask
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._begun_s = 0.0
        self._logged = ""
        self.reading: Reading[T] = Reading(0, float("-inf"), None)
        self.answered: Reading[T] | None = None
        self.is_silent = False

    def refresh(self) -> threading.Thread:
        """Return the thread that asks it now, started unless one does."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="slurm", daemon=True)
                self._begun_s = time.monotonic()
                self._thread.start()
            return self._thread

    def wait(self, thread: threading.Thread) -> bool:
        """Say whether a question has ended, after waiting for it unless the last one took too long."""
        left_s = self._begun_s + WAIT_S - time.monotonic()
        thread.join(0.0 if self.is_silent else max(0.0, left_s))
        self.is_silent = self.is_silent or thread.is_alive()
        return not thread.is_alive()

    def hung(self) -> Reading[T]:
        """Return the newest reading as one that has failed: nothing can be concluded from it any more."""
        number, asked_s = self.reading.number, self.reading.asked_s
        silent = f"for {time.monotonic() - asked_s:.0f} s" if number else "yet"
        failure = EngineUnavailable(
            f"Slurm has not answered {silent}",
            hint="`scontrol ping` says whether the controller is up",
        )
        return Reading(number, asked_s, None, failure)

    def _run(self) -> None:
        asked_s, number = time.monotonic(), self.reading.number + 1
        try:
            self.answered = self.reading = Reading(number, asked_s, self._ask())
            self.is_silent = False
        except EngineError as failure:
            self.reading = Reading(number, asked_s, None, failure)
            self.is_silent = self.is_silent or time.monotonic() > asked_s + SLOW_S
        except Exception as bug:  # noqa: BLE001 - it is no reason to believe the answer before it
            unread = EngineUnavailable(f"an answer cannot be read: {bug!r}", hint=HINT)
            self.reading = Reading(number, asked_s, None, unread)
            if repr(bug) != self._logged:
                self._logged = repr(bug)
                _LOG.exception("an answer cannot be read; it is asked for again")


class Watched(Generic[T]):
    """One who watches a question; safe to use from several threads."""

    def __init__(self, ask: Callable[[], T] | Question[T], period_s: float) -> None:
        """Have it asked at most every `period_s`, unless others who watch it want it more often."""
        self._question = ask if isinstance(ask, Question) else Question(ask)
        self._period_s = period_s
        self._hurried_until_s = float("-inf")
        self._doubted_s = float("-inf")

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
        question, now_s = self._question, time.monotonic()
        period_s = self._period_s
        if now_s < self._hurried_until_s:
            period_s = min(period_s, HURRIED_PERIOD_S)
        age_s = now_s - question.reading.asked_s
        while question.reading.asked_s < self._doubted_s:
            if not question.wait(question.refresh()):
                return question.hung()
            age_s = 0.0
        thread = question.refresh() if age_s >= period_s else None
        if thread is not None and age_s >= self._stale_s and not question.wait(thread):
            return question.hung()
        return question.reading

    def peek(self) -> tuple[Reading[T] | None, EngineError | None]:
        """Return the last answer there was, asking for none, and why it is not newer if it is too old."""
        answered, reading = self._question.answered, self._question.reading
        if reading.failure is not None:
            return answered, reading.failure
        is_old = time.monotonic() - reading.asked_s >= self._stale_s
        return answered, self._question.hung().failure if is_old else None

    @property
    def is_silent(self) -> bool:
        """Whether a question hung, or failed only after a while, and none was answered since."""
        return self._question.is_silent

    @property
    def _stale_s(self) -> float:
        return max(_STALE_S, _STALE_PERIODS * self._period_s)

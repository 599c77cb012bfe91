"""Faults of one seed: where the control plane dies, and what the store, engines and clocks do wrong.

`trip` is called at every write and every effect; it decides nothing, it only fires what was armed.
A crash is no `Exception`, so that no handler can swallow it.
"""

from dataclasses import dataclass

from moulin.domain.errors import DiskFull, MoulinError, StoreUnavailable


class Crash(BaseException):
    """The control plane's process is gone, in the middle of whatever it did."""


@dataclass(slots=True)
class Faults:
    """What is armed. Counters are of events still to come; 0 means nothing is wrong.

    `crash_in` fires at that many calls of `trip` from now, `commits_failing` and `reads_failing`
    at the next ones of their kind. `is_full` chooses the error; `is_unknown` lets a failing commit
    be written all the same, as when the answer of a database is lost.
    """

    crash_in: int = 0
    commits_failing: int = 0
    reads_failing: int = 0
    is_full: bool = False
    is_unknown: bool = False
    crashes: int = 0
    last_point: str = ""

    def clear(self) -> None:
        """Let everything work from here on."""
        self.crash_in = self.commits_failing = self.reads_failing = 0

    def trip(self, point: str) -> None:
        """Die here if the armed crash is due."""
        if self.crash_in:
            self.crash_in -= 1
            if not self.crash_in:
                self.crashes += 1
                self.last_point = point
                raise Crash(point)

    def before_commit(self) -> None:
        """Fail a commit of which nothing was written."""
        self.trip("before commit")
        if self.commits_failing and not self.is_unknown:
            self.commits_failing -= 1
            raise self._error()

    def after_commit(self) -> None:
        """Fail a commit that was written."""
        self.trip("after commit")
        if self.commits_failing and self.is_unknown:
            self.commits_failing -= 1
            raise self._error()

    def before_read(self) -> None:
        """Fail to read the log."""
        self.trip("read")
        if self.reads_failing:
            self.reads_failing -= 1
            raise StoreUnavailable("read: simulated outage")

    def _error(self) -> MoulinError:
        if self.is_full and not self.is_unknown:
            return DiskFull("commit: simulated full disk")
        return StoreUnavailable("commit: simulated outage")

"""The real clock and the real dice."""

import os
import threading
import time

ENTROPY_BYTES = 10
DRAWN_AT_ONCE = 256


class SystemClock:
    """UTC that never runs backwards: an anchor read once, plus monotonic time since.

    A wall clock that is set while the process runs moves the next process, not this one, so
    intervals keep their length. `CLOCK_BOOTTIME` would count a suspended laptop's sleep as work.
    """

    def __init__(self) -> None:
        self._anchor_ns = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> int:
        """Return ns since 1970 UTC."""
        return self._anchor_ns + time.monotonic_ns()

    def at_monotonic(self, monotonic_ns: int) -> int:
        """Return the UTC of a reading of this machine's monotonic clock."""
        return self._anchor_ns + monotonic_ns


class SystemDice:
    """Randomness of the operating system, drawn many at a time.

    One system call an id would cost little by itself, but each one hands the interpreter to the
    other thread. Each thread draws from its own supply, so no bits are given out twice.
    """

    def __init__(self) -> None:
        self._own = threading.local()

    def entropy(self) -> int:
        """Return 80 fresh random bits."""
        supply: list[bytes] | None = getattr(self._own, "supply", None)
        if not supply:
            drawn = os.urandom(ENTROPY_BYTES * DRAWN_AT_ONCE)
            supply = [
                drawn[start : start + ENTROPY_BYTES]
                for start in range(0, len(drawn), ENTROPY_BYTES)
            ]
            self._own.supply = supply
        return int.from_bytes(supply.pop())

"""How many requests of an endpoint may be sent a second time.

It decides by a bucket: each request puts in a fifth of a retry, so that retries stay a fraction of
the load whatever fails, and the bucket holds what one failure of everything under way costs. It
never sends anything.

Source: Google SRE Book, chapter 21 ("Handling overload"), per-client retry budget.
"""

from typing import Final

RATIO_PERCENT: Final = 20
BURST_MIN: Final = 64
_COST: Final = 100


class RetryBudget:
    """The bucket of one endpoint, in hundredths of a retry; it starts full."""

    __slots__ = ("_left", "_most")

    def __init__(self, burst: int = BURST_MIN) -> None:
        self._most = max(burst, BURST_MIN) * _COST
        self._left = self._most

    @property
    def left(self) -> int:
        """Whole retries left."""
        return self._left // _COST

    def resize(self, burst: int) -> None:
        """Hold so many retries at most, `BURST_MIN` at least; what is new of it is full."""
        most = max(burst, BURST_MIN) * _COST
        self._left = max(0, min(self._left + most - self._most, most))
        self._most = most

    def earn(self) -> None:
        """A request came."""
        if self._left < self._most:
            self._left = min(self._left + RATIO_PERCENT, self._most)

    def spend(self) -> bool:
        """Take one retry out; False when there is none."""
        if self._left < _COST:
            return False
        self._left -= _COST
        return True

"""How fast callers may go: exact counts over the last minute, as values without a clock.

It decides whether a request fits its rate and, if not, when it will. In any 60 seconds no more than
the limit is admitted: a minute is 61 slots of a second, so that the slot that is only partly in the
past is counted whole. A bucket that refills (GCRA) would let through twice its limit around a burst
or, with a small burst, half of it in a steady minute.

    count = sum of the slots = what was added in the last 60 to 61 s, less what was given back
"""

from dataclasses import dataclass, field
from typing import Final

from moulin.domain.errors import check

WINDOW_S: Final = 60
SLOTS: Final = WINDOW_S + 1
NEVER_S: Final = -1
"""What is wanted is more than the limit itself: no wait helps."""


@dataclass(slots=True)
class MinuteCount:
    """What one scope used in the last minute, second by second; seconds only grow.

    Cost: O(1) for calls within a second, O(seconds passed) at most 61 otherwise; about 600 bytes.
    """

    slots: list[int] = field(default_factory=lambda: [0] * SLOTS)
    total: int = 0
    second: int = 0

    def room(self, limit: int, second: int) -> int:
        """Return how much may still be added now; below zero when the limit has shrunk."""
        self._advance(second)
        return limit - self.total

    def add(self, amount: int, second: int) -> int:
        """Count `amount` now; return the second it was counted in, to give back from."""
        check(amount >= 0, "a rate counts upwards")
        self._advance(second)
        self.slots[self.second % SLOTS] += amount
        self.total += amount
        return self.second

    def recall(self, amount: int, then: int, second: int) -> None:
        """Count what was let through at an earlier second; nothing when that has passed."""
        check(amount >= 0, "a rate counts upwards")
        self._advance(second)
        if second - SLOTS < then <= second:
            self.slots[then % SLOTS] += amount
            self.total += amount

    def give_back(self, amount: int, second: int) -> None:
        """Take back what was counted at `second` and not used; nothing when that has passed."""
        check(amount >= 0, "only what was counted is given back")
        if second <= self.second - SLOTS:
            return
        self.slots[second % SLOTS] -= amount
        self.total -= amount
        check(self.slots[second % SLOTS] >= 0, "no more is given back than was counted")

    def wait_s(self, wanted: int, limit: int, second: int) -> int:
        """Return in how many seconds `wanted` fits; 0 for now, `NEVER_S` when it never does."""
        if wanted > limit:
            return NEVER_S
        missing = wanted - self.room(limit, second)
        for age in range(SLOTS - 1, -1, -1):
            if missing <= 0:
                return SLOTS - 1 - age
            missing -= self.slots[(self.second - age) % SLOTS]
        return SLOTS

    def reset_s(self, second: int) -> int:
        """Return in how many seconds nothing is counted any more."""
        self._advance(second)
        for age in range(SLOTS):
            if self.slots[(self.second - age) % SLOTS]:
                return SLOTS - age
        return 0

    def _advance(self, second: int) -> None:
        passed = second - self.second
        if passed <= 0:
            return
        if passed >= SLOTS:
            self.slots = [0] * SLOTS
            self.total = 0
        else:
            for each in range(self.second + 1, second + 1):
                self.total -= self.slots[each % SLOTS]
                self.slots[each % SLOTS] = 0
        self.second = second


def duration_text(seconds: int) -> str:
    """Return seconds as OpenAI's rate-limit headers write them.

    >>> duration_text(61), duration_text(5)
    ('1m1s', '5s')
    """
    return f"{seconds // 60}m{seconds % 60}s" if seconds >= 60 else f"{seconds}s"

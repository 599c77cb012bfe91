"""The users of one project, or one key, that have an allowance of their own.

What a user may use is declared once for all of them; a user is known here from the first grant until
nothing is held and nothing counts any more: an idle user costs nothing in the next period. How many
there may be at one time is bounded, because clients choose the names.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from moulin.domain.limits import (
    USERS_MAX,
    Allowance,
    AllowanceUnit,
    Period,
    parts_of,
    period_of,
)
from moulin.ledger.spending import Spending

SWEEP_MIN: Final = 1024
NEVER_NS: Final = 1 << 63


@dataclass(slots=True)
class Crowd:
    """What each user may use, and by allowance what those did of whom anything counts.

    A sweep at `sweep_at` users forgets those of former periods, so that there are never more than
    twice as many as count; before `full_until_ns` it would find none.
    """

    allowance: Allowance = field(default_factory=Allowance)
    spending: dict[str, Spending] = field(default_factory=dict)
    sweep_at: int = SWEEP_MIN
    full_until_ns: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing is declared and nothing held."""
        return not (self.allowance.is_set or self.spending)

    def declare(self, wanted: Allowance, at_ns: int) -> None:
        """Set what each user may use; what was used stays, and another period starts with it."""
        before, self.allowance = self.allowance, wanted
        for name, spending in list(self.spending.items()):
            limit = self._limit(name)
            if limit is None:
                self._forget_unused(name)  # escrow that is out comes back to nothing
                continue
            spending.limit, spending.alerts_ppm = limit, wanted.alerts_ppm
            if before.period is not wanted.period:
                spending.period, spending.end_ns = wanted.period, 0
            spending.turn(at_ns)
        self.full_until_ns = 0

    def units(self) -> Iterator[AllowanceUnit]:
        """Yield what is limited."""
        for unit, _ in self.allowance.limits():
            yield unit

    def look(self, name: str, at_ns: int) -> Spending | None:
        """Return how a user's allowance stands, of a new user too; None where there is no limit."""
        limit = self._limit(name)
        if limit is None:
            return None
        found = self.spending.get(name)
        if found is None:
            allowance = self.allowance
            found = Spending(limit=limit, period=allowance.period, alerts_ppm=allowance.alerts_ppm)
        found.turn(at_ns)
        return found

    def enter(self, name: str, at_ns: int) -> Spending | None:
        """Return the same and remember it: something is handed out or was used."""
        found = self.look(name, at_ns)
        if found is not None and name not in self.spending:
            if len(self.spending) >= self.sweep_at:
                self._sweep(at_ns)
            self.spending[name] = found
        return found

    def has_room(self, name: str, now_ns: int) -> bool:
        """Say whether a user may begin, or began already."""
        is_full = len(self.spending) >= USERS_MAX and now_ns < self.full_until_ns
        return not is_full or name in self.spending

    def hold(self, name: str, change: int) -> None:
        """Note that a gateway was handed so much of a user's allowance, or gave it back."""
        found = self.spending.get(name)
        if found is not None:
            found.held += change
            self._forget_unused(name)

    def _forget_unused(self, name: str) -> None:
        found = self.spending[name]
        if not found.held and (not found.used or self._limit(name) is None):
            del self.spending[name]

    def _limit(self, name: str) -> int | None:
        return dict(self.allowance.limits()).get(parts_of(name)[2])

    def _sweep(self, at_ns: int) -> None:
        self.spending = {
            name: each for name, each in self.spending.items() if each.held or each.used_at(at_ns)
        }
        self.sweep_at = min(max(SWEEP_MIN, 2 * len(self.spending)), USERS_MAX)
        period = self.allowance.period
        self.full_until_ns = NEVER_NS if period is Period.EVER else period_of(period, at_ns)[1]

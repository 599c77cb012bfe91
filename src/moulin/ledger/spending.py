"""One allowance in one unit: what was used and is held of it, and how its periods turn.

This module knows nothing of owners, gateways or events.
"""

from dataclasses import dataclass

from moulin.domain.limits import Period, period_of


@dataclass(slots=True)
class Spending:
    """One allowance in one unit; amounts are n€ or tokens. `alerted_ppm` is the last one told."""

    limit: int
    period: Period
    alerts_ppm: tuple[int, ...] = ()
    start_ns: int = 0
    end_ns: int = 0
    used: int = 0
    held: int = 0
    alerted_ppm: int = 0

    def available(self, now_ns: int) -> int:
        """Return what may be handed out now; below zero in debt."""
        return self.limit - self.used_at(now_ns) - self.held

    def used_at(self, now_ns: int) -> int:
        """Return what is used of the period that holds `now_ns`: nothing but debt in a new one."""
        if self.period is Period.EVER or now_ns < self.end_ns:
            return self.used
        return max(0, self.used - self.limit)

    def turn(self, now_ns: int) -> None:
        """Go over into the period that holds `now_ns`, if it is a later one."""
        if self.period is not Period.EVER and now_ns >= self.end_ns:
            if self.end_ns:
                self.used = self.used_at(now_ns)
                self.alerted_ppm = 0
            self.start_ns, self.end_ns = period_of(self.period, now_ns)

    def alert_due(self) -> int:
        """Return the largest fraction that was reached and not told in this period, 0 for none."""
        reached = [
            ppm
            for ppm in self.alerts_ppm
            if ppm > self.alerted_ppm and self.used * 1_000_000 >= self.limit * ppm
        ]
        return max(reached, default=0)

"""Money a gateway may spend for one project before it asks again (DESIGN rule 8).

It decides whether a request fits what the leader granted, and how much to ask for next. It never
spends more than was granted: a request holds its upper bound first and settles at or below it.

    granted = held + spent + returned + left        at every moment, each part at or above zero
"""

from dataclasses import dataclass
from typing import Final

from moulin.domain.errors import check
from moulin.domain.units import NS_PER_S

CHUNK_REQUESTS: Final = 20
"""A wish covers this many typical requests, so that most requests find their escrow waiting."""
HURRY_NS: Final = 2 * NS_PER_S
"""A chunk that lasted less than this was too small: the next one is twice as large."""
LEISURE_NS: Final = 10 * NS_PER_S
"""A chunk that lasted longer than this was too large: the next one is half as large."""
CHUNK_REQUESTS_MAX: Final = 20_000
_SMOOTHING: Final = 8


@dataclass(slots=True, kw_only=True)
class Escrow:
    """The account of one project at one gateway epoch; all amounts in n€."""

    granted_neur: int = 0
    held_neur: int = 0
    spent_neur: int = 0
    returned_neur: int = 0
    left_neur: int = 0
    typical_neur: int = 0
    chunk_requests: int = CHUNK_REQUESTS
    wished_at_ns: int = 0

    def grant(self, amount_neur: int) -> None:
        """Take in escrow handed out by the leader."""
        check(amount_neur >= 0, "a grant is not negative")
        self.granted_neur += amount_neur
        self.left_neur += amount_neur

    def hold(self, amount_neur: int) -> bool:
        """Set aside a request's upper bound; False, and nothing changes, when it does not fit.

        A request that costs nothing always fits, granted or not.
        """
        check(amount_neur >= 0, "a reservation is not negative")
        self.typical_neur += (amount_neur - self.typical_neur) // _SMOOTHING
        if amount_neur > self.left_neur:
            return False
        self.left_neur -= amount_neur
        self.held_neur += amount_neur
        return True

    def settle(self, held_neur: int, spent_neur: int) -> None:
        """End a request: of what it held, `spent_neur` is gone and the rest is free again."""
        check(0 <= spent_neur <= held_neur <= self.held_neur, "a request spends what it held")
        self.held_neur -= held_neur
        self.spent_neur += spent_neur
        self.left_neur += held_neur - spent_neur

    def give_back(self) -> int:
        """Take everything that is free out of the account and return it, in n€."""
        amount_neur = self.left_neur
        self.chunk_requests = CHUNK_REQUESTS
        self.left_neur = 0
        self.returned_neur += amount_neur
        return amount_neur

    def take_again(self, amount_neur: int) -> None:
        """Undo a `give_back` that certainly never reached the leader."""
        check(0 <= amount_neur <= self.returned_neur, "only what was given back comes again")
        self.returned_neur -= amount_neur
        self.left_neur += amount_neur

    def wish(self, needed_neur: int, now_ns: int) -> int:
        """Return what to ask the leader for, at least `needed_neur` beyond what is left.

        The chunk doubles while wishes come quickly and shrinks when they do not, so that a busy
        project asks seldom and a quiet one keeps little money away from others.
        """
        lasted_ns = now_ns - self.wished_at_ns
        if lasted_ns < HURRY_NS:
            self.chunk_requests = min(2 * self.chunk_requests, CHUNK_REQUESTS_MAX)
        elif lasted_ns > LEISURE_NS:
            self.chunk_requests = max(self.chunk_requests // 2, CHUNK_REQUESTS)
        self.wished_at_ns = now_ns
        return max(needed_neur - self.left_neur, self.typical_neur * self.chunk_requests, 0)

    def is_running_low(self) -> bool:
        """Whether to ask again before a request has to wait for it."""
        return self.left_neur < self.typical_neur * self.chunk_requests // 4

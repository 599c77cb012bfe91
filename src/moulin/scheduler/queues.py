"""Ordered collections of a state: units that wait, and things that fall due at a time.

Both are sorted lists: a decision walks them in order without changing them, and equal contents
are equal lists however they came about.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Any, NamedTuple

from moulin.domain.ids import WorkloadId
from moulin.scheduler.demand import Demand


class Ticket(NamedTuple):
    """A waiting unit's place among equals: by time of submission, then id, then unit."""

    submitted_at_ns: int
    workload: WorkloadId
    unit: int


class Line:
    """Tickets of one demand in order.

    Cost: `add` and `remove` O(log n) plus a move of pointers; both ends are the usual case.
    """

    __slots__ = ("_head", "_tickets")

    def __init__(self) -> None:
        self._tickets: list[Ticket | None] = []
        self._head = 0

    def __len__(self) -> int:
        return len(self._tickets) - self._head

    def __iter__(self) -> Iterator[Ticket]:
        for position in range(len(self)):
            yield self.at(position)

    def at(self, position: int) -> Ticket:
        """Return the ticket at a position counted from the front."""
        ticket = self._tickets[self._head + position]
        assert ticket is not None  # only positions before the head are cleared
        return ticket

    def before(self, ticket: Ticket) -> int:
        """Return how many tickets come before `ticket`."""
        return self._find(ticket) - self._head

    def add(self, ticket: Ticket) -> None:
        """Insert a ticket; one that is there already stays once."""
        position = self._find(ticket)
        if position == len(self._tickets) or self._tickets[position] != ticket:
            self._tickets.insert(position, ticket)

    def remove(self, ticket: Ticket) -> None:
        """Take a ticket out if it is there."""
        position = self._find(ticket)
        if position == len(self._tickets) or self._tickets[position] != ticket:
            return
        if position > self._head:
            del self._tickets[position]
            return
        self._tickets[position] = None
        self._head += 1
        if self._head > 64 and self._head * 2 > len(self._tickets):
            del self._tickets[: self._head]
            self._head = 0

    def _find(self, ticket: Ticket) -> int:
        tickets: Any = self._tickets  # the cleared part is never compared
        return bisect_left(tickets, ticket, lo=self._head)


class Waiting:
    """Every unit that may be placed at once, by demand. Units that back off are not in here."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        self.lines: dict[Demand, Line] = {}

    def __len__(self) -> int:
        return sum(len(line) for line in self.lines.values())

    def add(self, demand: Demand, ticket: Ticket) -> None:
        """Let a unit wait."""
        line = self.lines.get(demand)
        if line is None:
            line = self.lines[demand] = Line()
        line.add(ticket)

    def remove(self, demand: Demand, ticket: Ticket) -> None:
        """Take a unit out; an empty line is forgotten."""
        line = self.lines.get(demand)
        if line is not None:
            line.remove(ticket)
            if not len(line):
                del self.lines[demand]


class Due(NamedTuple):
    """Something that falls due: an attempt's time limit, a deadline, the end of a back-off."""

    at_ns: int
    id: str
    unit: int = 0


class Timeline:
    """Due times in order; ties by id."""

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries: list[Due] = []

    def add(self, due: Due) -> None:
        """Insert an entry."""
        insort(self.entries, due)

    def remove(self, due: Due) -> None:
        """Take an entry out if it is there."""
        position = bisect_left(self.entries, due)
        if position < len(self.entries) and self.entries[position] == due:
            del self.entries[position]

    def until(self, now_ns: int) -> list[Due]:
        """Return what is due at or before `now_ns`, earliest first."""
        return self.entries[: bisect_right(self.entries, now_ns, key=lambda due: due.at_ns)]

    @property
    def next_ns(self) -> int | None:
        """The earliest due time."""
        return self.entries[0].at_ns if self.entries else None

"""Time and entropy as ports, so that a simulation can own both."""

from typing import Protocol


class Clock(Protocol):
    """A clock whose UTC never runs backwards within one process."""

    def now_ns(self) -> int:
        """Return ns since 1970 UTC: an anchor read once plus the monotonic time since."""
        ...


class IdSource(Protocol):
    """The only dice of the system."""

    def entropy(self) -> int:
        """Return 80 fresh random bits."""
        ...

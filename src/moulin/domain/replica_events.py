"""The part of the log's vocabulary about replicas whose time ends before their endpoint does.

The same rules hold as in `events.py`, which names these kinds with all others.
"""

from dataclasses import dataclass

from moulin.domain.ids import AttemptId
from moulin.domain.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class SuccessionDecided:
    """A replica gets a successor now, and leaves once that one is ready: its time ends soon."""

    attempt: AttemptId
    ends_at_ns: int
    reason: Reason

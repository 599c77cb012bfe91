"""Whether a replica is to be trusted: one circuit per replica, and how long an answer may take.

It decides when a replica gets no more requests (open), when one request may try it again
(half-open), and from what wait on a silent replica is thought to hang. It never closes a
connection and never counts what a client did wrong.

    closed ──failures in a row──► open ──its time is over──► half-open ──answer──► closed
                                   ▲───────────failure, twice the time──┘
"""

from enum import IntEnum
from typing import Final

FAILURES_MAX: Final = 3
"""So many failures in a row open a circuit; a connection that is refused does so alone."""
REST_S: Final = 2.0
REST_MAX_S: Final = 30.0
SAMPLES_MIN: Final = 20
"""Before so many answers nothing is known of an endpoint, and no wait is too long."""
FLOOR_S: Final = 5.0
TIMES_USUAL: Final = 4.0
_FORGETTING: Final = 0.99


class Failure(IntEnum):
    """What a replica did, by how much it says: so many of `FAILURES_MAX`."""

    ERROR = 1
    UNREACHABLE = FAILURES_MAX
    SILENT = FAILURES_MAX


class Circuit:
    """The circuit of one replica; times in seconds of one monotonic clock.

    `failures` is 0 exactly when nothing is wrong, so that asking costs nothing then. `rests_until_s`
    is 0 while the circuit is closed.
    """

    __slots__ = ("failures", "is_probed", "openings", "rests_until_s")

    def __init__(self) -> None:
        self.failures = 0
        self.openings = 0
        self.rests_until_s = 0.0
        self.is_probed = False

    def is_due(self, now_s: float) -> bool:
        """Whether one request may try an open circuit now."""
        return not self.is_probed and now_s >= self.rests_until_s > 0.0

    def probe(self) -> None:
        """A request is on its way to an open circuit; no other follows until it has ended."""
        self.is_probed = True

    def succeeded(self) -> None:
        """Close: the replica answered."""
        self.failures = self.openings = 0
        self.rests_until_s = 0.0
        self.is_probed = False

    def failed(self, failure: Failure, now_s: float) -> None:
        """Count a failure; open when there were enough, each time twice as long.

        Failures of requests that were sent before it opened do not make it rest longer.
        """
        was_open = self.rests_until_s > 0.0
        self.failures += failure
        if was_open and not self.is_probed:
            return
        if was_open or self.failures >= FAILURES_MAX:
            self.rests_until_s = now_s + min(REST_S * 2**self.openings, REST_MAX_S)
            self.openings = min(self.openings + 1, 16)
        self.is_probed = False

    def abandoned(self) -> None:
        """The probe ended without saying anything of the replica: its client left."""
        self.is_probed = False


class Patience:
    """How long answers of one endpoint take, and from when on a wait is out of proportion.

    An answer's wait is judged by its size: tokens to read before the head of a stream, tokens to
    read and write before a whole answer.
    """

    __slots__ = ("_s_per_token", "_samples")

    def __init__(self) -> None:
        self._samples = 0
        self._s_per_token = 0.0

    def saw(self, waited_s: float, tokens: int) -> None:
        """Learn from an answer that came after so long; the slowest count, and fade."""
        self._samples += 1
        pace = waited_s / max(tokens, 1)
        self._s_per_token = max(pace, self._s_per_token * _FORGETTING)

    def limit_s(self, tokens: int, otherwise_s: float) -> float:
        """Return the longest wait for an answer of at most so many tokens."""
        if self._samples < SAMPLES_MIN:
            return otherwise_s
        return min(otherwise_s, FLOOR_S + TIMES_USUAL * self._s_per_token * tokens)

"""The part of the log's vocabulary that only leases need.

The same rules hold as in `events.py`, which names these kinds with all others.
"""

from dataclasses import dataclass

from moulin.domain.ids import WorkloadId


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseExtended:
    """A lease ends later: `time_limit_s` after its delivery, and `added_neur` more are held for it."""

    workload: WorkloadId
    by: str
    time_limit_s: int
    added_neur: int

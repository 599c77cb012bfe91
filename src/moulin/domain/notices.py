"""What a webhook is told besides alerts of allowances: that a workload has ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moulin.domain.limits import AllowanceNotice
from moulin.domain.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadNotice:
    """A workload has ended; of an array `counts` says how its elements did.

    `id` is the sequence of the event; `url` is what the operator declared, empty when nothing is.
    """

    id: int
    at_ns: int
    organisation: str
    project: str
    workload: str
    name: str
    kind: str
    state: str
    reason: Reason | None = None
    submitted_at_ns: int = 0
    started_at_ns: int = 0
    ended_at_ns: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    url: str = field(default="", repr=False)


Notice = AllowanceNotice | WorkloadNotice

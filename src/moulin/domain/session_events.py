"""The part of the log's vocabulary that says who went into a running task, and when they left.

The same rules hold as in `events.py`, which names these kinds with all others. Nothing of what was
typed or answered is ever in an event: of a command its first word, which names the program.
"""

from dataclasses import dataclass
from enum import StrEnum

from moulin.domain.ids import StepId, WorkloadId


class SessionPurpose(StrEnum):
    """What somebody wants inside a task: to run a command, or to reach one of its ports."""

    EXEC = "exec"
    FORWARD = "forward"


class SessionEnd(StrEnum):
    """Why a session is over."""

    EXITED = "exited"
    LEFT = "left"
    TASK_ENDED = "task_ended"
    TOO_LONG = "too_long"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened:
    """`by` went into a running task; `word` names the program that was started, or the port."""

    session: str
    workload: WorkloadId
    step: StepId
    purpose: SessionPurpose
    by: str
    word: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionClosed:
    """A session is over; one that a crash cut has no such event."""

    session: str
    workload: WorkloadId
    end: SessionEnd
    exit_code: int | None = None

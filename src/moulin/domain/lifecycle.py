"""The transition table: which trigger moves an attempt from which state to which.

Both the fold and the documentation read this table; a pair that is not in it is a late or
duplicated effect and changes nothing (DESIGN rule 7).
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from moulin.domain.workload import AttemptState


class Trigger(StrEnum):
    """What can happen to an attempt."""

    TASK_RUNS = "task_runs"
    ALL_SUCCEEDED = "all_succeeded"
    TASK_FAILED = "task_failed"
    TASK_LOST = "task_lost"
    STOPPED = "stopped"
    PREEMPTED = "preempted"


ATTEMPT_TRANSITIONS: Final[Mapping[tuple[AttemptState, Trigger], AttemptState]] = {
    (AttemptState.PLACED, Trigger.TASK_RUNS): AttemptState.RUNNING,
    (AttemptState.PLACED, Trigger.ALL_SUCCEEDED): AttemptState.SUCCEEDED,
    (AttemptState.PLACED, Trigger.TASK_FAILED): AttemptState.FAILED,
    (AttemptState.PLACED, Trigger.TASK_LOST): AttemptState.LOST,
    (AttemptState.PLACED, Trigger.STOPPED): AttemptState.CANCELLED,
    (AttemptState.PLACED, Trigger.PREEMPTED): AttemptState.PREEMPTED,
    (AttemptState.RUNNING, Trigger.ALL_SUCCEEDED): AttemptState.SUCCEEDED,
    (AttemptState.RUNNING, Trigger.TASK_FAILED): AttemptState.FAILED,
    (AttemptState.RUNNING, Trigger.TASK_LOST): AttemptState.LOST,
    (AttemptState.RUNNING, Trigger.STOPPED): AttemptState.CANCELLED,
    (AttemptState.RUNNING, Trigger.PREEMPTED): AttemptState.PREEMPTED,
}


def next_attempt_state(state: AttemptState, trigger: Trigger) -> AttemptState:
    """Return the state after `trigger`; a pair outside the table leaves the state as it is."""
    return ATTEMPT_TRANSITIONS.get((state, trigger), state)

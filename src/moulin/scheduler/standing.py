"""Why work that was placed has not begun, or ends too soon: what its engines say, put together by reason.

What engines say is handed in; nothing here asks. A gang is one job, and an array is counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from moulin.domain.ids import StepId
from moulin.domain.observation import TaskPhase
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.standing import Standing
from moulin.domain.words import moment
from moulin.scheduler.rows import AttemptRow, TaskRow, WorkloadRow
from moulin.scheduler.state import State
from moulin.scheduler.walltime import MOVED_NS

Standings = Mapping[StepId, Standing]
NOTHING_SAID: Final[Standings] = {}


def standing_reasons(state: State, row: WorkloadRow, standings: Standings) -> Iterator[Reason]:
    """Yield for what the engines hold back the jobs of a workload, and which of them cannot be asked.

    The most frequent reason comes first. A task that was seen running waits for nothing.
    """
    jobs = [each for attempt in state.live_attempts(row) for each in _job(attempt, standings)]
    held: dict[tuple[str, str], list[tuple[Standing, int]]] = {}
    for each in jobs:
        if each[0].word:
            held.setdefault((each[0].engine, each[0].word), []).append(each)
    for alike in sorted(held.values(), key=len, reverse=True):
        yield from _held(alike, len(jobs))
    yield from _cut_short(state, row, standings)
    yield from _silent([found for found, _ in jobs])


def _cut_short(state: State, row: WorkloadRow, standings: Standings) -> Iterator[Reason]:
    """Yield which job of a workload its engine ends first, of those that it ends before their own limit.

    A replica follows its engine, and says so itself.
    """
    found = [
        (standings[task.step], attempt.limit_ends_ns)
        for attempt in state.live_attempts(row)
        for task in attempt.tasks
        if not task.is_ended and task.step in standings and not row.is_lasting
    ]
    short = [(each, limit_ns) for each, limit_ns in found if 0 < each.wall_ns < limit_ns - MOVED_NS]
    if short:
        first, limit_ns = min(short, key=lambda each: each[0].wall_ns)
        parameters = {
            "engine": first.engine,
            "job": first.job,
            "wall": moment(first.wall_ns),
            "limit": moment(limit_ns),
        }
        yield Reason(code=ReasonCode.ENGINE_ENDS, parameters=parameters)


def _job(attempt: AttemptRow, standings: Standings) -> Iterator[tuple[Standing, int]]:
    """Yield where the job of an attempt stands, and since when, unless all of it was seen running."""
    tasks = [task for task in attempt.tasks if _may_wait(task) and task.step in standings]
    found = [standings[task.step] for task in tasks]
    if found:
        first = next((each for each in found if each.word), found[0])
        yield first, first.since_ns or attempt.placed_at_ns


def _may_wait(task: TaskRow) -> bool:
    return not task.is_ended and task.phase is not TaskPhase.RUNNING


def _held(alike: Sequence[tuple[Standing, int]], jobs: int) -> Iterator[Reason]:
    """Yield one reason for jobs that wait for the same, and what is known of the first of them."""
    first = alike[0][0]
    named = {"engine": first.engine, "job": first.job or "?"}
    meant = {
        "word": first.word,
        "meaning": first.meaning or "Moulin knows no plainer words for it",
        "since": moment(min(since_ns for _, since_ns in alike)),
    }
    if jobs == 1:
        yield Reason(code=ReasonCode.ENGINE_HOLDS, parameters=named | meant)
    else:
        counted = {"count": str(len(alike)), "jobs": str(jobs)}
        yield Reason(code=ReasonCode.ENGINE_HOLDS_SOME, parameters=named | meant | counted)
    if first.detail:
        parameters = named | {"words": first.detail}
        yield Reason(code=ReasonCode.ENGINE_SAYS, parameters=parameters)
    expected = [found for found, _ in alike if found.expected_ns]
    if expected:
        soonest = min(expected, key=lambda found: found.expected_ns)
        parameters = {
            "engine": soonest.engine,
            "job": soonest.job,
            "expected": moment(soonest.expected_ns),
        }
        yield Reason(code=ReasonCode.ENGINE_EXPECTS, parameters=parameters)


def _silent(found: Sequence[Standing]) -> Iterator[Reason]:
    """Yield for each engine that could not be read again how old its words are."""
    silent: dict[tuple[str, str], list[Standing]] = {}
    for each in found:
        if each.failure:
            silent.setdefault((each.engine, each.failure), []).append(each)
    for (engine, failure), alike in silent.items():
        read_at_ns = min(each.read_at_ns for each in alike)
        parameters = {
            "engine": engine,
            "jobs": str(len(alike)),
            "read_at": moment(read_at_ns) if read_at_ns else "never",
            "failure": failure,
        }
        yield Reason(code=ReasonCode.ENGINE_SILENT, parameters=parameters)

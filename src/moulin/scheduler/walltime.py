"""When a replica's own time ends, and how early its successor starts so that no stream is cut.

A batch system gives every job an end. Before it, a replica is followed by another in four steps: the
successor is asked for (`Succeed`), it waits and loads like any replica, the old one gets no new request
once it is ready (`Drain`), and stops when it has nothing under way. How early follows from how long
starts really took; what was never measured is assumed, and said to be. It never chooses a node.

An end that somebody moves in the batch system itself is followed where it comes sooner than the replica's
own limit; more time than it was given is not used. Decision 0036.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from moulin.domain.ids import WorkloadId
from moulin.domain.plan import Succeed
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.workload import AttemptState, WorkloadKind
from moulin.scheduler.changes import attend, members
from moulin.scheduler.queues import Due
from moulin.scheduler.rows import AttemptRow, UnitRow, WorkloadRow
from moulin.scheduler.state import State

NS_PER_S: Final = 10**9
# Before the first measurement of its kind: a queue of a minute, and a model that takes two.
WAIT_NS_ASSUMED: Final = 60 * NS_PER_S
LOAD_NS_ASSUMED: Final = 120 * NS_PER_S
# So many of the last measurements are kept; the longest of them counts.
MEASURED_KEPT: Final = 5
# An end that differs by less from the known one is the same: a launch takes a moment.
MOVED_NS: Final = 5 * NS_PER_S
# A start may take half as long again as the longest one seen, and this much more.
SPARE_NS: Final = 5 * NS_PER_S


class Start(NamedTuple):
    """How long a replica takes until it serves: its wait for a machine, and its load."""

    wait_ns: int
    load_ns: int
    is_measured: bool

    @property
    def whole_ns(self) -> int:
        """Both together."""
        return self.wait_ns + self.load_ns


class Turns(NamedTuple):
    """The times of one replica, ns UTC: successor asked for, no new request, stopped, ended."""

    succeed_ns: int
    drain_ns: int
    stop_ns: int
    ends_ns: int


# -- what a replica may take ----------------------------------------------------------------------


def time_limit_s(state: State, row: WorkloadRow, attempt: AttemptRow) -> int:
    """Return how long an attempt may run, 0 for as long as it likes.

    A job has the limit it asked for. An endpoint lasts, and each of its replicas has the shortest of
    what was asked for and what the engine gives on its nodes.
    """
    if attempt.is_check:
        return attempt.check_s
    if row.submission.spec.kind is not WorkloadKind.ENDPOINT:
        return row.time_limit_s
    nodes = (state.nodes.row(task.node) for task in attempt.tasks)
    limits = [row.time_limit_s, *(node.capacity.time_limit_s for node in nodes if node)]
    return min((limit for limit in limits if limit), default=0)


def expected_start(state: State, row: WorkloadRow) -> Start:
    """Return how long the next start of an endpoint will take, judged by the last ones.

    The wait is the longest of the pools it was in, the load its own.
    """
    serving = row.serving
    loads = serving.loads if serving is not None else ()
    pools = serving.pools if serving is not None else ()
    waits = [wait for pool in pools for wait in state.waits.get(pool, ())]
    return Start(
        wait_ns=max(waits, default=WAIT_NS_ASSUMED),
        load_ns=max(loads, default=LOAD_NS_ASSUMED),
        is_measured=bool(waits and loads),
    )


def turns_of(state: State, row: WorkloadRow, attempt: AttemptRow) -> Turns | None:
    """Return when what happens to a replica whose time ends; None for one that has all it likes.

    However long starts and streams take, it serves alone for the first quarter of its time at least,
    and the last quarter at most is for finishing.
    """
    if not attempt.ends_at_ns:
        return None
    spec = row.spec_of(row.units[attempt.unit])
    span_ns = attempt.ends_at_ns - attempt.started_at_ns
    stop_ns = attempt.ends_at_ns - min(spec.stop_grace_s * NS_PER_S, span_ns // 10)
    drain_s = spec.endpoint.drain_s if spec.endpoint is not None else 0
    drain_ns = stop_ns - min(drain_s * NS_PER_S, span_ns // 4)
    lead_ns = expected_start(state, row).whole_ns * 3 // 2 + SPARE_NS
    succeed_ns = max(attempt.started_at_ns + span_ns // 4, drain_ns - lead_ns)
    return Turns(succeed_ns, drain_ns, stop_ns, attempt.ends_at_ns)


# -- when it ends ---------------------------------------------------------------------------------


def moves_end(state: State, attempt: AttemptRow, wall_ns: int) -> bool:
    """Say whether a replica ends at another time than is known, now that its engine ends it at `wall_ns`."""
    if not wall_ns or not _follows_engine(state, attempt):
        return False
    return abs(_end_ns(attempt.limit_ends_ns, wall_ns) - attempt.ends_at_ns) >= MOVED_NS


def heed_wall(state: State, attempt: AttemptRow, wall_ns: int) -> None:
    """Take over when the engine ends a replica; what it has under way is to be finished before."""
    if not wall_ns or not _follows_engine(state, attempt):
        return
    attempt.wall_ns = wall_ns
    row = state.workloads[WorkloadId(attempt.workload)]
    set_end(state, row, attempt)
    drain, stop_ns = state.drains.get(attempt.id), last_stop_ns(state, row, attempt)
    if drain is not None and stop_ns is not None:
        drain.until_ns = min(drain.until_ns, stop_ns)


def set_end(state: State, row: WorkloadRow, attempt: AttemptRow) -> None:
    """Have an attempt's time end by its own limit, or by its engine's if that comes first."""
    ends_ns = _end_ns(attempt.limit_ends_ns, attempt.wall_ns)
    if ends_ns != attempt.ends_at_ns:
        state.time_limits.remove(Due(attempt.ends_at_ns, attempt.id))
        attempt.ends_at_ns = ends_ns
        state.time_limits.add(Due(ends_ns, attempt.id))
        attend(state, row)


def _end_ns(limit_ends_ns: int, wall_ns: int) -> int:
    return min((ends_ns for ends_ns in (limit_ends_ns, wall_ns) if ends_ns), default=0)


def _follows_engine(state: State, attempt: AttemptRow) -> bool:
    """Say whether it is a replica that runs: how a job ends at an engine's limit is the engine's to say."""
    row = state.workloads[WorkloadId(attempt.workload)]
    is_endpoint = row.submission.spec.kind is WorkloadKind.ENDPOINT
    return is_endpoint and not attempt.is_check and attempt.state is AttemptState.RUNNING


# -- what is measured -----------------------------------------------------------------------------


def note_wait(state: State, row: WorkloadRow, attempt: AttemptRow) -> None:
    """Remember how long a replica waited for a machine, now that it runs."""
    if row.serving is None:
        return
    node = state.nodes.row(attempt.tasks[0].node)
    pool = node.pool if node is not None else ""
    unit = row.units[attempt.unit]
    wait_ns = max(0, attempt.started_at_ns - (unit.asked_at_ns or attempt.placed_at_ns))
    unit.asked_at_ns = 0
    state.waits[pool] = _with(state.waits.get(pool, ()), wait_ns)
    row.serving.pools = tuple(sorted({*row.serving.pools, pool}))


def note_load(row: WorkloadRow, attempt: AttemptRow, ready_at_ns: int) -> None:
    """Remember how long a replica loaded, now that it serves."""
    if row.serving is not None and attempt.started_at_ns:
        load_ns = max(0, ready_at_ns - attempt.started_at_ns)
        row.serving.loads = _with(row.serving.loads, load_ns)


def _with(known: tuple[int, ...], newest: int) -> tuple[int, ...]:
    return (*known, newest)[-MEASURED_KEPT:]


# -- what is decided ------------------------------------------------------------------------------


def successions(state: State, now_ns: int) -> Iterator[Succeed]:
    """Yield the replicas whose successor has to be started now.

    One that never served has none: it would not be ready in time either.
    """
    for workload in state.attended:
        row = state.workloads[workload]
        if row.stop_requested_by:
            continue
        for _, attempt, turns in _timed(state, row, is_former=False):
            if _has_served(attempt) and now_ns >= turns.succeed_ns:
                reason = _time_ends(state, row, attempt, turns, now_ns)
                yield Succeed(attempt=attempt.id, ends_at_ns=turns.ends_ns, reason=reason)


def is_time_to_leave(state: State, row: WorkloadRow, unit: UnitRow, now_ns: int) -> bool:
    """Say whether a replica has to take no new request, be its successor ready or not."""
    attempt = state.latest_attempt(unit)
    turns = turns_of(state, row, attempt) if attempt is not None and not unit.is_waiting else None
    return turns is not None and now_ns >= turns.drain_ns


def last_stop_ns(state: State, row: WorkloadRow, attempt: AttemptRow) -> int | None:
    """Return when a replica has to be stopped at the latest, None for whenever it likes."""
    turns = turns_of(state, row, attempt)
    return turns.stop_ns if turns is not None else None


def next_turns_ns(state: State, row: WorkloadRow) -> Iterator[int]:
    """Yield when something is to be decided of an endpoint's replicas because of their time."""
    for _, attempt, turns in _timed(state, row, is_former=False):
        if _has_served(attempt):
            yield turns.succeed_ns
    for _, _, turns in _timed(state, row, is_former=True):
        yield turns.drain_ns


# -- what is said of it ---------------------------------------------------------------------------


def walltime_reasons(state: State, row: WorkloadRow, now_ns: int) -> Iterator[Reason]:
    """Yield which replica is followed next, and which are being followed now."""
    ahead = list(_timed(state, row, is_former=False))
    if ahead:
        _, attempt, turns = min(ahead, key=lambda each: each[2].ends_ns)
        yield _time_ends(state, row, attempt, turns, now_ns)
    leaving = [turns for unit, _, turns in _timed(state, row, is_former=True) if unit.is_expiring]
    if leaving:
        parameters = {
            "count": str(len(leaving)),
            "left_s": _seconds(min(turns.ends_ns for turns in leaving) - now_ns),
            "ready": str(sum(attempt.tasks[0].is_ready for _, attempt, _ in ahead)),
            "wanted": str(row.units_wanted),
        }
        yield Reason(code=ReasonCode.SUCCESSION, parameters=parameters)


def _time_ends(
    state: State, row: WorkloadRow, attempt: AttemptRow, turns: Turns, now_ns: int
) -> Reason:
    start = expected_start(state, row)
    parameters = {
        "replica": attempt.id,
        "left_s": _seconds(turns.ends_ns - now_ns),
        "starts_s": _seconds(turns.succeed_ns - now_ns),
        "start_s": _seconds(start.whole_ns),
        "wait_s": _seconds(start.wait_ns),
        "basis": "measured" if start.is_measured else "assumed, as none was measured yet",
    }
    return Reason(code=ReasonCode.TIME_ENDS, parameters=parameters)


def _seconds(span_ns: int) -> str:
    return str(-(-max(span_ns, 0) // NS_PER_S))


def _has_served(attempt: AttemptRow) -> bool:
    return attempt.tasks[0].ready_since_ns > 0


def _timed(
    state: State, row: WorkloadRow, *, is_former: bool
) -> Iterator[tuple[UnitRow, AttemptRow, Turns]]:
    """Yield the replicas that run, are to stay or former ones, and whose time ends."""
    for unit in members(row, is_former=is_former):
        attempt = state.attempts.get(unit.attempt) if unit.attempt is not None else None
        if attempt is None or unit.is_waiting or not attempt.is_live or attempt.stop_cause:
            continue
        turns = turns_of(state, row, attempt)
        if turns is not None:
            yield unit, attempt, turns

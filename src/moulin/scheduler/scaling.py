"""How many replicas an endpoint shall have, and which of them go: decided from folded load alone.

Up at once, down only when nothing asked for more during a window, to zero after an idle time. A
replica leaves in three steps: no new request (drain), every gateway confirmed it and has nothing
under way there or the grace is over (stop), proof of its end. It never chooses a node: a replica
that is wanted waits for its placement like any other work.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from moulin.domain.ids import WorkloadId
from moulin.domain.plan import Drain, Scale, Stop, StopCause
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.snapshot import EndpointLoad
from moulin.domain.workload import Scaling
from moulin.scheduler.changes import members
from moulin.scheduler.policy import SchedulerPolicy
from moulin.scheduler.rows import AttemptRow, DrainRow, UnitRow, WorkloadRow
from moulin.scheduler.state import GatewayEpoch, State
from moulin.scheduler.walltime import (
    is_time_to_leave,
    last_stop_ns,
    next_turns_ns,
    walltime_reasons,
)

NS_PER_S: Final = 10**9
# A queue that formed while replicas were too few is gone this long after the last one was ready.
SETTLE_NS: Final = 5 * NS_PER_S
# A gateway's smaller load is news this long after its last one; what asks for more is so at once.
REPORT_NS: Final = 2 * NS_PER_S


# -- load -----------------------------------------------------------------------------------------


def requests_of(state: State, workload: WorkloadId) -> int:
    """Return how many requests all gateways last reported, under way or waiting."""
    loads = (load.endpoints.get(workload) for load in state.loads.values())
    return sum(load.in_flight + load.queued for load in loads if load is not None)


def wish_of(row: WorkloadRow, requests: int) -> int:
    """Return how many replicas that many requests ask for, at most what is allowed."""
    endpoint = row.submission.spec.endpoint
    scaling = row.serving.scaling if row.serving is not None else None
    if scaling is None or endpoint is None:
        return 0
    target = scaling.target_requests or endpoint.parallel_requests
    return min(-(-requests // target), scaling.replicas_max)


def is_load_news(
    state: State, epoch: GatewayEpoch, loads: Iterable[EndpointLoad], now_ns: int
) -> bool:
    """Whether a gateway's load changes what is wanted, so that it must be an event.

    What asks for more is news at once; what asks for less, or still waits too long, only some
    seconds after the last news of this gateway.
    """
    known = state.loads.get(epoch)
    is_early = known is not None and now_ns < known.at_ns + REPORT_NS
    before = known.endpoints if known is not None else {}
    after = {WorkloadId(load.endpoint): load for load in loads}
    return any(
        _is_news(
            state,
            row,
            (before.get(name, _NOTHING), after.get(name, _NOTHING)),
            is_early=is_early,
        )
        for name in sorted({*before, *after})
        if (row := state.workloads.get(name)) is not None
    )


_NOTHING: Final = EndpointLoad(endpoint="")
_NEVER_NS: Final = 2**63 - 1


def _is_news(
    state: State, row: WorkloadRow, loads: tuple[EndpointLoad, EndpointLoad], *, is_early: bool
) -> bool:
    serving = row.serving
    if serving is None or serving.scaling is None or row.is_final:
        return False
    before, after = loads
    change = after.in_flight + after.queued - before.in_flight - before.queued
    wish = wish_of(row, requests_of(state, row.submission.id) + change)
    was_slow, is_slow = (_waits_long(load, serving.scaling) for load in loads)
    may_grow = row.units_wanted < serving.scaling.replicas_max
    if wish > serving.wish or (is_slow and not was_slow and may_grow):
        return True
    return not is_early and (wish != serving.wish or was_slow or (is_slow and may_grow))


def _waits_long(load: EndpointLoad, scaling: Scaling) -> bool:
    return load.queued > 0 and load.oldest_wait_ms >= scaling.target_queue_s * 1000


# -- how many -------------------------------------------------------------------------------------


def scales(state: State, now_ns: int, policy: SchedulerPolicy) -> Iterator[Scale]:
    """Yield the endpoints whose number of replicas changes.

    One whose project cannot pay another replica keeps the number it has (`explain` says so).
    """
    for row in _attended(state):
        if row.serving is None or row.serving.scaling is None:
            continue
        target = target_of(state, row, now_ns)
        is_frozen = target > row.units_wanted and row.submission.id in policy.endpoints_frozen
        if target != row.units_wanted and not is_frozen:
            yield Scale(
                workload=row.submission.id,
                replicas=target,
                reason=load_reason(row, target),
            )


def load_reason(row: WorkloadRow, target: int) -> Reason:
    """Say how many replicas the load asks for."""
    requests = row.serving.requests if row.serving is not None else 0
    parameters = {"requests": str(requests), "wanted": str(target)}
    return Reason(code=ReasonCode.LOAD_ASKS, parameters=parameters)


def target_of(state: State, row: WorkloadRow, now_ns: int) -> int:
    """Return how many replicas an endpoint that follows its load shall have now."""
    serving = row.serving
    assert serving is not None
    scaling = serving.scaling
    assert scaling is not None
    window_ns = scaling.stabilise_s * NS_PER_S
    kept = [peak.replicas for peak in serving.peaks if now_ns < peak.until_ns + window_ns]
    target = max(serving.wish, *kept, 0)
    if _is_slow(state, row, scaling):
        target = max(target, row.units_wanted + 1)
    if not serving.wish and not scaling.replicas_min:
        is_awake = now_ns < _awake_until_ns(state, row, scaling)
        target = max(target, 1) if is_awake else 0
    return min(max(target, scaling.replicas_min), scaling.replicas_max)


def growing(state: State, now_ns: int) -> Iterator[WorkloadRow]:
    """Yield the endpoints whose load asks for more replicas than they have."""
    for row in _attended(state):
        follows = row.serving is not None and row.serving.scaling is not None
        if follows and target_of(state, row, now_ns) > row.units_wanted:
            yield row


def _is_slow(state: State, row: WorkloadRow, scaling: Scaling) -> bool:
    """Whether requests wait too long though all replicas serve, and have for a while."""
    present = members(row, is_former=False)
    ready = [attempt for unit in present if (attempt := _ready(state, unit)) is not None]
    if len(ready) < row.units_wanted:
        return False
    assert row.serving is not None
    since_ns = max([row.serving.since_ns, *(each.tasks[0].ready_since_ns for each in ready)])
    return any(
        load.at_ns >= since_ns + SETTLE_NS
        and _waits_long(load.endpoints.get(row.submission.id, _NOTHING), scaling)
        for load in state.loads.values()
    )


def _awake_until_ns(state: State, row: WorkloadRow, scaling: Scaling) -> int:
    """Return until when the last replica stays: it starts, or somebody asked not long ago."""
    serving = row.serving
    assert serving is not None
    since_ns = [serving.since_ns, *(peak.until_ns for peak in serving.peaks)]
    for unit in members(row, is_former=False):
        attempt = state.latest_attempt(unit)
        if attempt is None or unit.is_waiting or not attempt.is_live:
            continue
        if not attempt.tasks[0].ready_since_ns:
            return _NEVER_NS
        since_ns.append(attempt.tasks[0].ready_since_ns)
    return max(since_ns) + scaling.idle_s * NS_PER_S


# -- which go -------------------------------------------------------------------------------------


def drains(state: State, now_ns: int) -> Iterator[Drain]:
    """Yield the replicas that get no new request: too many, of an earlier revision, or out of time.

    Former ones stay for as many as are not ready yet of those that follow them; one whose time ends
    leaves early enough to finish what it has under way, whatever follows it.
    """
    for row in _attended(state):
        present = members(row, is_former=False)
        ready = sum(_ready(state, unit) is not None for unit in present)
        yield from _leave(
            state, row, _least_used(state, present, row.units_wanted), StopCause.SCALED_IN, now_ns
        )
        former = members(row, is_former=True)
        timed = [unit for unit in former if is_time_to_leave(state, row, unit, now_ns)]
        others = [unit for unit in former if unit not in timed]
        kept = max(0, row.units_wanted - ready)
        for unit in (*timed, *_least_used(state, others, kept)):
            cause = StopCause.ROLLED_OVER if unit.is_expiring else StopCause.ROLLED_OUT
            yield from _leave(state, row, [unit], cause, now_ns)


def _least_used(state: State, units: list[UnitRow], kept: int) -> list[UnitRow]:
    """Return all but the `kept` most useful units, the least useful first, then who ends first."""
    in_order = sorted(
        units, key=lambda unit: (_use(state, unit), _ends_ns(state, unit), -unit.unit)
    )
    return in_order[: max(len(units) - kept, 0)]


def _ends_ns(state: State, unit: UnitRow) -> int:
    attempt = state.latest_attempt(unit)
    return attempt.ends_at_ns or _NEVER_NS if attempt is not None else _NEVER_NS


def _leave(
    state: State, row: WorkloadRow, units: list[UnitRow], cause: StopCause, now_ns: int
) -> Iterator[Drain]:
    for unit in units:
        attempt = state.latest_attempt(unit)
        endpoint = row.spec_of(unit).endpoint
        if attempt is None or endpoint is None or attempt.stop_cause is not None:
            continue
        if unit.is_waiting or attempt.is_live:
            last_ns = last_stop_ns(state, row, attempt)
            until_ns = now_ns + endpoint.drain_s * NS_PER_S
            until_ns = min(until_ns, max(last_ns, now_ns)) if last_ns is not None else until_ns
            yield Drain(attempt=attempt.id, cause=cause, until_ns=until_ns)


def _use(state: State, unit: UnitRow) -> int:
    """Return how much of use a replica is: 0 waits, 1 starts or is lost, 2 is ready."""
    if unit.is_waiting:
        return 0
    return 1 if _ready(state, unit) is None else 2


def _ready(state: State, unit: UnitRow) -> AttemptRow | None:
    attempt = state.latest_attempt(unit)
    if attempt is None or unit.is_waiting or not attempt.is_live or attempt.stop_cause is not None:
        return None
    return attempt if attempt.tasks[0].is_ready else None


def drained(state: State, now_ns: int, policy: SchedulerPolicy) -> Iterator[Stop]:
    """Yield the stop of every replica that nobody uses any more, or for which time is up.

    Time is up at its grace, but no gateway that may still send is passed over: one that was told
    nothing serves from what it has until that is stale.
    """
    for name, drain in state.drains.items():
        attempt = state.attempts[name]
        row = state.workloads[WorkloadId(attempt.workload)]
        if attempt.stop_cause is None and _is_over(state, attempt, drain, now_ns, policy):
            grace_s = row.submission.spec.stop_grace_s
            yield Stop(attempt=attempt.id, cause=drain.cause, grace_s=grace_s)


def _is_over(
    state: State, attempt: AttemptRow, drain: DrainRow, now_ns: int, policy: SchedulerPolicy
) -> bool:
    if not attempt.tasks[0].ready_since_ns:
        return True  # no gateway was ever told of it
    if all(drain.left.get(epoch, False) for epoch in state.gateways):
        return True
    stale_ns = drain.decided_at_ns + policy.staleness_s * NS_PER_S
    is_left = all(epoch in drain.left for epoch in state.gateways)
    return now_ns >= drain.until_ns and (is_left or now_ns >= stale_ns)


def _attended(state: State) -> Iterator[WorkloadRow]:
    for workload in state.attended:
        row = state.workloads[workload]
        if not row.stop_requested_by:
            yield row


# -- what is next, and why ------------------------------------------------------------------------


def next_due_ns(state: State) -> int | None:
    """Return the next time at which deciding again can matter though no event came."""
    due_ns = [drain.until_ns for drain in state.drains.values()]
    timed = (state.backing_off.next_ns, state.time_limits.next_ns, state.deadlines.next_ns)
    due_ns += [at_ns for at_ns in timed if at_ns is not None]
    for row in _attended(state):
        due_ns += _ends_of_wishes_ns(state, row)
        due_ns += next_turns_ns(state, row)
    return min((at_ns for at_ns in due_ns if at_ns < _NEVER_NS), default=None)


def _ends_of_wishes_ns(state: State, row: WorkloadRow) -> Iterator[int]:
    """Yield when an endpoint has more replicas than it wants, unless load comes."""
    serving = row.serving
    if serving is None or serving.scaling is None:
        return
    for peak in serving.peaks:
        if peak.replicas == row.units_wanted:
            yield peak.until_ns + serving.scaling.stabilise_s * NS_PER_S
    if row.units_wanted and not (serving.wish or serving.scaling.replicas_min):
        yield _awake_until_ns(state, row, serving.scaling)


def serving_reasons(state: State, row: WorkloadRow, now_ns: int) -> Iterator[Reason]:
    """Yield what an endpoint is at: asleep, rolling out, or with replicas that leave."""
    serving = row.serving
    if serving is None:
        return
    present = members(row, is_former=False)
    if serving.scaling is not None and row.units_wanted == 0 and not serving.wish:
        yield Reason(code=ReasonCode.SCALED_TO_ZERO)
    yield from walltime_reasons(state, row, now_ns)
    yield from _not_heard(state, row)
    former = [unit for unit in members(row, is_former=True) if unit.revision != serving.revision]
    if former:
        ready = sum(_ready(state, unit) is not None for unit in present)
        parameters = {
            "revision": str(serving.revision),
            "ready": str(ready),
            "wanted": str(row.units_wanted),
            "former": str(len(former)),
        }
        yield Reason(code=ReasonCode.ROLLING_OUT, parameters=parameters)
    leaving = [state.drains[u.attempt] for u in row.units if u.attempt in state.drains]
    if leaving:
        left_ns = max(max(drain.until_ns for drain in leaving) - now_ns, 0)
        parameters = {"count": str(len(leaving)), "left_s": str(-(-left_ns // NS_PER_S))}
        yield Reason(code=ReasonCode.DRAINING, parameters=parameters)


def _not_heard(state: State, row: WorkloadRow) -> Iterator[Reason]:
    """Yield how many replicas were ready once, run, and are not now."""
    attempts = [state.latest_attempt(unit) for unit in row.units if not unit.is_waiting]
    silent = [
        attempt
        for attempt in attempts
        if attempt is not None
        and attempt.is_live
        and attempt.stop_cause is None
        and attempt.tasks[0].ready_since_ns
        and not attempt.tasks[0].is_ready
    ]
    if silent:
        parameters = {
            "count": str(len(silent)),
            "replica": silent[0].id,
            "words": silent[0].tasks[0].evidence or "its engine does not see it answer",
        }
        yield Reason(code=ReasonCode.NOT_HEARD, parameters=parameters)

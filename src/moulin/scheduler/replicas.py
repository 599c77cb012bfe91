"""How events change an endpoint's replicas: their number, their revision, their load, their leaving.

The part of the fold that only endpoints have; what is to follow is decided in `scaling`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from moulin.domain.events import (
    AttemptDrainDecided,
    DrainConfirmed,
    EndpointRolledOut,
    Event,
    LoadReported,
    ReplicasDecided,
    WorkloadScaled,
)
from moulin.domain.gateway_events import GatewayEpochClosed, GatewayEpochOpened
from moulin.domain.ids import WorkloadId
from moulin.domain.replica_events import SuccessionDecided
from moulin.domain.snapshot import EndpointLoad
from moulin.domain.workload import Submission
from moulin.scheduler.changes import let_wait, members, retire_waiting, unfinished
from moulin.scheduler.demand import demand_of
from moulin.scheduler.ending import settle_later
from moulin.scheduler.rows import (
    DrainRow,
    LoadRow,
    Peak,
    Revision,
    Serving,
    UnitRow,
    WorkloadRow,
)
from moulin.scheduler.scaling import requests_of, wish_of
from moulin.scheduler.state import GatewayEpoch, State

NS_PER_S: Final = 10**9


def new_serving(submission: Submission, at_ns: int) -> Serving | None:
    """Return what an endpoint is besides a workload, None for anything else."""
    endpoint = submission.spec.endpoint
    return Serving(scaling=endpoint.scaling, since_ns=at_ns) if endpoint is not None else None


def resize(state: State, row: WorkloadRow) -> None:
    """Let as many replicas of the present revision wait as there are too few, or too many.

    A draining one that nobody stopped yet comes back first. What is too many and holds something is
    left to a decision.
    """
    assert row.serving is not None
    present = members(row, is_former=False)
    for unit in reversed(present):
        if len(present) > row.units_wanted and unit.is_waiting:
            retire_waiting(state, row, unit)
            present.remove(unit)
    missing = row.units_wanted - len(present)
    for unit in row.units:
        if missing > 0 and _comes_back(state, row.serving, unit):
            missing -= 1
    for unit in row.units:
        if missing > 0 and unit.is_retired:
            _use_again(state, row, unit)
            missing -= 1
    for _ in range(missing):
        added = UnitRow(unit=len(row.units), revision=row.serving.revision)
        row.units.append(added)
        let_wait(state, row, added)
    settle_later(state, row)


def _comes_back(state: State, serving: Serving, unit: UnitRow) -> bool:
    is_draining = unit.is_leaving and unit.attempt in state.drains
    is_present = unit.revision == serving.revision and not unit.is_expiring
    if not is_draining or not is_present or unit.attempt is None:
        return False
    del state.drains[unit.attempt]
    unit.is_leaving = False
    return True


def _use_again(state: State, row: WorkloadRow, unit: UnitRow) -> None:
    assert row.serving is not None
    if unit.revision != row.serving.revision:
        unit.revision = row.serving.revision
        unit.failures = unit.losses = 0
    unit.is_retired = False
    let_wait(state, row, unit)


# -- what people ask for --------------------------------------------------------------------------


def _scaled(state: State, payload: WorkloadScaled, event: Event) -> None:
    row = unfinished(state, payload.workload, event)
    if row is None or row.serving is None:
        return
    row.serving.scaling = payload.scaling
    _set_number(row, payload.replicas, event.at_ns)
    _weigh(state, row, event.at_ns)
    resize(state, row)


def _rolled_out(state: State, payload: EndpointRolledOut, event: Event) -> None:
    row = unfinished(state, payload.workload, event)
    if row is None or row.serving is None or payload.revision == row.serving.revision:
        return
    for unit in members(row, is_former=False):
        if unit.is_waiting and unit.attempt is None:
            retire_waiting(state, row, unit)
    serving = row.serving
    serving.former[serving.revision] = Revision(spec=row.submission.spec, demand=row.demand)
    serving.before, serving.revision = serving.revision, payload.revision
    serving.revision_last = max(serving.revision_last, payload.revision)
    serving.since_ns = event.at_ns
    serving.former.pop(payload.revision, None)
    row.submission = _with_spec(row.submission, payload)
    row.demand = demand_of(row.submission)
    in_use = {unit.revision for unit in row.units if not unit.is_retired} | {serving.before}
    serving.former = {r: former for r, former in serving.former.items() if r in in_use}
    resize(state, row)


def _with_spec(submission: Submission, payload: EndpointRolledOut) -> Submission:
    return Submission(
        id=submission.id,
        organisation=submission.organisation,
        project=submission.project,
        spec=payload.spec,
        submitted_by=submission.submitted_by,
        submitted_at_ns=submission.submitted_at_ns,
    )


# -- what load asks for ---------------------------------------------------------------------------


def _replicas_decided(state: State, payload: ReplicasDecided, event: Event) -> None:
    row = unfinished(state, payload.workload, event)
    if row is None or row.serving is None:
        return
    if payload.replicas > row.units_wanted:
        _set_number(row, payload.replicas, event.at_ns)
    row.units_wanted = payload.replicas
    resize(state, row)


def _set_number(row: WorkloadRow, replicas: int, at_ns: int) -> None:
    """Take a number as wanted until now, so that it is kept for as long as any other wish."""
    assert row.serving is not None
    row.units_wanted = replicas
    row.serving.since_ns = at_ns
    _remember(row.serving, Peak(replicas, at_ns))


def _remember(serving: Serving, peak: Peak) -> None:
    """Keep a former wish; lower ones that ended before say nothing more."""
    scaling = serving.scaling
    if scaling is None:
        serving.peaks.clear()
        return
    since_ns = peak.until_ns - max(scaling.stabilise_s, scaling.idle_s) * NS_PER_S
    serving.peaks = [
        former
        for former in serving.peaks
        if former.replicas > peak.replicas and former.until_ns > since_ns
    ]
    serving.peaks.append(peak)


def _load_reported(state: State, payload: LoadReported, event: Event) -> None:
    key = (payload.gateway, payload.gateway_epoch)
    loads = {WorkloadId(load.endpoint): load for load in payload.endpoints}
    _replace_load(state, key, LoadRow(at_ns=event.at_ns, endpoints=loads), event.at_ns)


def _replace_load(state: State, key: GatewayEpoch, load: LoadRow | None, at_ns: int) -> None:
    before: Mapping[WorkloadId, EndpointLoad] = {}
    if key in state.loads:
        before = state.loads.pop(key).endpoints
    if load is not None:
        state.loads[key] = load
    after = load.endpoints if load is not None else {}
    for workload in sorted({*before, *after}):
        row = state.workloads.get(workload)
        if row is not None and row.serving is not None:
            _weigh(state, row, at_ns)


def _weigh(state: State, row: WorkloadRow, at_ns: int) -> None:
    """Set what the load of an endpoint asks for now, and keep what it asked for until now."""
    serving = row.serving
    assert serving is not None
    serving.requests = requests_of(state, row.submission.id)
    wish = wish_of(row, serving.requests)
    if wish < serving.wish:
        _remember(serving, Peak(serving.wish, at_ns))
    serving.wish = wish


def _gateway_opened(state: State, payload: GatewayEpochOpened, event: Event) -> None:
    """A newer process of a gateway: what its predecessors had under way is over."""
    state.gateways.setdefault((payload.gateway, payload.gateway_epoch))
    for key in list(state.loads):
        if key[0] == payload.gateway and key[1] < payload.gateway_epoch:
            _replace_load(state, key, None, event.at_ns)


def _gateway_closed(state: State, payload: GatewayEpochClosed, event: Event) -> None:
    key = (payload.gateway, payload.gateway_epoch)
    state.gateways.pop(key, None)
    _replace_load(state, key, None, event.at_ns)
    for drain in state.drains.values():
        drain.left.pop(key, None)


# -- leaving --------------------------------------------------------------------------------------


def _drain_decided(state: State, payload: AttemptDrainDecided, event: Event) -> None:
    attempt = state.attempts.get(payload.attempt)
    row = unfinished(state, WorkloadId(attempt.workload), event) if attempt else None
    if attempt is None or row is None:
        return
    unit = row.units[attempt.unit]
    if unit.is_waiting and unit.attempt == attempt.id:
        retire_waiting(state, row, unit)
    elif attempt.is_live and attempt.stop_cause is None:
        unit.is_leaving = True
        state.drains[attempt.id] = DrainRow(
            cause=payload.cause, decided_at_ns=event.at_ns, until_ns=payload.until_ns
        )
    settle_later(state, row)


def _succession_decided(state: State, payload: SuccessionDecided, event: Event) -> None:
    """Let another replica wait in the place of one whose time ends; that one is a former one now."""
    attempt = state.attempts.get(payload.attempt)
    row = unfinished(state, WorkloadId(attempt.workload), event) if attempt else None
    if attempt is None or row is None or row.serving is None:
        return
    unit = row.units[attempt.unit]
    is_current = unit.attempt == attempt.id and attempt.is_live and attempt.stop_cause is None
    if not is_current or unit.is_waiting or unit.is_leaving or unit.is_expiring:
        return
    unit.is_expiring = True
    resize(state, row)
    for asked in members(row, is_former=False):
        if asked.is_waiting and not asked.asked_at_ns:
            asked.asked_at_ns = event.at_ns


def _drain_confirmed(state: State, payload: DrainConfirmed, _event: Event) -> None:
    drain = state.drains.get(payload.attempt)
    key = (payload.gateway, payload.gateway_epoch)
    if drain is not None and key in state.gateways:
        drain.left[key] = drain.left.get(key, False) or payload.is_idle


ENDPOINT_HANDLERS: Final[Mapping[type, Callable[[State, Any, Event], None]]] = {
    WorkloadScaled: _scaled,
    EndpointRolledOut: _rolled_out,
    ReplicasDecided: _replicas_decided,
    LoadReported: _load_reported,
    GatewayEpochOpened: _gateway_opened,
    GatewayEpochClosed: _gateway_closed,
    AttemptDrainDecided: _drain_decided,
    DrainConfirmed: _drain_confirmed,
    SuccessionDecided: _succession_decided,
}

"""Decide when a model server's interval is settled and what its requests and its owner then used.

An interval closes when every request begun in it is settled, or at a deadline; a request is final
when the intervals it spans are closed. Never loses a millijoule: what requests do not carry is a
usage of the endpoint's owner. State is a value; the order in which records arrive changes nothing
but the moment of closing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from moulin.domain.factory import EnergyClass
from moulin.domain.ids import AttemptId, NodeId
from moulin.domain.units import share_out
from moulin.domain.usage import Meter, NodeAllocation, RequestUsage, TaskReading, Usage
from moulin.metering.usage import (
    AttemptFacts,
    Carbon,
    facts_of,
    held_quantities,
    interval_usage_id,
    place_of,
    request_usage_id,
    worst,
)

NOT_MEASURED: Final = "not measured: no interval of the replica was read in time"
ANY_REPLICA: Final = AttemptId("")

# What the energy stage gives: (mJ, requests, standing_mj=, window_ns=) to shares and the unsold.
Share = Callable[..., tuple[Mapping[str, int], int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteringRules:
    """How energy is shared over requests (`share`, in words `share_method`) and turned to carbon.

    `deadline_ns` after its end an interval closes without the requests that are still open.
    """

    share: Share
    share_method: str
    carbon: Carbon
    deadline_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaInterval:
    """What one replica used on one node over [start_ns, end_ns); `energy_mj` is without overhead.

    `standing_mj` is the part that runs without load. `quantities` is what the owner held.
    """

    replica: AttemptId
    node: NodeId
    start_ns: int
    end_ns: int
    energy_mj: int
    overhead_mj: int
    standing_mj: int = 0
    method: str = ""
    quality: EnergyClass = EnergyClass.CONSTANT
    uncertainty_ppm: int = 0
    quantities: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestBegun:
    """A request on its way; the empty `replica` means that any replica may be serving it."""

    request: str
    begun_ns: int
    replica: AttemptId = ANY_REPLICA


@dataclass(frozen=True, slots=True, kw_only=True)
class _Carried:
    """What a request carries from the intervals closed so far."""

    energy_mj: int = 0
    overhead_mj: int = 0
    method: str = ""
    quality: EnergyClass = EnergyClass.REVENUE_METER
    uncertainty_ppm: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenMetering:
    """Everything not final yet: open intervals, requests begun, settled, and what those carry.

    `closed_until_ns` maps (replica, node) to the end of its last closed interval; `late` names
    settled requests of which an earlier part fell into an interval that had closed without them.
    """

    intervals: tuple[ReplicaInterval, ...] = ()
    begun: Mapping[str, RequestBegun] = field(default_factory=dict)
    settled: Mapping[str, RequestUsage] = field(default_factory=dict)
    carried: Mapping[str, _Carried] = field(default_factory=dict)
    closed_until_ns: Mapping[tuple[AttemptId, NodeId], int] = field(default_factory=dict)
    late: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """What one closing gave: the state that is left, final usages, and requests it cannot place.

    `unplaced` requests name a replica without facts; they are dropped from the state.
    """

    state: OpenMetering
    usages: tuple[Usage, ...]
    unplaced: tuple[RequestUsage, ...]


def replica_intervals(
    allocation: NodeAllocation, tasks: Sequence[TaskReading]
) -> tuple[ReplicaInterval, ...]:
    """Return the part of an allocation that belongs to the given replica tasks, by replica."""
    reading = allocation.reading
    by_replica: dict[AttemptId, list[TaskReading]] = {}
    for task in tasks:
        by_replica.setdefault(task.attempt, []).append(task)
    found = []
    for replica, own in sorted(by_replica.items()):
        steps = sorted({task.step for task in own})
        found.append(
            ReplicaInterval(
                replica=replica,
                node=reading.node,
                start_ns=reading.start_ns,
                end_ns=reading.end_ns,
                energy_mj=sum(allocation.task_mj[step] for step in steps),
                overhead_mj=sum(allocation.task_overhead_mj[step] for step in steps),
                standing_mj=sum(allocation.task_standing_mj.get(step, 0) for step in steps),
                method=reading.method,
                quality=reading.quality,
                uncertainty_ppm=reading.uncertainty_ppm,
                quantities=held_quantities(own),
            )
        )
    return tuple(found)


def absorb(
    state: OpenMetering,
    *,
    intervals: Iterable[ReplicaInterval] = (),
    begun: Iterable[RequestBegun] = (),
    settled: Iterable[RequestUsage] = (),
) -> OpenMetering:
    """Return the state with new records; records it already has, and closed intervals, are ignored.

    The intervals of one replica and node come in order of time; requests come in any order.
    A request that became final is forgotten; if it is settled again it yields a usage of the same
    id, which the store refuses.

    Cost:   O(state + records), one copy however many records come.
    """
    open_intervals = {_key(interval): interval for interval in state.intervals}
    for interval in intervals:
        if interval.start_ns >= state.closed_until_ns.get((interval.replica, interval.node), 0):
            open_intervals.setdefault(_key(interval), interval)
    by_request = dict(state.settled)
    late = set(state.late)
    for request in settled:
        if request.request not in by_request:
            by_request[request.request] = request
            closed_ns = [e for k, e in state.closed_until_ns.items() if k[0] == request.replica]
            if any(request.start_ns < end_ns for end_ns in closed_ns):
                late.add(request.request)
    waiting = dict(state.begun)
    waiting.update((b.request, b) for b in begun)
    return replace(
        state,
        intervals=tuple(
            sorted(open_intervals.values(), key=lambda i: (i.end_ns, i.replica, i.node))
        ),
        begun={name: b for name, b in waiting.items() if name not in by_request},
        settled=by_request,
        late=frozenset(late),
    )


def close_intervals(
    state: OpenMetering,
    now_ns: int,
    *,
    journal_until_ns: int,
    facts: Mapping[AttemptId, AttemptFacts],
    rules: MeteringRules,
) -> Closing:
    """Close what can be closed now and return the usages that became final.

    An interval closes when the gateways' journals are known up to its end (`journal_until_ns`)
    and every request begun before its end is settled, or `rules.deadline_ns` after its end. A
    request is final when its replica's intervals are closed up to its end or all there will ever
    be, or two deadlines after its end (one to read the last interval, one for that to close); it
    is marked estimated when energy is missing because an interval closed without it or was never
    read.

    Raises `InvariantViolated` when `facts` misses the replica of an interval.

    Order:  usages of owners by interval, then of requests by id; independent of arrival order.
    Cost:   O(intervals x settled requests of their replica).
    """
    closable = tuple(
        i for i in state.intervals if _may_close(i, state, now_ns, journal_until_ns, rules)
    )
    by_replica: dict[AttemptId, list[RequestUsage]] = {}
    for request in state.settled.values():
        by_replica.setdefault(request.replica, []).append(request)
    carried = dict(state.carried)
    closed_until_ns = dict(state.closed_until_ns)
    usages: list[Usage] = []
    for interval in closable:
        requests = [r for r in by_replica.get(interval.replica, ()) if _overlaps(r, interval)]
        unsold_mj, unsold_overhead_mj = _carry(interval, requests, carried, rules)
        key = (interval.replica, interval.node)
        closed_until_ns[key] = max(interval.end_ns, closed_until_ns.get(key, 0))
        own = facts_of(interval.replica, facts)
        usages.append(_owner_usage(interval, unsold_mj, unsold_overhead_mj, own, rules))
    closed = {_key(interval) for interval in closable}
    left = replace(
        state,
        intervals=tuple(i for i in state.intervals if _key(i) not in closed),
        carried=carried,
        closed_until_ns=closed_until_ns,
    )
    return _finish_requests(left, usages, now_ns, facts, rules)


def _key(interval: ReplicaInterval) -> tuple[AttemptId, NodeId, int]:
    return interval.replica, interval.node, interval.start_ns


def _may_close(
    interval: ReplicaInterval,
    state: OpenMetering,
    now_ns: int,
    journal_until_ns: int,
    rules: MeteringRules,
) -> bool:
    if now_ns >= interval.end_ns + rules.deadline_ns:
        return True
    return interval.end_ns <= journal_until_ns and not any(
        begun.begun_ns < interval.end_ns and begun.replica in {ANY_REPLICA, interval.replica}
        for begun in state.begun.values()
    )


def _overlaps(request: RequestUsage, interval: ReplicaInterval) -> bool:
    end_ns = max(request.end_ns, request.start_ns + 1)
    return request.start_ns < interval.end_ns and end_ns > interval.start_ns


def _carry(
    interval: ReplicaInterval,
    requests: Sequence[RequestUsage],
    carried: dict[str, _Carried],
    rules: MeteringRules,
) -> tuple[int, int]:
    """Add the interval's shares to `carried`; return the energy and overhead nobody carries."""
    shares, unsold_mj = rules.share(
        interval.energy_mj,
        requests,
        standing_mj=interval.standing_mj,
        window_ns=(interval.start_ns, interval.end_ns),
    )
    names = sorted(shares)
    weights = [*(shares[name] for name in names), unsold_mj]
    if not any(weights):
        weights[-1] = 1
    *overheads, unsold_overhead_mj = share_out(interval.overhead_mj, weights)
    for name, overhead_mj in zip(names, overheads, strict=True):
        before = carried.get(name, _Carried())
        carried[name] = _Carried(
            energy_mj=before.energy_mj + shares[name],
            overhead_mj=before.overhead_mj + overhead_mj,
            method=interval.method,
            quality=worst(before.quality, interval.quality),
            uncertainty_ppm=max(before.uncertainty_ppm, interval.uncertainty_ppm),
        )
    return unsold_mj, unsold_overhead_mj


def _finish_requests(
    state: OpenMetering,
    usages: list[Usage],
    now_ns: int,
    facts: Mapping[AttemptId, AttemptFacts],
    rules: MeteringRules,
) -> Closing:
    closed_ns: dict[AttemptId, int] = {}
    for (replica, _), end_ns in sorted(state.closed_until_ns.items()):
        closed_ns[replica] = min(end_ns, closed_ns.get(replica, end_ns))
    open_replicas = {interval.replica for interval in state.intervals}
    final: set[str] = set()
    unplaced: list[RequestUsage] = []
    for name, request in sorted(state.settled.items()):
        # A gateway may learn late that a replica is gone: such a request ends after every interval.
        own = facts.get(request.replica)
        has_ended = own is not None and own.has_ended and request.replica not in open_replicas
        until_ns = closed_ns.get(request.replica, 0)
        is_covered = until_ns >= request.end_ns or (has_ended and until_ns > 0)
        is_due = has_ended or now_ns >= request.end_ns + 2 * rules.deadline_ns
        if not (is_covered or is_due):
            continue
        final.add(name)
        if request.replica not in facts:
            unplaced.append(request)
            continue
        is_short = name in state.late or not is_covered
        usages.append(_request_usage(request, state.carried.get(name), is_short, facts, rules))
    left = replace(
        state,
        settled={name: r for name, r in state.settled.items() if name not in final},
        carried={name: c for name, c in state.carried.items() if name not in final},
        late=state.late - final,
    )
    return Closing(state=left, usages=tuple(usages), unplaced=tuple(unplaced))


def _owner_usage(
    interval: ReplicaInterval,
    unsold_mj: int,
    overhead_mj: int,
    facts: AttemptFacts,
    rules: MeteringRules,
) -> Usage:
    energy_mj = unsold_mj + overhead_mj
    location_ng, market_ng = rules.carbon(energy_mj, facts.site)
    return Usage(
        id=interval_usage_id(interval.replica, interval.node, interval.start_ns),
        workload=facts.workload,
        attempt=interval.replica,
        organisation=facts.organisation,
        project=facts.project,
        start_ns=interval.start_ns,
        end_ns=interval.end_ns,
        quantities=interval.quantities,
        subject=facts.subject,
        model_digest=facts.model_digest,
        energy_mj=energy_mj,
        overhead_mj=overhead_mj,
        energy_method=f"{interval.method}; what no request carried, {rules.share_method}",
        energy_quality=interval.quality,
        energy_uncertainty_ppm=interval.uncertainty_ppm,
        carbon_location_ng=location_ng,
        carbon_market_ng=market_ng,
        policy_decision=facts.policy_decision,
        **place_of(facts),
    )


def _request_usage(
    request: RequestUsage,
    carried: _Carried | None,
    is_short: bool,  # noqa: FBT001 - one caller, just above
    facts: Mapping[AttemptId, AttemptFacts],
    rules: MeteringRules,
) -> Usage:
    own = facts[request.replica]
    share = carried or _Carried(method=NOT_MEASURED, quality=EnergyClass.CONSTANT)
    energy_mj = share.energy_mj + share.overhead_mj
    location_ng, market_ng = rules.carbon(energy_mj, own.site)
    quantities = {
        Meter.TOKENS_INPUT.value: request.tokens_input,
        Meter.TOKENS_OUTPUT.value: request.tokens_output,
        Meter.AUDIO_MS.value: request.audio_ms,
        Meter.CHARACTERS_INPUT.value: request.characters_input,
    }
    return Usage(
        id=request_usage_id(request.request),
        workload=own.workload,
        attempt=request.replica,
        organisation=request.organisation,
        project=request.project,
        start_ns=request.start_ns,
        end_ns=request.end_ns,
        quantities={meter: quantity for meter, quantity in quantities.items() if quantity},
        subject=own.subject,
        model_digest=own.model_digest,
        request=request.request,
        energy_mj=energy_mj,
        overhead_mj=share.overhead_mj,
        energy_method=f"{share.method}; {rules.share_method}",
        energy_quality=share.quality,
        energy_uncertainty_ppm=share.uncertainty_ppm,
        carbon_location_ng=location_ng,
        carbon_market_ng=market_ng,
        policy_decision=own.policy_decision,
        is_estimated=request.is_estimated or is_short,
        line=request.line,
        is_repeated=request.is_repeated,
        key=request.key,
        user=request.user,
        **place_of(own),
    )

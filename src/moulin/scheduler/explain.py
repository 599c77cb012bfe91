"""Why something waits, could never run, or where it would run now; with numbers, changing nothing.

Reasons come in the order of constraints that DESIGN rule 3 fixes: jurisdiction, zone, hardware and
topology, power, quota, then back-off and order. A stage that cannot be judged because an earlier
one left no zone is left out.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np

from moulin.domain.factory import ZoneState
from moulin.domain.health import Verdict
from moulin.domain.ids import WorkloadId
from moulin.domain.needs import TITLES
from moulin.domain.observation import TaskPhase
from moulin.domain.plan import Place
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.workload import AfterWhen, Submission, WorkloadKind, units_wanted
from moulin.scheduler.decide import Placing, ends_of
from moulin.scheduler.declared import NOT_OPEN_YET
from moulin.scheduler.demand import Demand, Shape, demand_of, options
from moulin.scheduler.fleet import Fleet, Indices
from moulin.scheduler.needs import needs_in
from moulin.scheduler.nodes import NO_LIMIT_MIN, Column, Columns, added_draw_mw, when_empty
from moulin.scheduler.policy import SchedulerPolicy
from moulin.scheduler.power import SitePower, power_by_site
from moulin.scheduler.preempt import preemption_reasons
from moulin.scheduler.preflight import apart_reasons, check_reasons
from moulin.scheduler.queues import Ticket
from moulin.scheduler.quota import excesses, shortfalls, wanted_by
from moulin.scheduler.room import Room
from moulin.scheduler.rows import Held, UnitRow, WorkloadRow
from moulin.scheduler.scaling import load_reason, serving_reasons, target_of
from moulin.scheduler.settle import NS_PER_S, budget_reason, dependency_failed, react
from moulin.scheduler.standing import NOTHING_SAID, Standings, standing_reasons
from moulin.scheduler.state import State
from moulin.scheduler.used import idle_reasons

REMEMBERED_MAX: Final = 4096


def possible(state: State, submission: Submission, policy: SchedulerPolicy) -> tuple[Reason, ...]:
    """Return the reasons that no waiting can cure; empty when the workload may wait.

    A named zone that is not open yet waits (`explain` says so); a closed one refuses. Nodes that
    cannot be reached now count as present.
    """
    spec = submission.spec
    is_idle_lease = spec.kind is WorkloadKind.LEASE and spec.task is None and spec.lease is None
    if spec.kind is WorkloadKind.SESSION or is_idle_lease:
        parameters = {"kind": spec.kind.value}
        return (Reason(code=ReasonCode.KIND_NOT_SERVED, parameters=parameters),)
    row = _row_of(submission)
    found = _impossible_options(state, row)
    if submission.project in policy.projects_exhausted:
        found.append(budget_reason(state, row))
    return tuple(found)


def explain(
    state: State,
    workload: WorkloadId,
    now_ns: int,
    policy: SchedulerPolicy,
    standings: Standings = NOTHING_SAID,
) -> tuple[Reason, ...]:
    """Return why a workload is where it is; empty when nothing keeps it or it is not known.

    Of an ended workload: why it ended. Of a live one: which of its units still wait and why, how
    many of its nodes cannot be reached, and what its engines hold back by what they say (`standings`).
    """
    row = state.workloads.get(workload)
    if row is None:
        return ()
    if row.is_final:
        return row.reasons
    found = [*_unreachable(state, row), *standing_reasons(state, row, standings)]
    waiting = [unit for unit in row.units if unit.is_waiting]
    if waiting and submitted_to_exhausted(row, policy):
        found.append(budget_reason(state, row))
    elif waiting and not row.is_eligible:
        found += _not_yet(state, row)
    elif waiting:
        found += _turn_reasons(state, row, waiting, now_ns, policy)
    found += serving_reasons(state, row, now_ns)
    found += idle_reasons(state, row)
    found += preemption_reasons(state, row, now_ns)
    found += check_reasons(state, row)
    if workload in policy.endpoints_frozen:
        target = target_of(state, row, now_ns)
        found += [load_reason(row, target), budget_reason(state, row)]
    return tuple(found)


def trial(
    state: State, submission: Submission, now_ns: int, policy: SchedulerPolicy
) -> Place | tuple[Reason, ...]:
    """Return where the first unit would start if it were submitted now, else the reasons.

    The answer counts everything that comes before it in this cycle; it promises nothing.
    """
    reasons = possible(state, submission, policy) or tuple(_would_wait(state, submission))
    if reasons:
        return reasons
    row = _row_of(submission)
    placing = _after_others(state, row, 0, now_ns, policy)
    place = placing.place_row(row, 0)
    if place is not None:
        return place
    found = tuple(_constraint_reasons(state, row, row.demand))
    return found or (_behind(state, row, 0, now_ns),)


def submitted_to_exhausted(row: WorkloadRow, policy: SchedulerPolicy) -> bool:
    """Whether the budget of a workload's project is spent."""
    return row.submission.project in policy.projects_exhausted


def _row_of(submission: Submission) -> WorkloadRow:
    return WorkloadRow(
        submission=submission,
        demand=demand_of(submission),
        units_wanted=units_wanted(submission.spec),
        time_limit_s=0,
        units=[UnitRow(unit=0)],
    )


# -- what no waiting can cure -------------------------------------------------------------------


def _impossible_options(state: State, row: WorkloadRow) -> list[Reason]:
    """Return what rules out each alternative that would do; nothing when one of them is possible."""
    found: list[Reason] = []
    project = row.submission.project
    # The elements of an array need not run together, an endpoint's replicas do.
    units = 1 if row.is_array else max(units_wanted(row.submission.spec), 1)
    for option in options(row.demand):
        wanted = wanted_by(option, workloads=1, units=units)
        reasons = [
            *_impossible_ever(state, option),
            *excesses(project, state.declared.quota(project), wanted),
        ]
        if not reasons:
            return []
        found += reasons
    return _distinct(found)


def _impossible_ever(state: State, demand: Demand) -> tuple[Reason, ...]:
    """Return what of zones, hardware and power rules a demand out, remembered by demand."""
    key = demand._replace(workload="", priority=0)
    found = state.impossible.get(key)
    if found is None:
        found = tuple(_impossible_zones(state, demand))
        if not found and not _may_get_hardware(state, demand):
            found = tuple(_impossible_hardware(state, demand))
        if len(state.impossible) >= REMEMBERED_MAX:
            state.impossible.clear()
        state.impossible[key] = found
    return found


def _impossible_zones(state: State, demand: Demand) -> Iterator[Reason]:
    declared = state.declared
    usable = _usable_zones(state, demand)
    is_every_name_known = all(zone in declared.zones for zone in demand.zones)
    if not usable or not is_every_name_known:
        yield from declared.zone_reasons(demand)


def _usable_zones(state: State, demand: Demand) -> tuple[str, ...]:
    """Return the zones that a demand may be placed in now or later."""
    zones = state.declared.zones
    permitted = state.declared.permitted_zones(demand)
    return tuple(zone for zone in permitted if zones[zone].state is not ZoneState.CLOSED)


def _may_get_hardware(state: State, demand: Demand) -> bool:
    """Whether machines may still come: a named zone, or every permitted one, is not open yet."""
    zones = state.declared.zones
    named = any(zones[zone].state in NOT_OPEN_YET for zone in demand.zones if zone in zones)
    permitted = state.declared.permitted_zones(demand)
    return named or all(zones[zone].state in NOT_OPEN_YET for zone in permitted)


def _impossible_hardware(state: State, demand: Demand) -> Iterator[Reason]:
    fleet = Fleet(state)
    zones = _usable_zones(state, demand)
    reason = _hardware_reason(fleet, demand, zones)
    if reason is not None:
        yield reason
    elif any(site.power_envelope_w for site in state.declared.sites.values()):
        yield from _impossible_power(fleet, demand, zones)


def _hardware_reason(fleet: Fleet, demand: Demand, zones: tuple[str, ...]) -> Reason | None:
    """Return which permanent property of the permitted nodes rules a demand out."""
    able = fleet.able(demand.shape, zones)
    if able.size:
        total = fleet.most_in_a_domain(able)
        if total >= demand.tasks:
            return None
        parameters = {"wanted": str(demand.tasks), "total": str(total)}
        return Reason(code=ReasonCode.EXCEEDS_FACTORY, parameters=parameters)
    shape = demand.shape
    time_aside = fleet.able(shape._replace(time_limit_min=0), zones)
    if time_aside.size:
        return _time_reason(fleet, time_aside, shape)
    shape = shape._replace(time_limit_min=0)
    carrying_aside = fleet.able(shape._replace(needs=0), zones)
    if carrying_aside.size:
        return _carrying_reason(fleet, carrying_aside, shape.needs)
    shape = shape._replace(needs=0)
    smallest = shape._replace(cpu_milli=0, memory_bytes=0, accelerators=min(shape.accelerators, 1))
    of_class = fleet.able(smallest, zones)
    wanted = _shape_text(shape)
    if not of_class.size:
        return Reason(code=ReasonCode.NO_SUCH_HARDWARE, parameters={"wanted": wanted})
    parameters = {"wanted": wanted, "largest": _largest_text(fleet, of_class, shape)}
    return Reason(code=ReasonCode.EXCEEDS_NODE, parameters=parameters)


def longest_time_s(state: State, submission: Submission) -> int:
    """Return the longest time limit that a workload may ask for where it could run, 0 for any."""
    fleet = Fleet(state)
    limits_min = fleet.columns[Column.TIME_LIMIT_MIN]
    longest_min = 0
    if not limits_min.size or int(limits_min.min()) == NO_LIMIT_MIN:
        return 0
    for option in options(demand_of(submission)):
        zones = _usable_zones(state, option)
        able = fleet.able(option.shape._replace(time_limit_min=0), zones)
        longest_min = max(longest_min, _longest_min(fleet, able) if able.size else 0)
    return longest_min * 60 if longest_min < NO_LIMIT_MIN else 0


def _longest_min(fleet: Fleet, nodes: Indices) -> int:
    return int(fleet.columns[Column.TIME_LIMIT_MIN][nodes].max())


def _time_reason(fleet: Fleet, nodes: Indices, shape: Shape) -> Reason:
    """Return how much longer the time limit is than the longest that such nodes allow."""
    return Reason(
        code=ReasonCode.EXCEEDS_TIME_LIMIT,
        parameters={
            "wanted_min": str(shape.time_limit_min),
            "longest_min": str(_longest_min(fleet, nodes)),
            "count": str(nodes.size),
            "pools": _pools(fleet, nodes),
        },
    )


def _pools(fleet: Fleet, nodes: Indices) -> str:
    return ", ".join(sorted({fleet.state.nodes.rows[node].pool for node in nodes.tolist()}))


def _carrying_reason(fleet: Fleet, nodes: Indices, needs: int) -> Reason:
    """Return which of its needs none of these nodes can carry, or which not together."""
    lacks = fleet.columns[Column.LACKS][nodes] & needs
    nowhere = int(np.bitwise_and.reduce(lacks))
    lacking = needs_in(nowhere or int(np.bitwise_or.reduce(lacks)))
    return Reason(
        code=ReasonCode.CANNOT_CARRY,
        parameters={
            "what": " and ".join(TITLES[need] for need in lacking),
            "needs": " ".join(lacking),
            "count": str(nodes.size),
            "pools": _pools(fleet, nodes),
        },
    )


def _impossible_power(fleet: Fleet, demand: Demand, zones: tuple[str, ...]) -> Iterator[Reason]:
    """Yield the sites whose envelope could not carry the gang even with nothing else running."""
    columns = when_empty(fleet.columns)
    power = power_by_site(fleet.state.declared, columns)
    able = fleet.able(demand.shape, zones)
    added_mw = added_draw_mw(columns[:, able], demand.shape)
    yield from _power_reasons(fleet, demand, able, added_mw, power)


# -- why it waits ---------------------------------------------------------------------------------


def _not_yet(state: State, row: WorkloadRow) -> Iterator[Reason]:
    """Yield what keeps a workload from being placed at all, whatever room there is."""
    if row.is_held:
        yield Reason(code=ReasonCode.HELD)
    for other, when in row.after_left.items():
        yield _waits_for(state, other, when)
    if row.after_failed:
        yield dependency_failed(state, row)


def _would_wait(state: State, submission: Submission) -> Iterator[Reason]:
    """Yield what would keep a submission from being placed at all."""
    if submission.spec.is_held:
        yield Reason(code=ReasonCode.HELD)
    for after in submission.spec.after:
        other = state.workloads.get(WorkloadId(after.workload))
        if other is not None and not other.is_final:
            yield _waits_for(state, other.submission.id, after.when)


def _waits_for(state: State, other: WorkloadId, when: AfterWhen) -> Reason:
    parameters = {
        "workload": str(other),
        "when": when.value,
        "state": state.workloads[other].state.value,
    }
    return Reason(code=ReasonCode.WAITS_FOR, parameters=parameters)


def _turn_reasons(
    state: State, row: WorkloadRow, waiting: list[UnitRow], now_ns: int, policy: SchedulerPolicy
) -> Iterator[Reason]:
    """Yield why the first unit that may start now does not, and how many have to let others go."""
    next_ones = [unit for unit in waiting if not unit.is_withheld]
    if next_ones:
        yield from _waiting_reasons(state, row, next_ones[0], now_ns, policy)
    if row.at_most and len(waiting) > len(next_ones):
        parameters = {
            "at_most": str(row.at_most),
            "size": str(len(row.units)),
            "waiting": str(len(waiting) - len(next_ones)),
        }
        yield Reason(code=ReasonCode.ARRAY_LIMIT, parameters=parameters)


def _waiting_reasons(
    state: State, row: WorkloadRow, unit: UnitRow, now_ns: int, policy: SchedulerPolicy
) -> Iterator[Reason]:
    found = list(_constraint_reasons(state, row, row.demand_of(unit)))
    found += apart_reasons(state, row, now_ns)
    yield from found
    if unit.not_before_ns > now_ns:
        left_s = -(-(unit.not_before_ns - now_ns) // NS_PER_S)
        parameters = {"generation": str(unit.generation), "left_s": str(left_s)}
        yield Reason(code=ReasonCode.BACKING_OFF, parameters=parameters)
        return
    if found:
        return
    placing = _after_others(state, row, unit.unit, now_ns, policy)
    if placing.place_row(row, unit.unit) is None:
        yield _behind(state, row, unit.unit, now_ns)


def _constraint_reasons(state: State, row: WorkloadRow, demand: Demand) -> Iterator[Reason]:
    """Yield the constraints that keep a unit out now, whoever else waits."""
    zone_reasons = list(state.declared.zone_reasons(demand))
    yield from zone_reasons
    found: list[Reason] = []
    for option in options(demand):
        lacking = list(_option_reasons(state, row, option, has_zones=not zone_reasons))
        if not lacking:
            return
        found += lacking
    yield from _distinct(found)


def _distinct(reasons: Iterable[Reason]) -> list[Reason]:
    """Return what several alternatives have in common once, where it first came up."""
    found = {(each.code, *sorted(each.parameters.items())): each for each in reasons}
    return list(found.values())


def _option_reasons(
    state: State, row: WorkloadRow, demand: Demand, *, has_zones: bool
) -> Iterator[Reason]:
    if has_zones:
        yield from _room_reasons(Room(state), demand, state.declared.open_zones(demand))
    project = row.submission.project
    held = state.held_by_project.get(project, Held())
    wanted = wanted_by(demand, workloads=int(row.attempts_live == 0))
    yield from shortfalls(project, state.declared.quota(project), held, wanted)


def _room_reasons(room: Room, demand: Demand, zones: tuple[str, ...]) -> Iterator[Reason]:
    permanent = _hardware_reason(room, demand, zones)
    if permanent is not None:
        yield permanent
        return
    fitting = room.fitting(demand.shape, zones)
    free = room.most_in_a_domain(fitting)
    if free < demand.tasks:
        parameters = {"wanted": str(demand.tasks), "free": str(free)}
        yield Reason(code=ReasonCode.INSUFFICIENT_CAPACITY, parameters=parameters)
        lost = _unreachable_with_room(room, demand, zones)
        if lost:
            parameters = {"count": str(lost)}
            yield Reason(code=ReasonCode.NODE_UNREACHABLE, parameters=parameters)
        sick = _quarantined_with_room(room, demand, zones)
        if sick:
            parameters = {"count": str(sick)}
            yield Reason(code=ReasonCode.NODE_QUARANTINED, parameters=parameters)
        return
    if not room.choose(demand, zones).nodes:
        added_mw = added_draw_mw(room.columns_left()[:, fitting], demand.shape)
        yield from _power_reasons(room, demand, fitting, added_mw, room.power)


def _power_reasons(
    fleet: Fleet, demand: Demand, nodes: Indices, added_mw: Columns, power: dict[int, SitePower]
) -> Iterator[Reason]:
    """Yield the sites that lack power for the gang; nothing when one of them has enough.

    `added_mw` is what one task would add at each of `nodes`.
    """
    short: dict[int, int] = {}
    domains = fleet.columns[Column.DOMAIN][nodes]
    for domain in np.unique(domains).tolist():
        here = domains == domain
        if int(here.sum()) < demand.tasks:
            continue
        added = int(np.sort(added_mw[here])[: demand.tasks].sum())
        site = int(fleet.columns[Column.SITE][nodes[here][0]])
        if site not in power or power[site].carries(added):
            return
        short[site] = min(added, short.get(site, added))
    for site, added in sorted(short.items()):
        yield Reason(
            code=ReasonCode.POWER_ENVELOPE,
            parameters={
                "site": power[site].site.name,
                "limit_w": str(power[site].site.power_envelope_w),
                "held_w": str(power[site].with_overhead_w(power[site].it_mw)),
                "wanted_w": str(power[site].with_overhead_w(added)),
            },
        )


def _unreachable_with_room(room: Room, demand: Demand, zones: tuple[str, ...]) -> int:
    able = room.able(demand.shape, zones)
    return sum(
        not room.state.nodes.rows[node].is_reachable and room.has_room(demand.shape, node)
        for node in able.tolist()
    )


def _quarantined_with_room(room: Room, demand: Demand, zones: tuple[str, ...]) -> int:
    able = room.able(demand.shape, zones)
    rows = room.state.nodes.rows
    return sum(
        rows[node].health.verdict is Verdict.QUARANTINED and room.has_room(demand.shape, node)
        for node in able.tolist()
    )


def _unreachable(state: State, row: WorkloadRow) -> Iterator[Reason]:
    nodes = set()
    for attempt in state.live_attempts(row):
        for task in attempt.tasks:
            node = state.nodes.row(task.node)
            is_cut_off = node is not None and not node.is_reachable
            if not task.is_ended and (is_cut_off or task.phase is TaskPhase.UNREACHABLE):
                nodes.add(task.node)
    if nodes:
        yield Reason(code=ReasonCode.NODE_UNREACHABLE, parameters={"count": str(len(nodes))})


def _after_others(
    state: State, row: WorkloadRow, unit: int, now_ns: int, policy: SchedulerPolicy
) -> Placing:
    """Return a decision in progress after everything that comes before this unit was placed."""
    reactions = list(react(state, now_ns, policy))
    placing = Placing(state, now_ns, policy, ending=ends_of(reactions))
    placing.run_before(row.demand.priority, _ticket(row, unit))
    return placing


def _behind(state: State, row: WorkloadRow, unit: int, now_ns: int) -> Reason:
    """Return how many units that may be placed now come first by priority and time."""
    ticket, priority = _ticket(row, unit), row.demand.priority
    count = sum(
        len(line) if demand.priority > priority else line.before(ticket)
        for demand, line in state.waiting.lines.items()
        if demand.priority >= priority
    )
    for due in state.backing_off.until(now_ns):
        other = state.workloads[WorkloadId(due.id)]
        count += (-other.demand.priority, _ticket(other, due.unit)) < (-priority, ticket)
    return Reason(code=ReasonCode.BEHIND_OTHERS, parameters={"count": str(count)})


def _ticket(row: WorkloadRow, unit: int) -> Ticket:
    return Ticket(row.submission.submitted_at_ns, row.submission.id, unit)


# -- words and numbers ----------------------------------------------------------------------------


def _shape_text(shape: Shape) -> str:
    parts = [f"{shape.cpu_milli} milli-CPU", f"{shape.memory_bytes} bytes of memory"]
    if shape.accelerators:
        named = shape.accelerator_class or "accelerator"
        parts.append(f"{shape.accelerators} × {named}")
    return ", ".join(parts)


def _largest_text(fleet: Fleet, nodes: Indices, shape: Shape) -> str:
    totals = fleet.columns[:, nodes]
    parts = [
        f"{int(totals[Column.CPU_TOTAL].max())} milli-CPU",
        f"{int(totals[Column.MEMORY_TOTAL].max())} bytes of memory",
    ]
    if shape.accelerators:
        parts.append(f"{int(totals[Column.DEVICES_TOTAL].max())} accelerators")
    return ", ".join(parts)

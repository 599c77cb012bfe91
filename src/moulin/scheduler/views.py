"""Rows as others read them: workload and node views, and the steps engines are asked to start.

Derives, never decides; the reasons why something waits are the work of `explain`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from moulin.domain.errors import NotFound
from moulin.domain.health import Verdict
from moulin.domain.ids import AttemptId, WorkloadId
from moulin.domain.plan import StartStep
from moulin.domain.views import AttemptView, NodeView, TaskView, UnitView, WorkloadView
from moulin.domain.workload import AttemptState, Resources, TaskTemplate, WorkloadSpec
from moulin.scheduler.nodes import held_on, lacking
from moulin.scheduler.rows import AttemptRow, TaskRow, UnitRow, WorkloadRow
from moulin.scheduler.state import State
from moulin.scheduler.used import attempt_view
from moulin.scheduler.walltime import time_limit_s

WAITING = "waiting"
# An array of thousands is one row: it shows so many of its elements, the rest are asked for.
UNITS_SHOWN_MAX: Final = 50


def workload_view(
    state: State, workload: WorkloadId, *, reserved_neur: int | None = None
) -> WorkloadView:
    """Return a workload's current row, with what is still held for it where the caller knows.

    Raises `NotFound` for an unknown id, and for one that ended so long ago that only the store
    still has it.
    """
    row = state.workloads.get(workload)
    if row is None:
        raise NotFound(f"read workload {workload}", hint="list workloads to see their ids")
    submission = row.submission
    return WorkloadView(
        id=submission.id,
        kind=submission.spec.kind.value,
        name=submission.spec.name,
        organisation=submission.organisation,
        project=submission.project,
        state=row.state.value,
        spec=submission.spec,
        submitted_by=submission.submitted_by,
        submitted_at_ns=submission.submitted_at_ns,
        started_at_ns=row.started_at_ns,
        ended_at_ns=row.ended_at_ns,
        reasons=row.reasons,
        units=tuple(
            _unit_view(state, row, unit, is_brief=row.is_array) for unit in _shown(state, row)
        ),
        reserved_neur=row.reserved_neur if reserved_neur is None else reserved_neur,
        spent_neur=row.spent_neur,
        sequence=row.sequence,
        units_wanted=row.units_wanted,
        revision=row.serving.revision if row.serving is not None else 1,
        scaling=row.serving.scaling if row.serving is not None else None,
        is_held=row.is_held,
        eligible_at_ns=row.eligible_at_ns,
        counts=_counts(state, row) if row.is_array else {},
    )


def unit_views(
    state: State, workload: WorkloadId, units: Sequence[int] = (), states: Sequence[str] = ()
) -> tuple[UnitView, ...]:
    """Return units of a workload by number: all, or those named, in one of the states if any is.

    Raises `NotFound` as `workload_view` does.
    """
    row = state.workloads.get(workload)
    if row is None:
        raise NotFound(f"read units of {workload}", hint="list workloads to see their ids")
    wanted = [row.units[unit] for unit in units if unit < len(row.units)] if units else row.units
    return tuple(
        _unit_view(state, row, unit)
        for unit in wanted
        if not unit.is_retired and (not states or _state_of(state, row, unit) in states)
    )


def _shown(state: State, row: WorkloadRow) -> list[UnitRow]:
    """Return the units of a row: of a large array those that run, those that failed, then others."""
    units = [unit for unit in row.units if not unit.is_retired]
    if len(units) <= UNITS_SHOWN_MAX or not row.is_array:
        return units
    found: dict[int, UnitRow] = {}
    for place in (_LIVE, _FAILED, ()):
        for unit in units:
            if len(found) == UNITS_SHOWN_MAX:
                break
            if not place or _state_of(state, row, unit) in place:
                found[unit.unit] = unit
    return [found[number] for number in sorted(found)]


_LIVE: Final = (AttemptState.PLACED.value, AttemptState.RUNNING.value)
_FAILED: Final = (AttemptState.FAILED.value, AttemptState.LOST.value)


def _counts(state: State, row: WorkloadRow) -> Mapping[str, int]:
    counts = Counter(_state_of(state, row, unit) for unit in row.units)
    return dict(sorted(counts.items()))


def _state_of(state: State, row: WorkloadRow, unit: UnitRow) -> str:
    """Return where a unit stands in one word."""
    if unit.final is not None:
        return unit.final.value
    attempt = state.latest_attempt(unit)
    if attempt is None:
        return row.state.value if row.is_final else WAITING
    return WAITING if unit.is_waiting else attempt.state.value


def node_views(state: State) -> tuple[NodeView, ...]:
    """Return every node with what is held on it, by name."""
    return tuple(_node_view(state, position) for position in range(len(state.nodes)))


def start_step(state: State, attempt: AttemptId, rank: int) -> StartStep:
    """Return all an engine needs to start one task of a live attempt.

    A gang gets the address and port of its rendezvous in `env`, an element of an array its index,
    except where the task sets its own. An endpoint without a task of its own gets an empty command; its runtime is filled in by
    whoever knows runtimes. Raises `NotFound` when the attempt is not live or has no such rank.
    """
    found = state.attempts.get(attempt)
    if found is None or not found.is_live or not 0 <= rank < len(found.tasks):
        raise NotFound(f"start task {rank} of attempt {attempt}", hint="the attempt has ended")
    row = state.workloads[WorkloadId(found.workload)]
    submission, task = row.submission, found.tasks[rank]
    spec = row.spec_of(row.units[found.unit])
    template = spec.task or TaskTemplate(command=())
    return StartStep(
        step=task.step,
        attempt=attempt,
        workload=submission.id,
        organisation=submission.organisation,
        project=submission.project,
        unit=found.unit,
        generation=found.generation,
        rank=rank,
        nodes=tuple(each.node for each in found.tasks),
        devices=task.devices,
        resources=_resources(row.resources_of(found), task),
        task=template,
        endpoint=spec.endpoint,
        env={
            name: value
            for name, value in {**_rendezvous(state, found), **_element(spec, found)}.items()
            if name not in template.env
        },
        time_limit_s=time_limit_s(state, row, found),
        stop_grace_s=spec.stop_grace_s,
        stop_signal=spec.stop_signal,
        lease=spec.lease if not found.is_check else None,
    )


def _resources(asked: Resources, task: TaskRow) -> Resources:
    return Resources(
        cpu_milli=task.cpu_milli,
        memory_bytes=task.memory_bytes,
        accelerator_class=asked.accelerator_class,
        accelerators=len(task.devices),
    )


def _element(spec: WorkloadSpec, attempt: AttemptRow) -> dict[str, str]:
    """Return which try this is, and of an array which element, in Slurm's words too."""
    found = {"MOULIN_RESTART_COUNT": str(attempt.restarts)}
    if attempt.checks_before:
        found["SLURM_RESTART_COUNT"] = str(attempt.restarts)
    if spec.array is None:
        return found
    index = str(spec.array.index_of(attempt.unit))
    return {
        **found,
        "MOULIN_ARRAY_INDEX": index,
        "MOULIN_ARRAY_SIZE": str(spec.array.size),
        "SLURM_ARRAY_TASK_ID": index,
        "SLURM_ARRAY_JOB_ID": attempt.workload,
        "SLURM_ARRAY_TASK_COUNT": str(spec.array.size),
        "SLURM_ARRAY_TASK_MIN": str(spec.array.index_of(0)),
        "SLURM_ARRAY_TASK_MAX": str(spec.array.index_of(spec.array.size - 1)),
        "SLURM_ARRAY_TASK_STEP": str(spec.array.step),
    }


def _rendezvous(state: State, attempt: AttemptRow) -> dict[str, str]:
    master = state.nodes.row(attempt.tasks[0].node)
    if not attempt.port or master is None:
        return {}
    return {"MASTER_ADDR": master.capacity.address, "MASTER_PORT": str(attempt.port)}


def _unit_view(
    state: State, row: WorkloadRow, unit: UnitRow, *, is_brief: bool = False
) -> UnitView:
    attempt = state.latest_attempt(unit)
    array = row.submission.spec.array
    return UnitView(
        unit=unit.unit,
        generation=unit.generation,
        state=_state_of(state, row, unit),
        attempt=attempt.id if attempt is not None else "",
        tasks=tuple(_task_view(state, row, task) for task in attempt.tasks) if attempt else (),
        replica=replica_state(state, row, unit),
        revision=unit.revision,
        restarts=attempt.restarts if attempt is not None else 0,
        is_check=attempt is not None and attempt.is_check,
        choice=attempt.choice if attempt is not None else 0,
        index=array.index_of(unit.unit) if array is not None else None,
        reason=unit.reason,
        attempts=() if is_brief and not unit.past else _attempts(row, unit, attempt),
    )


def _attempts(
    row: WorkloadRow, unit: UnitRow, attempt: AttemptRow | None
) -> tuple[AttemptView, ...]:
    return (*unit.past, attempt_view(row, attempt)) if attempt is not None else ()


def replica_state(state: State, row: WorkloadRow, unit: UnitRow) -> str:
    """Return where an endpoint's replica stands, empty for a unit of anything else."""
    if row.serving is None:
        return ""
    attempt = state.latest_attempt(unit)
    if unit.is_retired or row.is_final:
        return "stopped"
    if unit.is_waiting or attempt is None:
        return WAITING
    if not attempt.is_live:
        return "stopped"
    if unit.is_leaving or attempt.stop_cause is not None:
        return "draining"
    return "ready" if attempt.tasks[0].is_ready else "starting"


def _task_view(state: State, row: WorkloadRow, task: TaskRow) -> TaskView:
    return TaskView(
        rank=task.rank,
        step=task.step,
        node=task.node,
        zone=state.zone_of_node(task.node),
        devices=task.devices,
        phase=task.phase.value if task.phase is not None else "",
        exit_code=task.exit_code,
        is_ready=task.is_ready,
        address=task.address if row.submission.spec.lease is not None else "",
        cpu_milli=task.cpu_milli,
        cpu_ns=task.cpu_ns,
        memory_bytes_max=task.memory_bytes_max,
        started_at_ns=task.started_at_ns,
        ended_at_ns=task.ended_at_ns,
        memory_bytes=task.memory_bytes,
        host=task.host or "",
    )


def _node_view(state: State, position: int) -> NodeView:
    node = state.nodes.rows[position]
    pool = state.declared.pools.get(node.pool)
    capacity = node.capacity
    held = held_on(node, state.nodes.columns[:, position])
    return NodeView(
        node=capacity.node,
        pool=node.pool,
        zone=pool.zone if pool else "",
        engine=pool.engine if pool else "",
        machine_class=capacity.machine_class,
        cpu_milli=capacity.cpu_milli,
        cpu_milli_held=held[0],
        memory_bytes=capacity.memory_bytes,
        memory_bytes_held=held[1],
        accelerators=capacity.accelerators,
        accelerators_held=held[2],
        is_reachable=node.is_reachable and node.is_present,
        cpu_ids=capacity.cpu_ids,
        health=node.health.verdict,
        health_reason=node.health.reason if node.health.verdict is not Verdict.HEALTHY else None,
        symptoms=node.health.symptoms,
        evidence=node.health.evidence,
        taken_cpu_milli=capacity.taken_cpu_milli,
        taken_memory_bytes=capacity.taken_memory_bytes,
        taken_accelerators=capacity.taken_accelerators,
        closed_because=capacity.closed_because,
        fit_at_ns=node.health.fit_ns,
        doubted_with=tuple(sorted(node.health.doubts)),
        is_watched_only=capacity.is_watched_only,
        lacks=tuple(need.value for need in lacking(capacity)),
    )

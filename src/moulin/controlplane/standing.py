"""Asks engines, when somebody asks why, where placed work stands in queues that are not Moulin's.

Nothing of it is an event or is kept. Engines answer from what they read last, so that an answer never
waits for a queue that is silent.
"""

from collections.abc import Mapping
from dataclasses import replace

from moulin.controlplane.lookup import pool_of
from moulin.controlplane.plane import Plane
from moulin.domain.ids import StepId, WorkloadId
from moulin.domain.observation import TaskPhase
from moulin.domain.standing import Standing
from moulin.domain.views import TaskView, UnitView, WorkloadView
from moulin.ports.engine import TellsStandings
from moulin.scheduler import State


def standings_of(plane: Plane, state: State, workload: WorkloadId) -> Mapping[StepId, Standing]:
    """Return what engines say of the tasks of a workload that are not proved ended."""
    row = state.workloads.get(workload)
    by_pool: dict[str, list[StepId]] = {}
    for attempt in state.live_attempts(row) if row is not None else ():
        for task in attempt.tasks:
            if not task.is_ended:
                by_pool.setdefault(pool_of(state, task.node), []).append(task.step)
    found: dict[StepId, Standing] = {}
    for pool in sorted(by_pool):
        engine = plane.engines.get(pool)
        if isinstance(engine, TellsStandings):
            found.update(engine.standings(by_pool[pool]))
    return found


def with_standings(view: WorkloadView, standings: Mapping[StepId, Standing]) -> WorkloadView:
    """Return a workload's row with what queues call its tasks, and what they wait for there."""
    if not standings:
        return view
    return replace(view, units=tuple(_unit(unit, standings) for unit in view.units))


def _unit(unit: UnitView, standings: Mapping[StepId, Standing]) -> UnitView:
    return replace(unit, tasks=tuple(_task(task, standings) for task in unit.tasks))


def _task(task: TaskView, standings: Mapping[StepId, Standing]) -> TaskView:
    found = standings.get(StepId(task.step))
    if found is None:
        return task
    if task.phase == TaskPhase.RUNNING.value:
        return replace(task, job=found.job)
    return replace(task, job=found.job, waits_for=found.word, expected_ns=found.expected_ns)

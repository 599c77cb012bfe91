"""Hands a durable plan to the engines: all that the control plane causes, but for `forgetting.py`.

Every call is idempotent by step id, so whatever a crash leaves undone is simply done again. What
an engine answers is reported to the next cycle; nothing is concluded here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from moulin.controlplane.avoiding import tell_quarantines
from moulin.controlplane.looking import look
from moulin.controlplane.lookup import (
    attempt_of,
    is_check,
    is_stopping,
    pool_of,
    steps_of_attempt,
    task_of,
)
from moulin.controlplane.objects import with_bundle
from moulin.controlplane.plane import Plane
from moulin.controlplane.preflight import check_step
from moulin.controlplane.secrets import with_secrets
from moulin.domain.errors import EngineError, EngineUnavailable, LocalError, MoulinError, NotFound
from moulin.domain.ids import NodeId, StepId, step_id
from moulin.domain.observation import Claim, Observation, TaskPhase
from moulin.domain.plan import Plan, StartStep
from moulin.ports.engine import Engine, StartsMany
from moulin.scheduler import live_steps, start_step


def act(plane: Plane, plan: Plan) -> None:
    """Start and stop what the plan says, and what earlier calls could not reach."""
    for place in plan.places:
        for task in place.tasks:
            plane.unstarted.add(step_id(place.attempt, task.rank))
    tell_quarantines(plane)
    _start_all(plane)
    look(plane)
    for step, (node, grace_s) in sorted(plane.unstopped.items()):
        if task_of(plane.books.schedule, step) is None:
            del plane.unstopped[step]  # it ended by itself
        else:
            _stop(plane, step, node, grace_s)
    for stop in plan.stops:
        for step, node in steps_of_attempt(plane.books.schedule, stop.attempt):
            _stop(plane, step, node, stop.grace_s)


def resume(plane: Plane) -> None:
    """After a restart: start again whatever is placed without proof of a start, repeat stops.

    Starting twice is safe because an engine starts a step at most once.
    """
    schedule = plane.books.schedule
    for step, node in live_steps(schedule):
        attempt = attempt_of(schedule, step)
        if attempt is not None and attempt.stop_cause is not None:
            _stop(plane, step, node, attempt.grace_s)
        else:
            plane.unstarted.add(step)


def _start_all(plane: Plane) -> None:
    """Start what is placed; an engine that can is told of all of its steps at once."""
    gathered: dict[str, tuple[Engine, list[StartStep]]] = {}
    for step in sorted(plane.unstarted):
        _gather(plane, step, gathered)
    for engine, steps in gathered.values():
        for wanted, answer in zip(steps, _started(engine, steps), strict=True):
            _settle(plane, wanted.step, answer)


def _gather(
    plane: Plane, step: StepId, gathered: dict[str, tuple[Engine, list[StartStep]]]
) -> None:
    """Put a step with the others of its pool, unless it is not to start after all."""
    schedule = plane.books.schedule
    task = task_of(schedule, step)
    if task is None or task.phase is not None or is_stopping(schedule, step):
        plane.unstarted.discard(step)
        return
    wanted = start_step(schedule, task.attempt, task.rank)
    try:
        engine = _engine(plane, task.node)
        try:
            launched = _launched(plane, wanted, is_check=is_check(schedule, step))
        except (NotFound, LocalError) as gone:
            _settle_without(plane, engine, step, gone)
            return
        gathered.setdefault(pool_of(schedule, task.node), (engine, []))[1].append(launched)
    except MoulinError as error:
        _settle(plane, step, error)


def _started(engine: Engine, steps: Sequence[StartStep]) -> Iterable[Claim | MoulinError]:
    """Return for each step what its engine answers to its start; one by one as they are asked for."""
    if isinstance(engine, StartsMany):
        return engine.start_many(steps)
    return (_answer(engine, step) for step in steps)


def _answer(engine: Engine, step: StartStep) -> Claim | MoulinError:
    try:
        return engine.start(step)
    except MoulinError as error:
        return error


def _settle(plane: Plane, step: StepId, answer: Claim | MoulinError) -> None:
    """Note what an engine answered to a start; what nobody knows of is started again."""
    if isinstance(answer, EngineUnavailable):
        return
    plane.unstarted.discard(step)
    if isinstance(answer, MoulinError):
        plane.reports.append(_refused(plane, step, answer))


def _launched(plane: Plane, step: StartStep, *, is_check: bool) -> StartStep:
    """Return a step with what it needs to start; raises `NotFound` when some of it is gone."""
    if is_check:
        return check_step(plane, step)
    if step.endpoint:
        return replace(step, task=plane.ports.launcher.task(step))
    return with_secrets(plane, with_bundle(plane, step))


def _settle_without(plane: Plane, engine: Engine, step: StepId, gone: MoulinError) -> None:
    """Refuse a step that lacks something by now, unless an earlier call had started it already."""
    phase = engine.observe([step])[0].phase
    if phase is TaskPhase.UNREACHABLE:
        return
    plane.unstarted.discard(step)
    if phase is TaskPhase.ABSENT:
        plane.reports.append(_refused(plane, step, gone))


def _stop(plane: Plane, step: StepId, node: NodeId, grace_s: int) -> None:
    try:
        _engine(plane, node).stop(step, grace_s)
    except EngineError:
        # Nothing is known; the stop stays decided, so the next act repeats it.
        plane.unstopped[step] = (node, grace_s)
    else:
        plane.unstopped.pop(step, None)


def _engine(plane: Plane, node: NodeId) -> Engine:
    pool = pool_of(plane.books.schedule, node)
    engine = plane.engines.get(pool)
    if engine is None:
        raise EngineUnavailable(f"reach node {node}: pool {pool!r} has no engine now")
    return engine


def _refused(plane: Plane, step: StepId, error: MoulinError) -> Observation:
    now_ns = plane.now_ns()
    return Observation(
        step=step,
        phase=TaskPhase.EXITED,
        at_ns=now_ns,
        ended_at_ns=now_ns,
        evidence=f"not started: {error.message}{f' ({error.hint})' if error.hint else ''}",
    )

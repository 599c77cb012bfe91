"""Questions the control plane asks of the scheduler's state; answers only, no decision."""

from collections.abc import Sequence

from moulin.domain.ids import AttemptId, NodeId, StepId
from moulin.domain.observation import NodeCapacity, Observation
from moulin.scheduler import AttemptRow, State, TaskRow, live_steps, moves_end


def task_of(state: State, step: StepId) -> TaskRow | None:
    """Return a task that is not proved ended."""
    return state.steps.get(step)


def attempt_of(state: State, step: StepId) -> AttemptRow | None:
    """Return the attempt of a task that is not proved ended."""
    task = state.steps.get(step)
    return state.attempts.get(task.attempt) if task is not None else None


def is_live(state: State, attempt: AttemptId) -> bool:
    """Say whether something of an attempt may still run."""
    row = state.attempts.get(attempt)
    return row is not None and row.is_live


def is_stopping(state: State, step: StepId) -> bool:
    """Say whether the end of a task's attempt is decided."""
    attempt = attempt_of(state, step)
    return attempt is not None and attempt.stop_cause is not None


def is_check(state: State, step: StepId) -> bool:
    """Say whether a task only checks the nodes that its unit is to have."""
    attempt = attempt_of(state, step)
    return attempt is not None and attempt.is_check


def is_news(task: TaskRow, seen: Observation) -> bool:
    """Say whether an observation tells more of a task than is known."""
    return (
        seen.phase is not task.phase
        or seen.is_ready != task.is_ready
        or (bool(seen.address) and seen.address != task.address)
        or (bool(seen.host) and seen.host != task.host)
        or (seen.claim is not None and task.claim is None)
    )


def is_end_moved(state: State, task: TaskRow, seen: Observation) -> bool:
    """Say whether the engine of a replica that runs ends it at another time than is known."""
    attempt = state.attempts.get(task.attempt)
    return attempt is not None and moves_end(state, attempt, seen.wall_ns)


def steps_of_attempt(state: State, attempt: AttemptId) -> Sequence[tuple[StepId, NodeId]]:
    """Return an attempt's tasks that are not proved ended, by rank."""
    row = state.attempts.get(attempt)
    tasks = row.tasks if row is not None else []
    return [(task.step, task.node) for task in tasks if not task.is_ended]


def steps_of_pool(state: State, pool: str) -> Sequence[StepId]:
    """Return the tasks on a pool's nodes that are not proved ended, in order of placement."""
    return [step for step, node in live_steps(state) if pool_of(state, node) == pool]


def pool_of(state: State, node: NodeId) -> str:
    """Return a node's pool, empty for an unknown node."""
    row = state.nodes.row(node)
    return row.pool if row is not None else ""


def capacity_of(state: State, node: NodeId) -> NodeCapacity:
    """Return what a node was last reported to be.

    Raises `KeyError` for a node that was never reported (a bug: placements name known nodes).
    """
    row = state.nodes.row(node)
    if row is None:
        raise KeyError(node)
    return row.capacity


def nodes_of_pool(state: State, pool: str) -> dict[NodeId, NodeCapacity]:
    """Return a pool's present nodes with what they were last reported to be."""
    return {
        name: row.capacity
        for name, row in zip(state.nodes.names, state.nodes.rows, strict=True)
        if row.pool == pool and row.is_present
    }


def nodes_of_undeclared_pools(state: State) -> tuple[NodeId, ...]:
    """Return the present nodes whose pool no file declares any more, by name."""
    return tuple(
        name
        for name, row in zip(state.nodes.names, state.nodes.rows, strict=True)
        if row.is_present and row.pool not in state.declared.pools
    )


def is_reachable(state: State, node: NodeId) -> bool:
    """Say whether a node can be asked, as far as is known."""
    row = state.nodes.row(node)
    return row is not None and row.is_reachable


def project_of_step(state: State, step: StepId) -> str:
    """Return the project a task belongs to, empty when it is not known any more."""
    attempt = attempt_of(state, step)
    row = state.workloads.get(attempt.workload) if attempt is not None else None  # type: ignore[call-overload]
    return row.submission.project if row is not None else ""

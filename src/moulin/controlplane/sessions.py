"""Who goes into a running task, and when they leave, as events; nothing here reaches into one."""

from collections.abc import Callable

from moulin.controlplane.commands import Answer, CloseSession, OpenSession
from moulin.controlplane.draft import Draft
from moulin.controlplane.lookup import pool_of
from moulin.controlplane.plane import Plane
from moulin.domain.errors import Conflict, NotFound
from moulin.domain.observation import TaskPhase
from moulin.domain.session import SessionTicket
from moulin.domain.session_events import SessionClosed, SessionOpened
from moulin.scheduler import TaskRow


def open_session(_plane: Plane, draft: Draft, command: OpenSession) -> Callable[[], Answer]:
    """Record a session before it begins, and answer with the task it goes into."""
    task = _running(draft, command)
    ticket = SessionTicket(
        session=command.session, step=task.step, pool=pool_of(draft.books.schedule, task.node)
    )
    draft.append(
        SessionOpened(
            session=command.session,
            workload=command.workload,
            step=task.step,
            purpose=command.purpose,
            by=command.principal.name,
            word=command.word,
        ),
        actor=command.principal.key,
        project=draft.books.schedule.workloads[command.workload].submission.project,
    )
    return lambda: ticket


def close_session(_plane: Plane, draft: Draft, command: CloseSession) -> Callable[[], Answer]:
    """Record that a session is over."""
    row = draft.books.schedule.workloads.get(command.workload)
    draft.append(
        SessionClosed(
            session=command.ticket.session,
            workload=command.workload,
            end=command.end,
            exit_code=command.exit_code,
        ),
        actor=command.principal.key,
        project=row.submission.project if row is not None else command.principal.project,
    )
    return lambda: command.ticket


def _running(draft: Draft, command: OpenSession) -> TaskRow:
    """Return the task that is meant, which runs; raises `NotFound` and `Conflict`."""
    schedule = draft.books.schedule
    named = f"{command.workload} unit {command.unit} rank {command.rank}"
    row = schedule.workloads.get(command.workload)
    if row is None or command.unit >= len(row.units):
        raise NotFound(f"enter {named}: there is no such task, or it ended long ago")
    attempt = schedule.latest_attempt(row.units[command.unit])
    if attempt is None or command.rank >= len(attempt.tasks):
        raise NotFound(
            f"enter {named}: it has no such task now",
            hint=f"`moulin show {command.workload}` lists its tasks",
        )
    task = attempt.tasks[command.rank]
    if task.is_ended or task.phase is not TaskPhase.RUNNING:
        raise Conflict(
            f"enter {named}: it does not run",
            hint=f"`moulin why {command.workload}` says where it stands",
        )
    return task

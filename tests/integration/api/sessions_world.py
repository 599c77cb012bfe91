"""Sessions of the stand-in: recorded like the control plane's, and led by commands of this machine."""

import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from moulin.controlplane import commands as c
from moulin.domain.errors import Conflict, EngineRefused
from moulin.domain.ids import StepId, attempt_id, step_id
from moulin.domain.session import Entry, EntryWanted, SessionTicket
from moulin.domain.session_events import SessionClosed, SessionOpened
from moulin.engines.task.entering import on_a_terminal

ENVIRONMENT: Final = {"PATH": os.environ["PATH"], "PS1": "> "}
# What stands at the far end of a port; a test puts its own here.
PORT_ENTRY = Entry(argv=("cat",), env=ENVIRONMENT)


def open_session(standin: Any, command: c.OpenSession) -> SessionTicket:
    if command.rank == 9:
        raise Conflict(f"enter {command.workload}: it does not run")
    step: StepId = step_id(attempt_id(command.workload, command.unit, 1), command.rank)
    payload = SessionOpened(
        session=command.session,
        workload=command.workload,
        step=step,
        purpose=command.purpose,
        by=command.principal.name,
        word=command.word,
    )
    standin.record(payload, actor=command.principal.key)
    return SessionTicket(session=command.session, step=step, pool="p")


def close_session(standin: Any, command: c.CloseSession) -> SessionTicket:
    payload = SessionClosed(
        session=command.ticket.session,
        workload=command.workload,
        end=command.end,
        exit_code=command.exit_code,
    )
    standin.record(payload, actor=command.principal.key)
    return command.ticket


def let_in(ticket: SessionTicket, wanted: EntryWanted) -> Entry:
    """Run the command here: on a terminal where one is wanted."""
    if wanted.command[:1] == ("refused",):
        raise EngineRefused(f"enter {ticket.step}: nobody gets in", hint="stay out")
    command = wanted.command or ("sh",)
    if wanted.port:
        return PORT_ENTRY
    env = {**ENVIRONMENT, "TERM": wanted.terminal}
    return Entry(argv=on_a_terminal(command) if wanted.terminal else command, env=env)


HANDLERS: Final[Mapping[type, Callable[[Any, Any], SessionTicket]]] = {
    c.OpenSession: open_session,
    c.CloseSession: close_session,
}

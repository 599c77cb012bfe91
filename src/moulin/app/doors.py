"""Lets people into running tasks, by whichever engine has them; says why where none can.

It decides nothing about who may.
"""

from moulin.api.services import Doorkeeper
from moulin.controlplane.plane import Plane
from moulin.domain.errors import EngineRefused, EngineUnavailable
from moulin.domain.session import Entry, EntryWanted, SessionTicket
from moulin.ports.engine import Enters


def doorkeeper(plane: Plane) -> Doorkeeper:
    """Return what asks the engine of a task's pool for a way in.

    It raises `EngineRefused` where there is none, `EngineUnavailable` when the engine is away.
    """

    def enter(ticket: SessionTicket, wanted: EntryWanted) -> Entry:
        """Return the program that goes into the task.

        Raises `EngineRefused` and `EngineUnavailable`, and what `Enters.entry` does.
        """
        engine = plane.engines.get(ticket.pool)
        if engine is None:
            raise EngineUnavailable(
                f"enter {ticket.step}: pool {ticket.pool} has no engine now", hint="try again later"
            )
        if not isinstance(engine, Enters):
            raise EngineRefused(
                f"enter {ticket.step}: nobody can go into tasks of pool {ticket.pool}, as its engine "
                "has no way in",
                hint="`moulin logs` shows what a task writes; local and Slurm pools can be entered",
            )
        return engine.entry(ticket.step, wanted)

    return enter

"""Who is asked for a way into a task, and what is said where there is none."""

from types import SimpleNamespace
from typing import Any

import pytest

from moulin.app.doors import doorkeeper
from moulin.domain.errors import EngineRefused, EngineUnavailable
from moulin.domain.ids import StepId
from moulin.domain.session import Entry, EntryWanted, SessionTicket

WANTED = EntryWanted(command=("ls",))


class Open:
    """An engine that lets people in."""

    def entry(self, step: StepId, wanted: EntryWanted) -> Entry:
        return Entry(argv=("enter", step, *wanted.command))


def keeper(**engines: Any) -> Any:
    plane: Any = SimpleNamespace(engines=engines)
    return doorkeeper(plane)


def ticket(pool: str) -> SessionTicket:
    return SessionTicket(session="ses_1", step=StepId("w.u0.g1.t0"), pool=pool)


def test_the_engine_of_the_tasks_pool_is_asked():
    entered = keeper(a=Open(), b=object())(ticket("a"), WANTED)
    assert entered.argv == ("enter", "w.u0.g1.t0", "ls")


def test_an_engine_without_a_way_in_refuses_with_the_reason():
    with pytest.raises(EngineRefused, match="its engine has no way in"):
        keeper(b=object())(ticket("b"), WANTED)


def test_an_engine_that_is_away_may_come_back():
    with pytest.raises(EngineUnavailable):
        keeper()(ticket("a"), WANTED)

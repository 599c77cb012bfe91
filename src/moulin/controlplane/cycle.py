"""The table of contents of Moulin: one cycle, the stages in order, each turning values into values.

    request -> identity -> policy -> schedule -> engine -> meter -> ledger

Everything a cycle learns and decides is one draft of events, folded as it is written and committed
whole; callers are answered and engines act only after the commit. A cycle never waits for a task.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from moulin.controlplane.act import act
from moulin.controlplane.allowances import raise_alerts, tell_alerts
from moulin.controlplane.answer import (
    Answered,
    answer_calls,
    release_answers,
    stopped_by_a_bug,
)
from moulin.controlplane.charge import charge
from moulin.controlplane.draft import Draft
from moulin.controlplane.forgetting import forget_due, record_forgotten
from moulin.controlplane.meter import meter
from moulin.controlplane.observe import observe
from moulin.controlplane.plane import Plane
from moulin.controlplane.rows import batch_of
from moulin.controlplane.schedule import schedule
from moulin.controlplane.secrets import shred_dropped
from moulin.controlplane.telling import tell_ends
from moulin.domain.errors import MoulinError


def cycle(plane: Plane, wait_s: float) -> int:
    """Run one cycle and return how many events it made durable.

    Waits at most `wait_s` for a first command. When anything fails before the commit, or the
    commit itself, nothing has happened: callers get the error and the books must be read again
    (see `recover.py`). Raises `StoreError` or `DiskFull` after the callers have been told.
    """
    # 1 request: commands that arrived since the last cycle; the edge has identified their callers
    calls = plane.inbox.take(wait_s, plane.settings.calls_max)
    answered = Answered(calls)
    draft = Draft(plane.books, plane.epoch, plane.now_ns())
    with all_or_nothing(plane, answered):
        # 2 identity, 3 policy: each command becomes events, or an error for its caller
        answer_calls(plane, draft, answered)

        # 4 what engines saw, before deciding from it, and what they have forgotten
        observe(plane, draft)
        record_forgotten(plane, draft)

        # 5 schedule: one pure decision from the state as drafted so far
        plan = schedule(plane, draft)

        # 6 meter and ledger: closed intervals become usages, charges, entries and receipts
        charge(plane, draft, meter(plane, draft))
        raise_alerts(draft)

        # 7 store: all of it or nothing
        commit(plane, draft)

    # 8 answers, then effects: the engines get what is now durable, and forget what was kept long
    # enough
    release_answers(plane, answered)
    act(plane, plan)
    forget_due(plane, draft)
    tell_alerts(plane, draft)
    tell_ends(plane, draft)
    shred_dropped(plane)
    return len(draft.events)


@contextmanager
def all_or_nothing(plane: Plane, answered: Answered) -> Iterator[None]:
    """Tell every caller when a cycle fails, and that its books hold what never became durable."""
    try:
        yield
    except Exception as error:
        plane.is_ahead = True
        answered.fail(error if isinstance(error, MoulinError) else stopped_by_a_bug())
        raise


def commit(plane: Plane, draft: Draft) -> None:
    """Make the draft durable, whole, and let the books go on from it."""
    if draft.is_empty and not draft.idempotency:
        return
    plane.ports.store.commit(batch_of(plane, draft))
    for origin, frontier in draft.frontiers.items():
        plane.evidence.keep(origin, frontier)
    plane.books.schedule.touched.clear()

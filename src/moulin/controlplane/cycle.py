"""The table of contents of Moulin: one cycle, the stages in order, each turning values into values.

    request -> identity -> policy -> schedule -> engine -> meter -> ledger

Everything a cycle learns and decides is one draft of events, folded as it is written and committed
whole; callers are answered and engines act only after the commit. A cycle never waits for a task.
"""

from moulin.controlplane.act import act
from moulin.controlplane.answer import Answered, answer_calls, release_answers
from moulin.controlplane.charge import charge
from moulin.controlplane.draft import Draft
from moulin.controlplane.meter import meter
from moulin.controlplane.observe import observe
from moulin.controlplane.plane import Plane
from moulin.controlplane.rows import batch_of
from moulin.controlplane.schedule import schedule
from moulin.domain.errors import MoulinError


def cycle(plane: Plane, wait_s: float) -> int:
    """Run one cycle and return how many events it made durable.

    Waits at most `wait_s` for a first command. When the commit fails nothing has happened:
    callers get the store's error and the books must be read again (see `recover.py`).
    Raises `StoreError` or `DiskFull` after the callers have been told.
    """
    # 1 request: commands that arrived since the last cycle; the edge has identified their callers
    calls = plane.inbox.take(wait_s, plane.settings.calls_max)
    draft = Draft(plane.books, plane.epoch, plane.now_ns())

    # 2 identity, 3 policy: each command becomes events, or an error for its caller
    answered = answer_calls(plane, draft, calls)

    # 4 what engines saw, before deciding from it
    observe(plane, draft)

    # 5 schedule: one pure decision from the state as drafted so far
    plan = schedule(plane, draft)

    # 6 meter and ledger: closed intervals become usages, charges, entries and receipts
    charge(plane, draft, meter(plane, draft))

    # 7 store: all of it or nothing
    commit(plane, draft, answered)

    # 8 answers, then effects: the engines get what is now durable
    release_answers(plane, answered)
    act(plane, plan)
    return len(draft.events)


def commit(plane: Plane, draft: Draft, answered: Answered) -> None:
    """Make the draft durable, or tell every caller that nothing was recorded."""
    if draft.is_empty and not draft.idempotency:
        return
    try:
        plane.ports.store.commit(batch_of(plane, draft))
    except MoulinError as error:
        plane.is_ahead = True
        answered.fail(error)
        raise
    for origin, frontier in draft.frontiers.items():
        plane.evidence.keep(origin, frontier)
    plane.books.schedule.touched.clear()

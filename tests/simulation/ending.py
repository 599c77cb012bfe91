"""The quiet end of a seed: faults stop, time passes, and everything has to settle."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moulin.controlplane.books import read_books
from moulin.domain.workload import WorkloadState
from moulin.scheduler import explain
from tests.simulation.actions import mend
from tests.simulation.gateway import truths
from tests.simulation.invariants import must

if TYPE_CHECKING:
    from tests.simulation.run import Simulation

CALM_S = (*[1] * 6, *[3] * 6, *[20] * 6)
DRAIN_S = (*[70] * 4, 700, 10, 700, 10, 700, 10)
MORE_STEPS_MAX = 200
BROKEN_EVERY = 3


def quiet_steps(it: "Simulation") -> Iterator[int]:
    """Yield how many seconds pass before each turn, doing what calms the factory in between.

    In some seeds a node that works has a counter that nobody can read ever again.
    """
    it.is_quiet = True
    it.faults.clear()
    it.nursing.heal_all()
    it.replies_lost = 0
    if it.former is not None:
        it.former.end()
        it.former = None
    for gateway in it.gateways:
        if not gateway.is_alive:
            gateway.start()
    if it.seed % BROKEN_EVERY == 1:
        it.machine.broken.update(sorted(it.judge.working_nodes())[:1])
    for duration_s in CALM_S:
        _calm(it)
        yield duration_s
    for gateway in it.gateways:
        gateway.is_finishing = True
    yield from DRAIN_S
    for _ in range(MORE_STEPS_MAX):
        if not any(it.judge.open_runs.values()) and not it.judge.books.schedule.steps:
            break
        yield 61
    yield from (700, 10)


def _calm(it: "Simulation") -> None:
    for place in it.places.values():
        mend(place)
    for gateway in it.gateways:
        while gateway.end():
            pass
    if it.process is None:
        return
    for engine in it.process.engines.by_pool.values():
        engine.inner.is_holding = engine.inner.is_doubling = False
        engine.inner.drop_observations(0)
    it.tenants.stop_all(it.process.inbox.call)
    for wish in it.tenants.wishes:
        if wish.is_open:
            it.tenants.resend(it.process.inbox.call, wish)


def judge_end(it: "Simulation") -> None:
    """Judge what must be true when nothing is wrong any more."""
    it.auditor.read_rows()
    it.auditor.judge_sums(it.judge.books)
    _judge_work(it)
    _judge_requests(it)
    books = it.judge.books
    for project, purse in sorted(it.auditor.purses.items()):
        kept = set(purse.reserved) & it.judge.finished
        must(not kept, f"{project} still holds money for {sorted(kept)}")
        must(not purse.settled, f"{project}: settled and never charged: {sorted(purse.settled)}")
        must(not any(purse.escrow.values()), f"{project}: escrow is left: {purse.escrow}")
    it.auditor.judge_estimates()
    it.auditor.judge_evidence()
    it.auditor.judge_energy(books)
    unmetered = [step for step, cursor in books.cursors.steps.items() if cursor.ended_ns]
    must(not unmetered, f"ended and never metered to the end: {unmetered}")
    it.kept.judge_end()
    it.nursing.judge_end()
    again = read_books(it.disk.reader.events(0))
    it.judge.compare(again)
    must(
        again.schedule.digest() == books.schedule.digest(),
        "the log folds to another digest when it is read again",
    )


def _judge_work(it: "Simulation") -> None:
    held = it.judge.books.schedule.steps
    running = {step for runs in it.judge.open_runs.values() for step in runs}
    must(running == set(held), f"at the end {sorted(running)} run and {sorted(held)} are held")
    schedule = it.judge.books.schedule
    policy, now_ns = it.machine.policy, it.clock.now_ns()
    for wish in it.tenants.wishes:
        must(not wish.is_open, f"{wish.key} was never answered")
        if wish.granted is None:
            continue
        row = schedule.workloads[wish.granted]
        if row.is_final:
            continue
        must(
            row.state is WorkloadState.ADMITTED,
            f"{row.submission.id} is {row.state} when all is over: {row.submission.spec}",
        )
        deadline_ns = row.deadline_at_ns
        must(not 0 < deadline_ns < now_ns, f"{row.submission.id} waits after its deadline")
        reasons = explain(schedule, row.submission.id, now_ns, policy)
        must(bool(reasons), f"{row.submission.id} waits for no reason: {row.submission.spec}")


def _judge_requests(it: "Simulation") -> None:
    """Each request that began is charged once: by its END, else from its reservation."""
    charged = it.auditor.charged_requests
    expected = truths(it.gateways)
    lost = {
        record.request
        for gateway in it.gateways
        for journal in gateway.written
        if journal.epoch in gateway.lost
        for record in journal.records
    }
    for request, (least, most) in expected.items():
        if request in lost and request not in charged:
            continue
        must(request in charged, f"{request} is never charged")
        must(
            least <= charged[request] <= most or request in it.auditor.repriced,
            f"{request} is charged {charged[request]}, not {least} to {most}",
        )
    must(set(charged) <= set(expected), "a request that never began is charged")

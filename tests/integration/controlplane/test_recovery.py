"""Failed commits, crashes and restarts: nothing acknowledged is lost, nothing runs twice."""

from concurrent.futures import Future
from dataclasses import fields, is_dataclass
from typing import cast

import numpy as np
import pytest

from moulin.controlplane.answer import HANDLERS
from moulin.controlplane.books import Books, read_books
from moulin.controlplane.commands import Answer, ReadStatus
from moulin.controlplane.recover import read_again
from moulin.controlplane.run import run
from moulin.domain.errors import (
    DiskFull,
    InternalError,
    InvariantViolated,
    StaleGeneration,
    StoreCorrupt,
    StoreUnavailable,
)
from moulin.domain.events import AttemptPlaced, EpochOpened, WorkloadSubmitted
from moulin.domain.views import WorkloadView
from moulin.domain.workload import Retry
from moulin.store.memory import MemoryStore, WritePoint
from moulin.store.opening import open_store
from tests.integration.controlplane.bench import Bench, endpoint, factory, job
from tests.integration.controlplane.serving import Gateway


def comparable(value):
    """Turn any book into plain values, whatever it is made of."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {repr(key): comparable(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, list | tuple) or type(value).__name__ == "deque":
        return [comparable(item) for item in value]
    if is_dataclass(value):
        return {each.name: comparable(getattr(value, each.name)) for each in fields(value)}
    slots = getattr(type(value), "__slots__", None)
    if slots and type(value).__module__.startswith("moulin"):
        return {name: comparable(getattr(value, name)) for name in slots if hasattr(value, name)}
    return repr(value)


def assert_books_are_the_log(bench: Bench) -> None:
    """The books in memory equal those folded anew from the log, one by one."""
    live, folded = bench.plane.books, read_books(bench.store.events(0))
    assert live.schedule.digest() == folded.schedule.digest()
    for each in fields(Books):
        if each.name != "schedule":
            mine, theirs = getattr(live, each.name), getattr(folded, each.name)
            assert comparable(mine) == comparable(theirs), each.name


def busy(bench: Bench) -> None:
    """Leave a bit of everything behind: ended, failed, waiting, running, served and metered."""
    bench.apply(*factory())
    bench.turn()
    bench.submit(job(3), key="a")
    bench.submit(job(1, exit_code=2, retry=Retry(attempts_max=2)))
    bench.submit(job(None, cpus=4))
    bench.submit(job(None, cpus=4))
    gate = Gateway(bench)
    served = bench.submit(endpoint())
    bench.create_key()
    bench.turns(3, 1.0)
    gate.sync(wants={"atelier": 10**7})
    gate.request("q1", served.id, end=True)
    gate.request("q2", served.id)
    gate.sync()
    bench.turns(30, 1.0)


@pytest.mark.parametrize("engine", ["memory", "sqlite"])
def test_books_are_what_the_log_says(engine, tmp_path):
    path = tmp_path / "moulin.sqlite"
    bench = Bench(open_store=(lambda: open_store(path)) if engine == "sqlite" else None)
    try:
        busy(bench)
        assert_books_are_the_log(bench)
        bench.reopen()
        assert_books_are_the_log(bench)
        bench.turns(20, 1.0)
        assert_books_are_the_log(bench)
    finally:
        bench.store.close()


def test_the_comparison_of_books_sees_a_difference():
    bench = Bench()
    busy(bench)
    bench.plane.books.balances.projects["atelier"].spent_neur += 1
    with pytest.raises(AssertionError, match="balances"):
        assert_books_are_the_log(bench)


# -- commits that fail ----------------------------------------------------------------------------


def failing(bench: Bench, error: Exception, point: WritePoint = WritePoint.BEFORE_COMMIT) -> None:
    def trip(reached: WritePoint) -> None:
        if reached is point:
            bench.fault = None
            raise error

    bench.fault = trip


@pytest.mark.parametrize("error", [StoreUnavailable("commit: outage"), DiskFull("commit: full")])
def test_a_failed_commit_is_told_and_leaves_no_trace(mill, error):
    before = mill.store.last_sequence()
    failing(mill, error)
    asked = [mill.ask(mill.submission(key="k")), mill.ask(ReadStatus())]
    with pytest.raises(type(error)):
        mill.turn()
    assert all(type(each.exception(0)) is type(error) for each in asked)
    assert not mill.floor.asked
    assert mill.store.last_sequence() == before
    read_again(mill.plane)
    assert_books_are_the_log(mill)
    assert mill.submit(job(1), key="k").state
    mill.turns(5, 1.0)
    assert len(mill.floor.asked) == 1


def test_the_loop_goes_on_after_an_outage(mill):
    failing(mill, StoreUnavailable("commit: outage"))
    asked = mill.ask(mill.submission(job(1)))
    slept: list[float] = []
    asked_again: list[Future[Answer]] = []
    cycles = iter(range(4))

    def sleep(seconds):
        slept.append(seconds)
        asked_again.append(mill.ask(mill.submission(job(1))))

    run(mill.plane, lambda: next(cycles, None) is None, sleep)
    assert isinstance(asked.exception(0), StoreUnavailable)
    assert len(slept) == 1
    assert isinstance(asked_again[0].result(0), WorkloadView)
    assert len(mill.events(WorkloadSubmitted)) == 1
    assert_books_are_the_log(mill)


def test_no_cycle_runs_while_the_log_cannot_be_read(mill):
    failing(mill, StoreUnavailable("commit: outage"))
    mill.ask(mill.submission(job(1)))
    events = mill.store.events
    outages = iter(range(3))

    def unreadable(*args):
        if next(outages, None) is not None:
            raise StoreUnavailable("read: outage")
        return events(*args)

    mill.store.events = unreadable
    slept: list[float] = []
    cycles = iter(range(8))
    run(mill.plane, lambda: next(cycles, None) is None, slept.append)
    assert len(slept) == 4
    assert slept == sorted(slept)
    assert not mill.floor.asked
    mill.store.events = events
    assert_books_are_the_log(mill)


@pytest.mark.parametrize("error", [StoreCorrupt("a gap"), StaleGeneration("another leads")])
def test_what_no_retry_cures_ends_the_loop_after_callers_were_told(mill, error):
    failing(mill, error)
    asked = mill.ask(mill.submission(job(1)))
    with pytest.raises(type(error)):
        run(mill.plane, lambda: False, lambda _s: None)
    assert type(asked.exception(0)) is type(error)


def test_a_commit_whose_answer_was_lost_costs_the_lead_and_loses_nothing(mill):
    failing(mill, StoreUnavailable("commit: no answer"), WritePoint.AFTER_COMMIT)
    asked = mill.ask(mill.submission(job(1), key="k"))
    with pytest.raises(StaleGeneration):
        run(mill.plane, lambda: False, lambda _s: None)
    assert isinstance(asked.exception(0), StoreUnavailable)
    mill.reopen()
    [recorded] = mill.events(WorkloadSubmitted)
    assert mill.submit(job(1), key="k").id == recorded.submission.id
    mill.turns(5, 1.0)
    assert mill.state(recorded.submission.id) == "succeeded"


@pytest.mark.parametrize("stage", ["observe", "schedule", "meter", "charge", "batch_of"])
def test_a_bug_in_a_stage_is_told_to_everybody_who_waits(mill, monkeypatch, stage):
    def broken(*_args):
        raise InvariantViolated("planted")

    monkeypatch.setattr(f"moulin.controlplane.cycle.{stage}", broken)
    asked = [mill.ask(mill.submission(job(1))) for _ in range(3)]
    with pytest.raises(InvariantViolated):
        mill.turn()
    assert [type(each.exception(0)) for each in asked] == [InternalError] * 3
    assert not mill.events(WorkloadSubmitted)


def test_a_bug_in_one_command_leaves_no_caller_waiting(mill, monkeypatch):
    def broken(*_args):
        raise InvariantViolated("planted")

    first = mill.ask(mill.submission(job(1)))
    second = mill.ask(ReadStatus())
    third = mill.ask(mill.submission(job(1)))
    monkeypatch.setitem(cast("dict", HANDLERS), ReadStatus, broken)
    with pytest.raises(InvariantViolated):
        mill.turn()
    assert all(isinstance(each.exception(0), InternalError) for each in (first, second, third))


def test_a_bug_in_an_answer_leaves_no_caller_waiting(mill, monkeypatch):
    def broken(*_args):
        raise KeyError("planted")

    monkeypatch.setattr("moulin.controlplane.answer.read_status", broken)
    first, second = mill.ask(ReadStatus()), mill.ask(mill.submission(job(1)))
    with pytest.raises(KeyError):
        mill.turn()
    assert isinstance(first.exception(0), InternalError)
    assert isinstance(second.exception(0), InternalError)
    assert mill.events(WorkloadSubmitted)


def test_no_answer_comes_before_the_commit(mill):
    asked = mill.ask(mill.submission(job(1)))
    refused = mill.ask(mill.submission(job(1, cpus=64)))
    commit = mill.store.commit
    seen: list[bool] = []

    def judge(batch):
        seen.extend((asked.done(), refused.done()))
        commit(batch)

    mill.store.commit = judge
    mill.turn()
    assert seen[:2] == [False, False]
    assert asked.result(0).state
    assert refused.exception(0) is not None


def test_a_caller_that_gave_up_before_its_turn_changes_nothing(mill):
    asked = mill.ask(mill.submission(job(1)))
    assert asked.cancel()
    mill.turn()
    assert not mill.events(WorkloadSubmitted)


def test_a_closing_inbox_tells_those_it_holds(mill):
    waiting = mill.ask(mill.submission(job(1)))
    mill.plane.inbox.close()
    late = mill.ask(mill.submission(job(1)))
    for each in (waiting, late):
        assert isinstance(each.exception(0), StoreUnavailable)
    mill.turn()
    assert not mill.events(WorkloadSubmitted)


# -- restarts -------------------------------------------------------------------------------------


def test_running_work_is_adopted_and_not_started_again(mill):
    view = mill.submit(job(10))
    mill.turns(3, 1.0)
    mill.reopen()
    mill.turns(15, 1.0)
    assert mill.state(view.id) == "succeeded"
    assert len(mill.floor.world.history) == 1
    assert [e.epoch for e in mill.events(EpochOpened)] == [1, 2]


def test_what_was_placed_and_not_started_is_started_once(mill):
    mill.floor.world.set_engine_reachable(False)
    view = mill.submit(job(3))
    assert len(mill.events(AttemptPlaced)) == 1
    mill.reopen()
    mill.floor.world.set_engine_reachable(True)
    mill.turns(10, 1.0)
    assert mill.state(view.id) == "succeeded"
    assert len(mill.events(AttemptPlaced)) == 1
    assert len(mill.floor.world.history) == 1


def test_a_decided_stop_is_repeated(mill):
    view = mill.submit(job(None))
    mill.turn(1)
    mill.floor.world.set_engine_reachable(False)
    mill.stop(view.id)
    mill.turn(1)
    mill.reopen()
    mill.floor.world.set_engine_reachable(True)
    mill.turns(5, 1.0)
    assert mill.state(view.id) == "cancelled"


def test_an_end_during_the_absence_is_noticed(mill):
    view = mill.submit(job(3))
    mill.turn(1)
    mill.store.close()
    mill.clock.time_ns += 3600 * 10**9
    mill.reopen()
    mill.turns(2, 1.0)
    assert mill.state(view.id) == "succeeded"
    [receipt] = mill.store.receipts(workload=view.id)
    assert receipt.usage.end_ns - receipt.usage.start_ns == 3 * 10**9


def test_a_second_leader_is_refused_and_the_first_goes_on(mill):
    other = MemoryStore(mill.disk)
    with pytest.raises(StoreUnavailable, match="leads"):
        other.open_epoch()
    assert mill.submit(job(1)).state


def test_a_former_leader_cannot_write(mill):
    mill.disk.leader = None
    other = MemoryStore(mill.disk)
    other.open_epoch()
    asked = mill.ask(mill.submission(job(1)))
    with pytest.raises(StaleGeneration):
        mill.turn()
    assert isinstance(asked.exception(0), StaleGeneration)
    assert not mill.events(WorkloadSubmitted)


def test_taking_the_lead_rewrites_no_rows(mill):
    mill.submit(job(1))
    mill.turns(3, 1.0)
    mill.disk.workloads.clear()
    mill.reopen()
    mill.turn()
    assert not mill.disk.workloads


def test_a_site_that_was_away_goes_on_where_its_evidence_ended(mill):
    mill.submit(job(1))
    mill.turns(15, 1.0)
    [leaves] = map(len, mill.disk.leaves.values())
    assert leaves
    objects = factory()
    mill.apply(*(o for o in objects if o.name not in ("hill", "east", "floor")))
    mill.turns(3, 1.0)
    mill.reopen()
    mill.apply(*objects)
    mill.turns(2, 1.0)
    view = mill.submit(job(1))
    mill.turns(15, 1.0)
    [receipt] = mill.store.receipts(workload=view.id)
    assert receipt.leaf_index >= leaves

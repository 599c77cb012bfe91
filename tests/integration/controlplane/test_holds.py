"""The money held for a workload stays until all it used is charged, and never for ever."""

from dataclasses import replace

import pytest

from moulin.controlplane.books import Books, fold_all
from moulin.controlplane.meter import NO_NODE_COUNTER, UNREAD_MAX_NS
from moulin.domain.errors import BudgetExceeded
from moulin.domain.events import IntervalMetered, NodeLeft, UsagesCharged, WorkloadFinished
from moulin.domain.observation import TaskPhase
from moulin.domain.usage import Meter
from moulin.domain.workload import Retry
from tests.integration.controlplane.bench import (
    EURO,
    SECOND,
    Bench,
    endpoint,
    factory,
    job,
    machines_of,
)
from tests.integration.controlplane.serving import Gateway

UNREAD_MAX_S = UNREAD_MAX_NS / SECOND


def held(bench: Bench) -> dict[str, int]:
    return dict(bench.plane.books.balances.reserved_by_workload)


def until_over(bench: Bench, workload: str) -> None:
    for _ in range(200):
        if bench.state(workload) in ("succeeded", "failed", "cancelled"):
            return
        bench.turn(1)
    pytest.fail(f"{workload} goes on")


def held_cpu_ms(bench: Bench, workload: str) -> int:
    found = bench.store.receipts(workload=workload, limit=10_000)
    return sum(receipt.usage.quantities.get(Meter.CPU_MILLI_MS, 0) for receipt in found)


# -- until the last charge ------------------------------------------------------------------------


def test_nothing_is_promised_again_before_the_last_interval_is_charged(mill):
    view = mill.submit(job(25))
    until_over(mill, view.id)
    assert held(mill)[view.id] == mill.row(view.id).reserved_neur > EURO // 2
    while view.id in held(mill):
        assert mill.available() == 99 * EURO
        mill.turn(1)
    assert mill.money().reserved_neur == mill.row(view.id).reserved_neur == 0
    assert mill.available() == 100 * EURO - mill.money().spent_neur
    assert abs(mill.money().spent_neur - EURO * 25 // 3600) <= 3


def test_a_hold_ends_with_the_charge_of_the_last_interval(mill):
    view = mill.submit(job(25))
    until_over(mill, view.id)
    before = len(mill.events(UsagesCharged))
    while len(mill.events(UsagesCharged)) == before:
        assert view.id in held(mill)
        mill.turn(1)
    assert view.id not in held(mill)


def test_a_tight_budget_is_never_overdrawn_by_what_kept_to_its_estimate(mill):
    mill.apply(*factory(budget_neur=EURO + EURO // 100))
    admitted = 0
    for _ in range(60):
        try:
            mill.submit(job(30))
        except BudgetExceeded:
            mill.turn(1)
        else:
            admitted += 1
        assert mill.available() >= 0
    assert admitted == 2
    mill.turns(15, 1.0)
    assert mill.money().held_neur == 0
    assert 0 <= mill.available() < EURO


def test_a_retried_job_holds_until_its_last_attempt_is_charged(mill):
    view = mill.submit(job(3, exit_code=1, retry=Retry(attempts_max=3, backoff_s=1)))
    until_over(mill, view.id)
    assert view.id in held(mill)
    mill.turns(12, 1.0)
    assert mill.state(view.id) == "failed"
    assert held_cpu_ms(mill, view.id) == 3 * 3000 * 1000
    assert held(mill) == {}


def test_a_gang_holds_until_all_its_tasks_are_charged(mill):
    view = mill.submit(job(12, nodes=2))
    mill.turn(1)
    mill.meters.broken.add("floor-1")
    until_over(mill, view.id)
    mill.turns(30, 1.0)
    assert held_cpu_ms(mill, view.id) == 12_000 * 1000
    assert held(mill)[view.id] > 0
    mill.meters.broken.clear()
    mill.turns(2, 1.0)
    assert held_cpu_ms(mill, view.id) == 2 * 12_000 * 1000
    assert held(mill) == {}


@pytest.mark.parametrize("peak_mw", [120_000, 0])
def test_at_every_event_what_is_charged_was_held(monkeypatch, peak_mw):
    monkeypatch.setattr(
        "tests.integration.controlplane.bench.machines_of",
        lambda *what: [
            replace(node, idle_mw=peak_mw // 3, peak_mw=peak_mw) for node in machines_of(*what)
        ],
    )
    bench = Bench()
    bench.apply(*factory())
    served = bench.submit(endpoint(replicas=2))
    for seconds in (0.0, 0.5, 11, 21):
        bench.submit(job(seconds))
        bench.submit(job(seconds, nodes=2, exit_code=1, retry=Retry(attempts_max=2)))
    bench.turns(60, 1.0)
    bench.stop(served.id)
    bench.turns(30, 1.0)
    books, charges = Books(), 0
    for event in bench.log():
        if isinstance(event.payload, UsagesCharged):
            charges += len(event.payload.items)
            workloads = {item.workload for item in event.payload.items}
            assert workloads <= books.balances.reserved_by_workload.keys()
        fold_all(books, event)
    assert charges > 20
    assert books.balances.reserved_by_workload == {}


def test_another_process_knows_what_is_held(mill):
    view = mill.submit(job(25))
    until_over(mill, view.id)
    before = held(mill)
    mill.reopen()
    assert held(mill) == before
    mill.turns(12, 1.0)
    assert held(mill) == {}
    mill.reopen()
    assert held(mill) == {}


# -- at once --------------------------------------------------------------------------------------


def test_what_was_never_placed_holds_nothing_once_it_is_over(mill):
    mill.submit(job(None, cpus=4))
    mill.submit(job(None, cpus=4))
    waiting = mill.submit(job(1, cpus=4))
    mill.stop(waiting.id)
    assert mill.state(waiting.id) == "cancelled"
    assert waiting.id not in held(mill)
    assert mill.row(waiting.id).reserved_neur == 0


def test_what_was_placed_and_never_started_holds_nothing_once_it_is_over(mill):
    mill.floor.world.set_engine_reachable(False)
    view = mill.submit(job(10))
    mill.stop(view.id)
    mill.floor.world.set_engine_reachable(True)
    until_over(mill, view.id)
    assert mill.events(WorkloadFinished)
    assert held(mill) == {}
    assert not [e for e in mill.events(IntervalMetered) if e.task_cpu_ns]


def test_a_task_that_used_nothing_is_metered_and_frees_its_money_without_a_charge(mill):
    view = mill.submit(job(0.0))
    mill.turns(20, 1.0)
    assert mill.state(view.id) == "succeeded"
    assert not mill.events(UsagesCharged)
    assert held(mill) == {}
    assert mill.row(view.id).reserved_neur == 0


# -- endpoints ------------------------------------------------------------------------------------


def test_an_endpoint_holds_until_its_last_interval_is_charged(mill):
    view = mill.submit(endpoint())
    mill.turns(25, 1.0)
    mill.stop(view.id)
    until_over(mill, view.id)
    assert held(mill)[view.id] > 0
    mill.turns(12, 1.0)
    assert held(mill) == {}
    assert mill.row(view.id).reserved_neur == 0


def test_an_endpoint_holds_while_a_gateway_may_still_tell_of_its_last_interval(mill):
    view = mill.submit(endpoint())
    mill.turns(3, 1.0)
    gateway = Gateway(mill)
    gateway.sync(wants={"atelier": EURO})
    gateway.begin("req_1", view.id, project="atelier", replica=f"{view.id}.u0.g1", tokens=500)
    gateway.sync()
    mill.turns(20, 1.0)
    mill.stop(view.id)
    mill.turns(30, 1.0)
    assert held(mill)[view.id] > 0
    gateway.end("req_1", view.id)
    gateway.sync()
    mill.turns(2, 1.0)
    assert held(mill) == {}


def test_an_endpoint_whose_gateway_is_silent_holds_no_longer_than_the_deadline(mill):
    view = mill.submit(endpoint())
    mill.turns(3, 1.0)
    gateway = Gateway(mill)
    gateway.sync(wants={"guest": 10})
    gateway.begin("req_1", view.id, project="guest", replica=f"{view.id}.u0.g1", tokens=1)
    gateway.sync()
    mill.stop(view.id)
    mill.turns(30, 1.0)
    assert held(mill)[view.id] > 0
    mill.turns(2, 600.0)
    assert held(mill) == {}


# -- never for ever -------------------------------------------------------------------------------


def test_a_counter_that_never_comes_back_frees_the_money_in_the_end(mill):
    view = mill.submit(job(30))
    mill.turns(12, 1.0)
    mill.meters.broken.update(("floor-0", "floor-1"))
    until_over(mill, view.id)
    mill.turns(10, 30.0)
    assert held(mill)[view.id] > 0
    mill.turns(2, UNREAD_MAX_S)
    assert held(mill) == {}
    assert held_cpu_ms(mill, view.id) == 30_000 * 1000
    last = mill.events(IntervalMetered)[-1]
    assert last.node_cpu_ns < 0
    assert NO_NODE_COUNTER in last.method


def test_what_runs_beside_a_broken_counter_is_charged_as_it_goes(mill):
    mill.submit(endpoint())
    mill.turns(12, 1.0)
    mill.meters.broken.update(("floor-0", "floor-1"))
    before = mill.money().spent_neur
    mill.turns(5, 650.0)
    assert mill.money().spent_neur > before + EURO * 3 * 600 // 3600


def test_a_counter_that_comes_back_late_starts_anew(mill):
    mill.submit(job(None, cpus=2))
    mill.turns(12, 1.0)
    [node] = {
        task.node for row in mill.plane.books.schedule.attempts.values() for task in row.tasks
    }
    mill.meters.broken.add(node)
    mill.turns(4, 650.0)
    mill.meters.broken.clear()
    since = len(mill.events(IntervalMetered))
    mill.turns(30, 1.0)
    intervals = [e for e in mill.events(IntervalMetered)[since:] if e.node == node]
    assert len(intervals) >= 3
    # The system takes 50 ms of CPU a second of four CPUs: 1 W of the span from 40 W to 120 W.
    for metered in intervals:
        duration_ms = (metered.end_ns - metered.start_ns) // 10**6
        assert metered.unattributed_mj <= duration_ms + 1


def test_a_task_that_nobody_can_reach_keeps_no_other_money_on_its_node(bench):
    bench.nodes = 1
    bench.apply(*factory())
    bench.turn()
    ended = bench.submit(job(23))
    lost = bench.submit(job(40))
    bench.turns(24, 1.0)
    assert bench.state(ended.id) == "succeeded"
    assert list(held(bench)) == [ended.id, lost.id]
    capacity = bench.floor.capacity
    bench.floor.capacity = lambda: ()
    bench.turns(2, 1.0)
    assert bench.events(NodeLeft)
    bench.meters.broken.add("floor-0")
    bench.floor.world.set_engine_reachable(False)
    bench.turns(10, UNREAD_MAX_S / 4)
    assert list(held(bench)) == [lost.id]
    assert held_cpu_ms(bench, ended.id) == 23_000 * 1000
    assert held_cpu_ms(bench, lost.id) < 30_000 * 1000
    bench.floor.capacity = capacity
    bench.meters.broken.clear()
    bench.floor.world.set_engine_reachable(True)
    bench.turns(15, 1.0)
    assert bench.state(lost.id) == "succeeded"
    assert held_cpu_ms(bench, lost.id) == 40_000 * 1000
    assert held(bench) == {}


def test_a_task_that_nobody_can_reach_does_not_close_an_interval_every_second(bench):
    bench.nodes = 1
    bench.apply(*factory())
    bench.turn()
    bench.submit(job(None))
    bench.submit(job(None))
    bench.turns(12, 1.0)
    lost = bench.floor.asked[0].step
    observe = bench.floor._observe
    bench.floor._observe = lambda step: (
        replace(observe(step), phase=TaskPhase.UNREACHABLE) if step == lost else observe(step)
    )
    bench.meters.broken.add("floor-0")
    bench.turns(3, UNREAD_MAX_S)
    before = len(bench.events(IntervalMetered))
    bench.turns(30, 1.0)
    assert len(bench.events(IntervalMetered)) == before > 2


def test_what_cannot_be_reached_is_not_charged_past_its_end(mill):
    view = mill.submit(replace(job(15), stop_grace_s=1))
    mill.turns(12, 1.0)
    mill.floor.world.set_engine_reachable(False)
    mill.turns(20, 1.0)
    assert held_cpu_ms(mill, view.id) < 15_000 * 1000
    mill.floor.world.set_engine_reachable(True)
    mill.turns(15, 1.0)
    assert mill.state(view.id) == "succeeded"
    assert held_cpu_ms(mill, view.id) == 15_000 * 1000
    assert held(mill) == {}

"""Every millisecond and millijoule of every task ends up on exactly one receipt."""

import itertools
from dataclasses import replace

import pytest

from moulin.controlplane.cursors import CROWDED
from moulin.domain.events import IntervalMetered, NodeLeft, UsagesCharged
from moulin.domain.usage import Meter
from moulin.domain.workload import Resources, WorkloadKind
from tests.integration.controlplane.bench import SECOND, START_NS, Bench, endpoint, factory, job


def receipts(bench, workload=""):
    return list(bench.store.receipts(workload=workload, limit=10_000))


def held_cpu_ms(bench, workload):
    return sum(r.usage.quantities.get(Meter.CPU_MILLI_MS, 0) for r in receipts(bench, workload))


def test_held_time_is_charged_to_the_millisecond_over_several_intervals(mill):
    view = mill.submit(job(34.5, cpus=2))
    mill.turns(60, 1.0)
    assert mill.state(view.id) == "succeeded"
    assert held_cpu_ms(mill, view.id) == 2000 * 34_500
    found = receipts(mill, view.id)
    assert len(found) >= 3
    assert all(a.usage.end_ns == b.usage.start_ns for a, b in itertools.pairwise(found))


def test_a_start_that_was_noticed_late_is_charged_from_its_beginning(mill):
    view = mill.submit(job(20))
    mill.turn(0.5)
    mill.floor.is_holding = True
    mill.turns(15, 1.0)
    mill.floor.is_holding = False
    mill.turns(30, 1.0)
    assert held_cpu_ms(mill, view.id) == 1000 * 20_000


def test_what_was_metered_is_on_rows_and_on_receipts(mill):
    for seconds in (3, 12, 25):
        mill.submit(job(seconds, cpus=2))
    mill.turns(50, 1.0)
    mill.clock.time_ns += 600 * SECOND
    mill.turns(3, 1.0)
    metered = mill.events(IntervalMetered)
    rows = mill.store.intervals(limit=10_000)
    assert sum(m.energy_mj for m in metered) == sum(r.energy_mj for r in rows) > 0
    for row in rows:
        assert row.energy_mj == row.allocated_mj + row.idle_mj + row.unattributed_mj
    allocated = sum(
        sum(m.task_energy_mj.values()) + sum(m.task_overhead_mj.values()) for m in metered
    )
    assert sum(r.usage.energy_mj for r in receipts(mill)) == allocated


def test_intervals_of_a_node_follow_one_another_without_gap_or_overlap(mill):
    mill.submit(job(40))
    mill.turns(60, 1.0)
    for node in ("floor-0", "floor-1"):
        rows = mill.store.intervals(node=node, limit=10_000)
        assert all(a.end_ns == b.start_ns for a, b in itertools.pairwise(rows))
        assert all(row.start_ns < row.end_ns for row in rows)


def test_a_node_without_a_counter_is_metered_by_its_tasks_and_no_more_often(mill):
    mill.meters.is_without = True
    view = mill.submit(job(34.5, cpus=2))
    mill.turns(60, 1.0)
    assert held_cpu_ms(mill, view.id) == 2000 * 34_500
    rows = [row for row in mill.store.intervals(limit=10_000) if row.energy_mj]
    assert all(row.energy_mj == row.allocated_mj + row.idle_mj for row in rows)
    assert 0 < len(mill.events(IntervalMetered)) <= 2 * (60 // 10 + 3)


def test_many_short_tasks_close_an_interval_before_its_time(mill):
    for _ in range(2 * CROWDED + 20):
        mill.submit(job(0.05, time_limit_s=60))
    mill.turns(90, 0.1)
    assert mill.clock.now_ns() - START_NS < 10 * SECOND
    assert len(receipts(mill)) >= CROWDED


def test_a_cycle_charges_only_so_many_and_a_restart_charges_the_rest(mill):
    for _ in range(2 * CROWDED + 20):
        mill.submit(job(0.05, time_limit_s=60))
    most = mill.plane.settings.charges_max
    while len(mill.plane.books.cursors.owed) < most:
        mill.turns(1, 0.1)
    charged = [len(event.items) for event in mill.events(UsagesCharged)]
    assert charged
    assert max(charged) == most
    mill.reopen()
    mill.turns(300, 0.1)
    assert not mill.plane.books.cursors.owed
    assert len({receipt.usage.id for receipt in receipts(mill)}) == len(receipts(mill))
    assert len({receipt.usage.workload for receipt in receipts(mill)}) == 2 * CROWDED + 20


def test_a_counter_that_starts_again_from_zero_charges_the_tasks_own_time(mill):
    view = mill.submit(job(30))
    mill.turns(12, 1.0)
    mill.meters.resets["floor-0"] = mill.meters.resets["floor-1"] = 10**15
    mill.turns(40, 1.0)
    assert held_cpu_ms(mill, view.id) == 30_000 * 1000
    methods = [r.usage.energy_method for r in receipts(mill, view.id)]
    assert any("not continued" in method for method in methods)
    assert all(m.unattributed_mj >= 0 and m.idle_mj >= 0 for m in mill.events(IntervalMetered))


def test_a_counter_that_cannot_be_read_makes_a_longer_interval(mill):
    view = mill.submit(job(30))
    mill.turns(12, 1.0)
    mill.meters.broken.update(("floor-0", "floor-1"))
    mill.turns(30, 1.0)
    assert mill.state(view.id) == "succeeded"
    assert held_cpu_ms(mill, view.id) < 30_000 * 1000
    mill.meters.broken.clear()
    mill.turns(2, 1.0)
    assert held_cpu_ms(mill, view.id) == 30_000 * 1000


def test_a_counter_that_was_unreadable_from_the_start_loses_no_held_time():
    bench = Bench()
    bench.meters.broken.update(("floor-0", "floor-1"))
    bench.apply(*factory())
    view = bench.submit(job(30))
    bench.turns(20, 1.0)
    bench.meters.broken.clear()
    bench.turns(30, 1.0)
    assert held_cpu_ms(bench, view.id) == 30_000 * 1000
    assert len({r.usage.id for r in receipts(bench)}) == len(receipts(bench))


def test_a_node_that_leaves_with_its_tasks_is_metered_to_their_end(mill):
    view = mill.submit(job(40))
    mill.turns(13, 1.0)
    capacity = mill.floor.capacity
    mill.floor.capacity = lambda: ()  # the machines still run, the engine names them no more
    mill.turns(2, 1.0)
    assert {e.node for e in mill.events(NodeLeft)} == {"floor-0", "floor-1"}
    mill.meters.broken.update(("floor-0", "floor-1"))
    mill.turns(60, 1.0)
    assert mill.state(view.id) == "succeeded"
    assert held_cpu_ms(mill, view.id) == 40_000 * 1000
    assert mill.plane.books.cursors.nodes == {}
    assert mill.plane.books.cursors.steps == {}
    mill.floor.capacity = capacity
    mill.meters.broken.clear()
    mill.turns(12, 1.0)
    assert sorted(mill.plane.books.cursors.nodes) == ["floor-0", "floor-1"]


def test_a_node_that_returns_goes_on_with_its_tasks(mill):
    view = mill.submit(job(40))
    mill.turns(13, 1.0)
    capacity = mill.floor.capacity
    mill.floor.capacity = lambda: ()
    mill.turns(5, 1.0)
    mill.floor.capacity = capacity
    mill.turns(50, 1.0)
    assert mill.state(view.id) == "succeeded"
    assert held_cpu_ms(mill, view.id) == 40_000 * 1000


def test_tasks_that_a_reboot_ended_are_not_charged_for_ever(mill):
    view = mill.submit(job(None))
    mill.turns(5, 1.0)
    [node] = {t.node for u in mill.row(view.id).units for t in u.tasks}
    mill.floor.is_holding = True  # no report of the end will come
    mill.floor.world.reboot(node)
    mill.turns(3, 1.0)
    mill.floor.is_holding = False
    mill.stop(view.id)
    mill.turns(30, 1.0)
    first = [r for r in receipts(mill, view.id) if r.usage.attempt.endswith("g1")]
    held = sum(r.usage.quantities[Meter.CPU_MILLI_MS] for r in first)
    assert 5_000 * 1000 <= held <= 8_000 * 1000
    assert mill.plane.books.cursors.steps == {}


def test_a_start_that_failed_for_a_while_is_charged_once_it_ran(mill):
    mill.floor.world.set_engine_reachable(False)
    view = mill.submit(job(10))
    mill.turn(0.5)
    mill.floor.world.set_engine_reachable(True)
    mill.turns(30, 1.0)
    assert mill.state(view.id) == "succeeded"
    assert held_cpu_ms(mill, view.id) == 10_000 * 1000


def test_a_lease_is_charged_for_the_whole_node_it_holds(mill):
    lease = replace(job(20), kind=WorkloadKind.LEASE, resources=Resources())
    view = mill.submit(lease)
    mill.turns(40, 1.0)
    assert held_cpu_ms(mill, view.id) == 4000 * 20_000


def test_work_that_never_started_has_no_receipt(mill):
    mill.floor.world.set_engine_reachable(False)
    view = mill.submit(job(10))
    mill.stop(view.id)
    mill.floor.world.set_engine_reachable(True)
    mill.turns(30, 1.0)
    assert mill.state(view.id) == "cancelled"
    assert receipts(mill, view.id) == []


def test_metering_forgets_what_is_charged(mill):
    for _ in range(30):
        mill.submit(job(1))
    served = mill.submit(endpoint())
    mill.turns(20, 1.0)
    mill.stop(served.id)
    mill.turns(40, 1.0)
    cursors = mill.plane.books.cursors
    assert cursors.steps == {}
    assert set(cursors.attempts) == set(cursors.retired)
    assert set(cursors.admissions) == {served.id}


def test_the_oldest_replicas_are_forgotten(mill, monkeypatch):
    monkeypatch.setattr("moulin.controlplane.cursors.RETIRED_KEPT", 1)
    for _ in range(3):
        view = mill.submit(endpoint())
        mill.turns(15, 1.0)
        mill.stop(view.id)
        mill.turns(30, 1.0)
    mill.turns(3, 300.0)
    served = mill.submit(endpoint())
    mill.turns(15, 1.0)
    mill.stop(served.id)
    mill.turns(30, 1.0)
    cursors = mill.plane.books.cursors
    assert len(cursors.attempts) <= 2
    assert {key[0] for key in cursors.open.closed_until_ns} <= set(cursors.attempts)


def test_nothing_is_metered_twice_when_time_stands_still(mill):
    for _ in range(40):
        mill.submit(job(0.0))
    mill.turns(20, 0.0)
    mill.turns(20, 1.0)
    assert len({i.usage for e in mill.events(UsagesCharged) for i in e.items}) == len(
        receipts(mill)
    )


def test_a_clock_set_back_between_two_processes_stops_metering_until_it_has_caught_up(mill):
    view = mill.submit(job(30))
    mill.turns(12, 1.0)
    mill.clock.time_ns -= 5 * SECOND
    mill.reopen()
    mill.turns(60, 1.0)
    assert mill.state(view.id) == "succeeded"
    rows = mill.store.intervals(limit=10_000)
    assert all(row.start_ns < row.end_ns for row in rows)


@pytest.mark.parametrize("pause_s", [0.1, 1.0, 7.0])
def test_sums_do_not_depend_on_when_intervals_close(pause_s):
    bench = Bench()
    bench.apply(*factory())
    view = bench.submit(job(21))
    bench.turns(int(60 / pause_s), pause_s)
    assert held_cpu_ms(bench, view.id) == 21_000 * 1000

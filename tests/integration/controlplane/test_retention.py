"""Logs and records of finished work go when their retention has passed: not sooner, and once."""

from dataclasses import replace

import pytest

from moulin.controlplane import forgetting
from moulin.controlplane.cycle import cycle
from moulin.controlplane.retention import Retention
from moulin.domain.errors import EngineRefused, StoreUnavailable
from moulin.domain.events import AttemptPlaced, TasksForgotten, WorkloadFinished
from moulin.domain.ids import WorkloadId, step_id
from moulin.domain.workload import Resources, Retry, WorkloadKind
from moulin.store.memory import WritePoint
from tests.integration.controlplane.bench import SECOND, Bench, endpoint, factory, job


def forgotten(bench: Bench) -> list[WorkloadId]:
    """The workloads whose forgetting is durable, in order."""
    return [name for event in bench.events(TasksForgotten) for name in event.workloads]


def steps_placed(bench: Bench) -> list[str]:
    return sorted(
        step_id(event.attempt, task.rank)
        for event in bench.events(AttemptPlaced)
        for task in event.tasks
    )


def test_a_jobs_records_go_when_its_retention_has_passed(mill):
    view = mill.submit(job(5, retention_s=100))
    mill.turns(15, 1.0)
    [end] = [e for e in mill.log() if isinstance(e.payload, WorkloadFinished)]
    mill.turn((end.at_ns + 100 * SECOND - 1 - mill.clock.now_ns()) / SECOND)
    assert mill.floor.forgotten == []
    mill.turns(2, 0.5)
    assert mill.floor.forgotten == [f"{view.id}.u0.g1.t0"]
    mill.turns(100, 10.0)
    assert forgotten(mill) == [view.id]
    assert len(mill.floor.forgotten) == 1
    [event] = [e for e in mill.log() if isinstance(e.payload, TasksForgotten)]
    assert (event.project, event.organisation) == ("atelier", "lab")
    assert mill.plane.books.retention == Retention()


def test_nothing_goes_before_it_is_metered_to_its_end(mill):
    mill.meters.broken.update(("floor-0", "floor-1"))
    view = mill.submit(job(5, retention_s=0))
    mill.turns(200, 1.0)
    assert mill.state(view.id) == "succeeded"
    assert mill.floor.forgotten == []
    mill.meters.broken.clear()
    mill.turns(60, 1.0)
    assert forgotten(mill) == [view.id]
    kinds = [e.kind for e in mill.log()]
    assert kinds.index("usages.charged") < kinds.index("tasks.forgotten")


def test_what_is_not_finished_is_kept(mill):
    mill.submit(job(None, retention_s=0, time_limit_s=50_000))
    mill.submit(endpoint(retention_s=0))
    mill.turns(100, 100.0)
    assert mill.floor.forgotten == []


def test_every_task_of_every_try_is_forgotten(mill):
    gang = job(3, nodes=2, exit_code=1, retry=Retry(attempts_max=3), retention_s=0)
    mill.submit(gang)
    served = mill.submit(endpoint(replicas=2, retention_s=0))
    lease = replace(job(5, retention_s=0), kind=WorkloadKind.LEASE, resources=Resources())
    mill.turns(10, 1.0)
    mill.scale(served.id, 1)
    mill.turns(10, 1.0)
    mill.stop(served.id)
    mill.turns(20, 1.0)
    mill.submit(lease)
    mill.turns(120, 1.0)
    assert sorted(mill.floor.forgotten) == steps_placed(mill)
    assert len(mill.floor.forgotten) == 6 + 2 + 1
    assert mill.floor.world.started_steps() == ()


def test_work_that_never_had_a_place_leaves_nothing_to_forget(mill):
    view = mill.submit(job(5, cpus=4, nodes=2, retention_s=0))
    other = mill.submit(job(5, cpus=4, nodes=2, retention_s=0))
    mill.stop(other.id)
    mill.turns(100, 1.0)
    assert forgotten(mill) == [view.id]


def test_an_engine_that_is_away_is_asked_again(mill):
    view = mill.submit(job(5, retention_s=50))
    mill.turns(30, 1.0)
    mill.floor.world.set_engine_reachable(False)
    mill.turns(200, 1.0)
    assert forgotten(mill) == []
    assert 1 <= len(mill.floor.forgotten) <= 4
    mill.floor.world.set_engine_reachable(True)
    mill.turns(70, 1.0)
    assert forgotten(mill) == [view.id]


def test_a_pool_without_an_engine_waits_for_it():
    bench = Bench()
    bench.apply(*factory())
    view = bench.submit(job(5, retention_s=0))
    bench.turns(20, 1.0)

    def refuse(_pool):
        raise EngineRefused("connect the pool: a test says so")

    bench.connect = refuse
    bench.reopen()
    bench.turns(100, 1.0)
    assert forgotten(bench) == []
    bench.connect = bench.engine_for
    bench.turns(100, 1.0)
    assert forgotten(bench) == [view.id]


def test_one_task_that_cannot_be_forgotten_holds_up_no_other(mill, monkeypatch):
    monkeypatch.setattr(forgetting, "STEPS_MAX", 2)
    views = [mill.submit(job(1, retention_s=20)) for _ in range(8)]
    bad = views[0].id
    mill.floor.unforgettable.add(f"{bad}.u0.g1.t0")
    mill.turns(200, 1.0)
    assert sorted(forgotten(mill)) == sorted(view.id for view in views[1:])
    mill.floor.unforgettable.clear()
    mill.turns(70, 1.0)
    assert len(forgotten(mill)) == 8


def test_one_pool_that_is_away_holds_up_no_other(mill, monkeypatch):
    monkeypatch.setattr(forgetting, "STEPS_MAX", 2)
    views = [mill.submit(job(1, retention_s=20, cpus=4)) for _ in range(2)]
    mill.turns(10, 1.0)
    mill.floor.world.set_reachable("floor-0", False)
    mill.turns(200, 1.0)
    assert len(forgotten(mill)) == 1
    mill.floor.world.set_reachable("floor-0", True)
    mill.turns(70, 1.0)
    assert sorted(forgotten(mill)) == sorted(view.id for view in views)


def test_a_cycle_forgets_only_so_much(mill, monkeypatch):
    monkeypatch.setattr(forgetting, "STEPS_MAX", 3)
    mill.submit(job(1, nodes=2, retention_s=50))
    mill.submit(job(1, nodes=2, retention_s=50))
    mill.submit(job(1, nodes=2, retention_s=50))
    mill.turns(20, 1.0)
    mill.turn(100.0)
    assert len(mill.floor.forgotten) == 3
    mill.turn()
    assert len(mill.floor.forgotten) == 6
    mill.turn()
    assert len(forgotten(mill)) == 3


def test_what_a_crash_left_unrecorded_is_forgotten_again_and_recorded_once(mill):
    view = mill.submit(job(5, retention_s=100))
    mill.turns(20, 1.0)
    mill.turn(100.0)
    assert len(mill.floor.forgotten) == 1
    mill.reopen()  # before the next cycle could record it
    mill.turns(5, 1.0)
    assert len(mill.floor.forgotten) == 2
    mill.reopen()
    mill.turns(100, 1.0)
    assert len(mill.floor.forgotten) == 2
    assert forgotten(mill) == [view.id]


def test_what_fell_due_while_nobody_led_goes_then(mill):
    view = mill.submit(job(5, retention_s=100))
    mill.turns(20, 1.0)
    mill.store.close()
    mill.clock.time_ns += 10_000 * SECOND
    mill.open()
    mill.turns(3, 1.0)
    assert forgotten(mill) == [view.id]


def test_an_event_that_was_not_committed_is_written_later(mill):
    view = mill.submit(job(5, retention_s=100))
    mill.turns(20, 1.0)
    mill.turn(100.0)

    def fail(_point: WritePoint) -> None:
        raise StoreUnavailable("a test says so")

    mill.fault = fail
    with pytest.raises(StoreUnavailable):
        cycle(mill.plane, 0.0)
    mill.fault = None
    mill.reopen()
    mill.turns(10, 1.0)
    assert forgotten(mill) == [view.id]


def test_retention_begins_when_the_end_is_known(mill):
    """After an outage longer than the retention, nobody has had a chance to read the log."""
    view = mill.submit(job(5, retention_s=100))
    mill.turns(2, 1.0)
    mill.store.close()
    mill.clock.time_ns += 10_000 * SECOND
    mill.open()
    mill.turns(50, 1.0)
    assert mill.row(view.id).ended_at_ns < mill.clock.now_ns() - 9_000 * SECOND
    assert mill.floor.forgotten == []
    mill.turns(100, 1.0)
    assert forgotten(mill) == [view.id]

"""What engines tell, fail to tell, tell late or twice; silence ends nothing."""

from dataclasses import replace

import pytest

from moulin.domain.errors import EngineError, EngineRefused, EngineUnavailable
from moulin.domain.events import (
    AttemptPlaced,
    IntervalMetered,
    NodeJoined,
    NodeLeft,
    NodeReachabilityChanged,
    TaskObserved,
    WorkloadFinished,
)
from moulin.domain.ids import StepId
from moulin.domain.observation import Observation, TaskPhase
from moulin.domain.usage import Meter
from moulin.domain.workload import Retry
from moulin.engines.simulated.world import World
from tests.integration.controlplane.bench import Machines, endpoint, job


def reachable(mill):
    return [row.is_reachable for row in mill.plane.books.schedule.nodes.rows]


def test_nodes_join_once_and_unchanged_ones_are_no_news(mill):
    mill.turns(20, 1.0)
    assert [e.capacity.node for e in mill.events(NodeJoined)] == ["floor-0", "floor-1"]


def test_events_of_a_place_name_its_site(mill):
    view = mill.submit(job(1))
    mill.turns(4, 1.0)
    mill.stop(view.id)
    of_a_place = (NodeJoined, AttemptPlaced, TaskObserved, IntervalMetered)
    sites = {type(e.payload): e.site for e in mill.log() if isinstance(e.payload, of_a_place)}
    [site] = set(sites.values())
    assert set(sites) == set(of_a_place)
    assert site == "hill"
    assert {e.site for e in mill.log() if isinstance(e.payload, WorkloadFinished)} == {""}


def test_a_quiet_factory_writes_nothing(mill):
    mill.turns(3, 1.0)
    before = mill.store.last_sequence()
    mill.turns(50, 0.2)
    assert mill.store.last_sequence() == before


@pytest.mark.parametrize("error", [EngineUnavailable("no answer"), EngineError("nonsense")])
def test_an_engine_that_cannot_be_asked_ends_nothing(mill, error):
    view = mill.submit(job(10))
    mill.turn(1)

    def fail(*_args):
        raise error

    machines = mill.floor
    saved = machines.capacity, machines.changes, machines.observe
    machines.capacity = machines.changes = machines.observe = fail
    mill.turns(60, 1.0)
    assert reachable(mill) == [False, False]
    assert mill.state(view.id) == "running"
    assert not mill.events(NodeLeft)
    assert not mill.events(WorkloadFinished)
    machines.capacity, machines.changes, machines.observe = saved
    mill.turns(40, 1.0)
    assert reachable(mill) == [True, True]
    assert mill.state(view.id) == "succeeded"
    changes = [(e.node, e.is_reachable) for e in mill.events(NodeReachabilityChanged)]
    assert changes == [
        ("floor-0", False),
        ("floor-1", False),
        ("floor-0", True),
        ("floor-1", True),
    ]


def test_a_node_that_is_cut_off_keeps_its_work_and_gets_no_more(mill):
    view = mill.submit(job(None, cpus=4))
    mill.turn(1)
    [placed] = mill.events(AttemptPlaced)
    node = placed.tasks[0].node
    mill.floor.world.set_reachable(node, False)
    mill.turns(3, 1.0)
    others = [mill.submit(job(1, cpus=4)) for _ in range(2)]
    mill.turns(10, 1.0)
    assert mill.state(view.id) == "running"
    assert [mill.state(other.id) for other in others] == ["succeeded", "succeeded"]
    assert node not in {t.node for e in mill.events(AttemptPlaced)[1:] for t in e.tasks}


def test_a_lost_report_of_an_end_is_found_by_asking(mill):
    view = mill.submit(job(5))
    mill.turn(1)
    mill.floor.drop_observations(10)
    mill.turns(10, 1.0)
    assert mill.state(view.id) == "running"
    mill.turns(30, 1.0)
    assert mill.state(view.id) == "succeeded"


def test_doubled_reports_are_one_event(mill):
    mill.floor.is_doubling = True
    view = mill.submit(job(5))
    mill.turns(20, 0.5)
    assert mill.state(view.id) == "succeeded"
    phases = [e.phase for e in mill.events(TaskObserved)]
    assert phases == ["running", "exited"]


def test_reports_of_foreign_steps_change_nothing(mill):
    first = mill.submit(job(2))
    mill.turns(5, 1.0)
    for pool in mill.machines.values():
        pool._is_first = True  # tells of all it ever had
    before = len(mill.events(TaskObserved))
    mill.turns(5, 1.0)
    assert len(mill.events(TaskObserved)) == before
    assert mill.state(first.id) == "succeeded"


def test_an_end_on_record_counts_although_the_node_was_restarted_since(mill):
    view = mill.submit(job(5, retry=Retry(attempts_max=3)))
    mill.turn(1)
    [placed] = mill.events(AttemptPlaced)
    mill.clock.time_ns += 10 * 10**9
    mill.floor.world.advance()
    mill.floor.world.reboot(placed.tasks[0].node)
    mill.turns(5, 1.0)
    assert mill.state(view.id) == "succeeded"
    assert len(mill.events(AttemptPlaced)) == 1


def test_work_lost_by_a_restart_of_its_node_is_tried_again_once(mill):
    view = mill.submit(job(5))
    mill.turn(1)
    [placed] = mill.events(AttemptPlaced)
    mill.floor.world.reboot(placed.tasks[0].node)
    mill.turns(30, 1.0)
    assert mill.state(view.id) == "succeeded"
    assert [e.generation for e in mill.events(AttemptPlaced)] == [1, 2]
    assert len(mill.floor.world.history) == 2


def test_work_lost_while_nobody_looked_is_charged_and_ended_up_to_then(mill):
    view = mill.submit(job(None))
    lost_ns = 0
    for _ in range(4):  # the last time is not tried again
        mill.turns(10, 1.0)
        [task] = mill.row(view.id).units[0].tasks
        lost_ns = mill.clock.now_ns()
        mill.store.close()
        mill.floor.world.reboot(task.node)
        mill.clock.time_ns += 3600 * 10**9
        mill.open()
    mill.turns(15, 1.0)
    row = mill.row(view.id)
    assert (row.state, row.ended_at_ns) == ("failed", lost_ns)
    used = [receipt.usage for receipt in mill.store.receipts(workload=view.id)]
    assert max(usage.end_ns for usage in used) == lost_ns
    held_ms = sum(usage.quantities[Meter.CPU_MILLI_MS] for usage in used) // 1000
    assert 4 * 5_000 <= held_ms <= 4 * 10_000


def test_starts_that_could_not_be_heard_are_repeated_until_they_are(mill):
    mill.floor.start_faults = [EngineUnavailable("lost")] * 5
    view = mill.submit(job(3))
    mill.turns(20, 0.5)
    assert mill.state(view.id) == "succeeded"
    assert len(mill.floor.asked) == 6
    assert len(mill.floor.world.history) == 1


def test_a_start_whose_answer_was_lost_runs_once(mill):
    mill.floor.world.lose_replies(1)
    view = mill.submit(job(3))
    mill.turns(20, 0.5)
    assert mill.state(view.id) == "succeeded"
    assert len(mill.floor.world.history) == 1


def test_waiting_for_a_start_is_no_news(mill):
    mill.floor.start_faults = [EngineUnavailable("lost")] * 50
    mill.submit(job(3))
    before = mill.store.last_sequence()
    for _ in range(100):
        mill.plane.due_ns.pop("sweep", None)
        mill.turn(0.01)
    assert mill.store.last_sequence() - before < 5


def test_a_placed_step_that_its_engine_never_had_is_started_again(mill):
    view = mill.submit(job(3))
    mill.plane.unstarted.clear()
    world = mill.floor.world
    for step in list(world._tasks):
        task = world._tasks.pop(step)
        world._tasks_on[task.node].clear()
    world._changed.clear()
    world._due.clear()
    mill.turns(60, 1.0)
    assert mill.state(view.id) == "succeeded"


def test_a_refused_start_is_a_failed_attempt_with_its_evidence(mill):
    mill.floor.start_faults = [EngineRefused("start it: there is no such workdir")]
    view = mill.submit(job(3))
    mill.turns(5, 0.5)
    row = mill.row(view.id)
    assert row.state == "failed"
    assert "no such workdir" in str(row.reasons)
    assert len(mill.floor.asked) == 1


def test_a_stop_that_could_not_be_heard_is_repeated(mill):
    view = mill.submit(job(None))
    mill.turn(1)
    mill.floor.world.set_engine_reachable(False)
    mill.stop(view.id)
    mill.turns(5, 0.5)
    assert len(mill.floor.stopped) >= 5
    mill.floor.world.set_engine_reachable(True)
    mill.turns(40, 1.0)
    assert mill.state(view.id) == "cancelled"
    assert not mill.plane.unstopped


def test_a_stop_is_not_repeated_for_ever_after_the_end(mill):
    view = mill.submit(job(None))
    mill.turn(1)
    saved = mill.floor.stop

    def fail(step, grace_s):
        mill.floor.stopped.append(step)
        raise EngineUnavailable("no answer")

    mill.floor.stop = fail
    mill.stop(view.id)
    mill.turn(1)
    saved(mill.floor.stopped[0], 0)
    mill.turns(3, 1.0)
    assert mill.state(view.id) == "cancelled"
    assert not mill.plane.unstopped


def test_no_engine_acts_before_the_commit(mill):
    seen = []
    commit = mill.store.commit

    def judge(batch):
        seen.append((len(mill.floor.asked), [e.kind for e in batch.events]))
        commit(batch)

    mill.store.commit = judge
    mill.submit(job(3))
    placing = [asked for asked, kinds in seen if "attempt.placed" in kinds]
    assert placing == [0]
    assert len(mill.floor.asked) == 1


class Walled(Machines):
    """Machines whose engine ends what runs at a time of its own."""

    wall_ns = 0

    def _observe(self, step: StepId) -> Observation:
        seen = super()._observe(step)
        return replace(seen, wall_ns=self.wall_ns) if seen.phase is TaskPhase.RUNNING else seen


def test_an_engine_that_ends_a_replica_at_another_time_is_news_once_and_of_a_job_never(mill):
    walled = Walled(World(mill.clock, mill.floor.capacity()))
    mill.connect = lambda pool: walled
    mill.reopen()
    mill.turn(1)
    served, _job = mill.submit(endpoint()), mill.submit(job(10**6))
    mill.turns(5, 1.0)
    sweep_s = mill.plane.settings.sweep_period_s
    for minutes in (60, 30):
        before = len(mill.events(TaskObserved))
        walled.wall_ns = mill.clock.now_ns() + minutes * 60 * 10**9
        mill.turns(3, sweep_s + 1.0)
        [told] = mill.events(TaskObserved)[before:]
        assert told.wall_ns == walled.wall_ns
        assert told.step.startswith(served.id)
        [row] = mill.plane.books.schedule.live_attempts(
            mill.plane.books.schedule.workloads[served.id]
        )
        assert row.ends_at_ns == walled.wall_ns

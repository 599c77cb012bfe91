"""The fold itself: gapless, deaf to repetition, exact about what is held, and bounded in memory."""

import pytest

from moulin.domain.errors import InvariantViolated, NotFound, StoreCorrupt
from moulin.domain.events import (
    AttemptPlaced,
    AttemptStopDecided,
    ChargedUsage,
    EpochOpened,
    Event,
    FactoryApplied,
    NodeJoined,
    NodeLeft,
    ObjectChange,
    Payload,
    UnitRequeued,
    UsagesCharged,
    WorkloadFinished,
    WorkloadRefused,
    WorkloadScaled,
    WorkloadStopRequested,
    WorkloadSubmitted,
)
from moulin.domain.factory import ObjectKind, Pool, Site, Zone
from moulin.domain.ids import AttemptId, NodeId, ProjectId, WorkloadId
from moulin.domain.observation import TaskPhase
from moulin.domain.plan import StopCause, TaskPlacement
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.workload import TaskTemplate, WorkloadKind, WorkloadState
from moulin.scheduler import (
    empty_state,
    fold,
    live_steps,
    node_views,
    site_draw_w,
    start_step,
    workload_view,
)
from moulin.scheduler.fold import PORT_COUNT, PORT_FIRST
from moulin.scheduler.state import FINISHED_KEPT
from tests.unit.scheduler.world import GB, World, endpoint, job, node, submission, world


@pytest.mark.parametrize("sequence", [0, 1, 3])
def test_the_sequence_is_gapless(sequence: int):
    state = empty_state()
    opened = EpochOpened(epoch=1, boot_id="b", version="1")
    fold(state, Event(sequence=1, epoch=1, at_ns=0, actor="x", payload=opened))
    with pytest.raises(StoreCorrupt):
        fold(state, Event(sequence=sequence, epoch=1, at_ns=0, actor="x", payload=opened))
    assert state.sequence == 1


def placed_world() -> World:
    here = world(node("n1", devices=4), node("n2", devices=4))
    here.submit("x", job(2, devices=1, nodes=2))
    here.cycle()
    return here


def test_a_placement_holds_and_its_end_gives_back_task_by_task():
    here = placed_world()
    held = here.state.held_by_project["web"]
    assert (held.cpu_milli, held.memory_bytes, held.accelerators, held.workloads) == (
        4000,
        2 * GB,
        2,
        1,
    )
    here.exit("x.u0.g1.t0")
    assert (held.cpu_milli, held.accelerators, held.workloads) == (2000, 1, 1)
    here.exit("x.u0.g1.t1")
    assert (held.cpu_milli, held.accelerators, held.workloads) == (0, 0, 0)


@pytest.mark.parametrize(
    "tasks",
    [
        (TaskPlacement(rank=0, node=NodeId("n1")), TaskPlacement(rank=1, node=NodeId("n1"))),
        (TaskPlacement(rank=0, node=NodeId("nowhere")),),
    ],
)
def test_a_placement_that_takes_what_is_not_there_is_a_bug(tasks: tuple[TaskPlacement, ...]):
    here = world(node("n1"))
    here.submit("x", job(3))
    with pytest.raises(InvariantViolated):
        here.add(
            AttemptPlaced(
                attempt=AttemptId("x.u0.g1"),
                workload=WorkloadId("x"),
                unit=0,
                generation=1,
                tasks=tasks,
            )
        )


def test_a_placement_under_another_generation_than_the_units_is_not_taken():
    here = world(node("n1"))
    here.submit("x", job())
    placed = TaskPlacement(rank=0, node=NodeId("n1"))
    for generation in (0, 2):
        here.add(
            AttemptPlaced(
                attempt=AttemptId(f"x.u0.g{generation}"),
                workload=WorkloadId("x"),
                unit=0,
                generation=generation,
                tasks=(placed,),
            )
        )
    assert not here.state.steps
    assert here.placed() == ["x"]


def test_a_device_cannot_be_held_twice():
    here = world(node("n1", devices=4))
    for name in ("x", "y"):
        here.submit(name, job(1, devices=1))
    placed = TaskPlacement(rank=0, node=NodeId("n1"), devices=(2,))
    at = lambda name: AttemptPlaced(
        attempt=AttemptId(f"{name}.u0.g1"),
        workload=WorkloadId(name),
        unit=0,
        generation=1,
        tasks=(placed,),
    )
    here.add(at("x"))
    with pytest.raises(InvariantViolated):
        here.add(at("y"))


def test_a_workload_may_not_end_before_its_attempts():
    here = placed_world()
    with pytest.raises(InvariantViolated):
        here.add(WorkloadFinished(workload=WorkloadId("x"), state=WorkloadState.FAILED))


def test_repeated_and_foreign_events_change_nothing():
    here = placed_world()
    row = here.state.workloads[WorkloadId("x")]
    reason = Reason(code=ReasonCode.BACKING_OFF)
    before = (here.state.digest(), here.state.sequence)
    repeated: list[Payload] = [
        next(event.payload for event in here.log if isinstance(event.payload, AttemptPlaced)),
        WorkloadSubmitted(submission=row.submission, reserved_neur=9, policy_decision=""),
        WorkloadRefused(submission=row.submission, reasons=()),
        UnitRequeued(
            workload=WorkloadId("x"), unit=0, generation=9, not_before_ns=0, reason=reason
        ),
        UnitRequeued(
            workload=WorkloadId("x"), unit=7, generation=2, not_before_ns=0, reason=reason
        ),
        UnitRequeued(
            workload=WorkloadId("y"), unit=0, generation=2, not_before_ns=0, reason=reason
        ),
        AttemptPlaced(
            attempt=AttemptId("x.u7.g1"), workload=WorkloadId("x"), unit=7, generation=1, tasks=()
        ),
        AttemptStopDecided(attempt=AttemptId("y.u0.g1"), cause=StopCause.BUDGET, grace_s=1),
        WorkloadScaled(workload=WorkloadId("x"), replicas=4, by="ada"),
        WorkloadScaled(workload=WorkloadId("y"), replicas=4, by="ada"),
        WorkloadStopRequested(workload=WorkloadId("y"), by="ada"),
        WorkloadFinished(workload=WorkloadId("y"), state=WorkloadState.FAILED),
        NodeLeft(node=NodeId("nowhere")),
    ]
    sequence = row.sequence
    for payload in repeated:
        here.add(payload)
    here.state.sequence, row.sequence = before[1], sequence
    assert here.state.digest() == before[0]


def test_equal_logs_give_equal_digests_and_other_logs_others():
    first, second, third = placed_world(), placed_world(), placed_world()
    third.run("x.u0.g1.t0")
    assert first.state.digest() == second.state.digest() != third.state.digest()


def test_a_refused_workload_can_be_asked_about():
    here = world()
    reasons = (Reason(code=ReasonCode.NO_SUCH_HARDWARE, parameters={"wanted": "8 × b300"}),)
    here.add(WorkloadRefused(submission=submission("x", job()), reasons=reasons))
    view = workload_view(here.state, WorkloadId("x"))
    assert (view.state, view.reasons, view.units) == ("refused", reasons, ())
    assert list(here.state.touched) == ["x"]


def test_charges_are_added_to_what_a_workload_spent():
    here = placed_world()
    item = ChargedUsage(
        usage="u", receipt="r", project=ProjectId("web"), workload="x", amount_neur=7, leaf_index=0
    )
    foreign = ChargedUsage(
        usage="v", receipt="s", project=ProjectId("web"), workload="q", amount_neur=9, leaf_index=1
    )
    here.add(UsagesCharged(origin="o", items=(item, item, foreign), tree_size=2, root=""))
    assert workload_view(here.state, WorkloadId("x")).spent_neur == 14


def test_only_the_last_finished_workloads_stay_in_memory():
    here = world(node("n1"))
    here.submit("first", job())
    here.cycle()
    here.exit("first.u0.g1.t0")
    here.cycle()
    for index in range(FINISHED_KEPT):
        here.add(WorkloadRefused(submission=submission(f"r{index}", job()), reasons=()))
    assert len(here.state.workloads) == FINISHED_KEPT
    assert not here.state.attempts
    with pytest.raises(NotFound):
        workload_view(here.state, WorkloadId("first"))


def test_nodes_stay_in_name_order_however_they_join_and_leave():
    here = world()
    for name in ("m", "z", "a", "q"):
        here.join(node(name, cpus=ord(name)))
    assert here.state.nodes.names == ["a", "m", "q", "z"]
    here.add(NodeLeft(node=NodeId("m")))
    assert [view.cpu_milli for view in node_views(here.state)] == [97_000, 113_000, 122_000]
    here.join(*(node(f"b{index:02}") for index in range(40)))
    assert here.state.nodes.names == sorted(here.state.nodes.names)
    assert all(here.state.nodes.names[i] == name for name, i in here.state.nodes.index.items())


def test_a_node_that_left_is_kept_until_nothing_is_held_there():
    here = placed_world()
    here.add(NodeLeft(node=NodeId("n1")))
    assert [view.is_reachable for view in node_views(here.state)] == [False, True]
    here.exit("x.u0.g1.t0")
    assert here.state.nodes.names == ["n2"]


def test_a_node_that_came_back_smaller_keeps_what_is_held_and_takes_no_more():
    here = placed_world()
    here.add(NodeJoined(pool="pa", capacity=node("n1", cpus=1, devices=0)))
    [view, _] = node_views(here.state)
    assert (view.cpu_milli, view.cpu_milli_held) == (1000, 2000)
    here.submit("y", job(1, nodes=2))
    assert here.placed() == []
    here.exit("x.u0.g1.t0")
    [view, _] = node_views(here.state)
    assert (view.cpu_milli_held, view.accelerators_held) == (0, 0)
    assert here.placed() == ["y"]


def test_views_follow_the_life_of_a_job():
    here = world(node("n1"))
    here.submit("x", job())
    view = workload_view(here.state, WorkloadId("x"))
    assert (view.state, view.units[0].state, view.units[0].tasks) == ("admitted", "waiting", ())
    here.cycle()
    view = workload_view(here.state, WorkloadId("x"))
    assert (view.state, view.units[0].state) == ("placed", "placed")
    here.now_ns = 5
    here.run("x.u0.g1.t0")
    here.now_ns = 9
    here.exit("x.u0.g1.t0", 0)
    here.cycle()
    view = workload_view(here.state, WorkloadId("x"))
    assert (view.state, view.started_at_ns, view.ended_at_ns) == ("succeeded", 5, 9)
    [task] = view.units[0].tasks
    assert (task.node, task.zone, task.phase, task.exit_code) == ("n1", "a", "exited", 0)
    assert view.sequence == len(here.log)


def test_readiness_and_addresses_are_kept_with_the_task():
    here = world(node("n1"))
    here.submit("e", endpoint())
    here.cycle()
    here.run("e.u0.g1.t0", is_ready=True, address="127.0.0.1:9")
    here.see("e.u0.g1.t0", TaskPhase.UNREACHABLE)
    [task] = workload_view(here.state, WorkloadId("e")).units[0].tasks
    assert (task.phase, task.is_ready) == ("unreachable", True)
    assert here.state.steps["e.u0.g1.t0"].address == "127.0.0.1:9"  # type: ignore[index]


def test_live_steps_are_those_not_proved_ended_in_order_of_placement():
    here = placed_world()
    assert list(live_steps(here.state)) == [("x.u0.g1.t0", "n1"), ("x.u0.g1.t1", "n2")]
    here.gone("x.u0.g1.t0")
    assert list(live_steps(here.state)) == [("x.u0.g1.t1", "n2")]


def test_a_start_step_says_everything_an_engine_needs():
    here = placed_world()
    step = start_step(here.state, AttemptId("x.u0.g1"), 1)
    assert (step.step, step.rank, step.nodes, step.devices) == (
        "x.u0.g1.t1",
        1,
        ("n1", "n2"),
        (0,),
    )
    assert (step.resources.cpu_milli, step.resources.accelerators) == (2000, 1)
    assert step.env["MASTER_ADDR"] == "127.0.0.1"
    assert PORT_FIRST <= int(step.env["MASTER_PORT"]) < PORT_FIRST + PORT_COUNT
    assert start_step(here.state, AttemptId("x.u0.g1"), 0).env == step.env


@pytest.mark.parametrize(("attempt", "rank"), [("x.u0.g1", 2), ("x.u0.g1", -1), ("y.u0.g1", 0)])
def test_what_is_not_live_cannot_be_started(attempt: str, rank: int):
    here = placed_world()
    with pytest.raises(NotFound):
        start_step(here.state, AttemptId(attempt), rank)


def test_an_ended_attempt_cannot_be_started():
    here = world(node("n1"))
    here.submit("x", job())
    here.cycle()
    here.exit("x.u0.g1.t0")
    with pytest.raises(NotFound):
        start_step(here.state, AttemptId("x.u0.g1"), 0)


def test_gangs_that_live_together_have_different_ports_and_ended_ones_give_theirs_back():
    here = world(node("n1"), node("n2"))
    for name in ("x", "y"):
        here.submit(name, job(nodes=2))
    here.cycle()
    ports = {
        start_step(here.state, AttemptId(f"{name}.u0.g1"), 0).env["MASTER_PORT"] for name in "xy"
    }
    assert len(ports) == 2
    for rank in (0, 1):
        here.exit(f"x.u0.g1.t{rank}")
    assert len(here.state.ports_held) == 1


def test_a_task_that_sets_its_own_rendezvous_keeps_it():
    here = world(node("n1"), node("n2"))
    here.submit("x", job(nodes=2, task=TaskTemplate(command=("t",), env={"MASTER_PORT": "1"})))
    here.cycle()
    env = start_step(here.state, AttemptId("x.u0.g1"), 0).env
    assert "MASTER_ADDR" in env
    assert "MASTER_PORT" not in env


def test_a_lease_starts_with_everything_its_node_has():
    here = world(node("n1", cpus=8, memory=32, devices=2))
    here.submit("x", job(1, kind=WorkloadKind.LEASE))
    here.cycle()
    resources = start_step(here.state, AttemptId("x.u0.g1"), 0).resources
    assert (resources.cpu_milli, resources.memory_bytes, resources.accelerators) == (
        8000,
        32 * GB,
        2,
    )


def test_a_sites_draw_counts_every_node_that_is_there():
    here = world(node("n1", idle_mw=100_000, peak_mw=300_000), node("n2", idle_mw=50_500))
    here.declare(Site(name="lyon", country="FR", pue_ppm=1_100_000))
    draw = lambda: site_draw_w(here.state.declared, here.state.nodes.columns, "lyon")
    assert draw() == 166
    here.submit("x", job(2))
    here.cycle()
    here.submit("y", job(2))
    here.cycle()
    assert draw() in {276, 386}
    assert site_draw_w(here.state.declared, here.state.nodes.columns, "nowhere") == 0


def test_removed_objects_close_their_nodes():
    here = world(node("n1"), more=(Zone(name="b", site="lyon"),))
    here.submit("x", job())
    gone = ObjectChange(kind=ObjectKind.POOL, name="pa")
    here.add(FactoryApplied(managed_by="t", changes=(gone,)))
    assert here.placed() == []
    assert here.state.zone_of_node(NodeId("n1")) == ""
    assert here.state.site_of_node(NodeId("n1")) is None
    here.declare(Pool(name="pa", zone="b", engine="local", machine_class="cpu"))
    assert here.placed() == ["x"]
    assert here.state.site_of_node(NodeId("n1")) is not None

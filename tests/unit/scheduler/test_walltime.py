"""Replicas whose own time ends: followed early enough, drained before the wall, never all at once."""

from dataclasses import replace

import pytest

from moulin.domain.events import DrainConfirmed, WorkloadScaled
from moulin.domain.gateway_events import GatewayEpochOpened
from moulin.domain.ids import AttemptId, WorkloadId
from moulin.domain.observation import TaskPhase
from moulin.domain.plan import StopCause
from moulin.domain.reasons import sentence
from moulin.domain.workload import Scaling, WorkloadState
from moulin.scheduler import explain, next_due_ns, plan_digest, start_step, workload_view
from moulin.scheduler.walltime import (
    LOAD_NS_ASSUMED,
    MOVED_NS,
    SPARE_NS,
    WAIT_NS_ASSUMED,
    expected_start,
    moves_end,
)
from tests.unit.scheduler.world import SECOND, World, endpoint, job, node, world

CHAT = WorkloadId("x")
LIMIT_S, DRAIN_S, GRACE_S = 3600, 120, 10
WAIT_S, LOAD_S = 40, 20
# From the end of its time back: its grace, the drain, and a start and a half with some to spare.
STOP_AT_S = LIMIT_S - GRACE_S
DRAIN_AT_S = STOP_AT_S - DRAIN_S
SUCCEED_AT_S = DRAIN_AT_S - (WAIT_S + LOAD_S) * 3 // 2 - SPARE_NS // SECOND


def served(replicas: int = 1, *, cpus: int = 8, of_node_s: int = 0, **scaling: int) -> World:
    """A world in which endpoint x waited 40 s for its machines, loaded 20 s and serves since."""
    here = world(node("n1", cpus=cpus, time_limit_s=of_node_s))
    here.now_ns = SECOND
    here.add(GatewayEpochOpened(gateway="gw", gateway_epoch=1))
    spec = endpoint(replicas, time_limit_s=0 if of_node_s else LIMIT_S)
    assert spec.endpoint is not None
    wanted = Scaling(**scaling) if scaling else None
    here.submit(
        "x", replace(spec, endpoint=replace(spec.endpoint, drain_s=DRAIN_S, scaling=wanted))
    )
    places = here.cycle().places
    serve(here, *(place.attempt for place in places))
    return here


def serve(here: World, *attempts: str) -> None:
    """Let replicas wait, start and be ready."""
    here.now_ns += WAIT_S * SECOND
    for attempt in attempts:
        here.run(f"{attempt}.t0")
    here.now_ns += LOAD_S * SECOND
    for attempt in attempts:
        here.run(f"{attempt}.t0", is_ready=True, address="127.0.0.1:1")


def go_to(here: World, after_s: int, attempt: str = "x.u0.g1") -> None:
    """Go to so many seconds after a replica's start."""
    here.now_ns = here.state.attempts[AttemptId(attempt)].started_at_ns + after_s * SECOND


def idle(here: World, attempt: str, *, is_idle: bool = True) -> None:
    here.add(
        DrainConfirmed(gateway="gw", gateway_epoch=1, attempt=AttemptId(attempt), is_idle=is_idle)
    )


def replicas(here: World) -> dict[str, str]:
    units = workload_view(here.state, CHAT).units
    return {unit.attempt: unit.replica for unit in units if unit.attempt}


def why(here: World) -> list[str]:
    return [sentence(reason) for reason in explain(here.state, CHAT, here.now_ns, here.policy)]


def test_a_successor_starts_in_time_takes_over_and_the_first_one_goes():
    here = served()
    go_to(here, SUCCEED_AT_S)
    here.now_ns -= 1
    assert here.cycle().is_empty
    assert next_due_ns(here.state) == here.now_ns + 1
    here.now_ns += 1
    [succession] = here.cycle().successions
    assert succession.attempt == "x.u0.g1"
    assert succession.ends_at_ns == here.state.attempts[succession.attempt].ends_at_ns
    [place] = here.cycle().places
    assert replicas(here) == {"x.u0.g1": "ready", place.attempt: "starting"}
    assert here.cycle().is_empty  # the first one serves until the other can
    serve(here, place.attempt)
    [drain] = here.cycle().drains
    assert (drain.attempt, drain.cause) == ("x.u0.g1", StopCause.ROLLED_OVER)
    assert drain.until_ns == here.now_ns + DRAIN_S * SECOND
    idle(here, drain.attempt)
    assert [stop.attempt for stop in here.cycle().stops] == [drain.attempt]
    here.exit("x.u0.g1.t0", 143)
    assert here.cycle().is_empty
    assert replicas(here) == {place.attempt: "ready"}
    assert here.state.workloads[CHAT].state is WorkloadState.RUNNING


def test_replicas_follow_one_another_for_ever():
    here = served()
    present = "x.u0.g1"
    seen = {present}
    for _ in range(6):
        go_to(here, SUCCEED_AT_S, present)
        here.cycle()
        [place] = here.cycle().places
        serve(here, place.attempt)
        [drain] = here.cycle().drains
        assert drain.attempt == present
        idle(here, present)
        here.cycle()
        here.exit(f"{present}.t0", 143)
        here.cycle()
        present = place.attempt
        assert present not in seen
        seen.add(present)
    assert len(here.state.workloads[CHAT].units) == 2  # places are used again
    assert replicas(here) == {present: "ready"}


def test_without_a_ready_successor_it_leaves_in_time_to_finish_what_it_has():
    here = served(cpus=1)  # there is no room for two
    go_to(here, DRAIN_AT_S)
    assert len(here.cycle().successions) == 1
    [drain] = here.cycle().drains
    assert drain.until_ns == here.now_ns + DRAIN_S * SECOND
    ends_ns = here.state.attempts[drain.attempt].ends_at_ns
    assert drain.until_ns == ends_ns - GRACE_S * SECOND
    assert any("nodes with room" in words for words in why(here))
    here.now_ns = drain.until_ns
    [stop] = here.cycle().stops
    assert stop.cause is StopCause.ROLLED_OVER
    here.exit("x.u0.g1.t0", 143)
    [place] = here.cycle().places
    assert place.workload == CHAT


def test_a_late_drain_never_lasts_beyond_the_end():
    here = served()
    go_to(here, STOP_AT_S - 30)  # the control plane was away
    here.cycle()
    [drain] = here.cycle().drains
    assert drain.until_ns == here.now_ns + 30 * SECOND


def test_what_nobody_drained_is_stopped_at_the_limit_and_begun_again():
    here = served(cpus=1)
    go_to(here, LIMIT_S)
    [stop] = here.cycle().stops
    assert stop.cause is StopCause.TIME_LIMIT
    here.exit("x.u0.g1.t0", 143)
    here.cycle()
    here.cycle()
    assert here.state.workloads[CHAT].state is WorkloadState.PLACED
    assert set(replicas(here).values()) == {"starting"}


def test_a_replica_that_the_engine_ended_leaves_its_place_to_its_successor():
    here = served()
    go_to(here, SUCCEED_AT_S)
    here.cycle()
    [place] = here.cycle().places
    here.gone("x.u0.g1.t0")
    assert here.cycle().requeues == ()
    assert replicas(here) == {place.attempt: "starting"}


def test_a_replica_that_never_served_has_no_successor():
    here = world(node("n1"))
    here.submit("x", endpoint(1, time_limit_s=LIMIT_S))
    here.cycle()
    here.run("x.u0.g1.t0")
    go_to(here, SUCCEED_AT_S)
    assert here.cycle().is_empty


def test_the_shortest_of_wish_and_partition_counts_and_is_what_the_engine_is_asked_for():
    here = served(of_node_s=600)
    assert start_step(here.state, AttemptId("x.u0.g1"), 0).time_limit_s == 600
    attempt = here.state.attempts[AttemptId("x.u0.g1")]
    assert attempt.ends_at_ns - attempt.started_at_ns == 600 * SECOND
    here.submit("j", job())
    assert [place.workload for place in here.cycle().places] == ["j"]
    assert start_step(here.state, AttemptId("j.u0.g1"), 0).time_limit_s == 3600  # a job's own


@pytest.mark.parametrize("limit_s", [20, 60, 200])
def test_however_short_its_time_it_serves_alone_for_a_quarter(limit_s):
    here = served(of_node_s=limit_s)
    go_to(here, 0)
    alone_ns = here.now_ns + limit_s * SECOND // 4
    assert next_due_ns(here.state) == alone_ns
    here.now_ns = alone_ns - 1
    assert here.cycle().is_empty


def test_starts_are_measured_and_the_longest_of_the_last_ones_counts():
    here = world(node("n1", cpus=8))
    here.submit("x", endpoint(1, time_limit_s=LIMIT_S))
    row = here.state.workloads[CHAT]
    start = expected_start(here.state, row)
    assert (start.wait_ns, start.load_ns, start.is_measured) == (
        WAIT_NS_ASSUMED,
        LOAD_NS_ASSUMED,
        False,
    )
    here.cycle()
    serve(here, "x.u0.g1")
    start = expected_start(here.state, row)
    assert (start.wait_ns, start.load_ns) == (WAIT_S * SECOND, LOAD_S * SECOND)
    assert start.is_measured


def test_a_successor_waits_from_when_it_was_wanted_not_from_when_it_was_placed():
    here = served(cpus=1)
    go_to(here, SUCCEED_AT_S)
    here.cycle()
    asked_ns = here.now_ns
    go_to(here, DRAIN_AT_S)
    here.cycle()
    idle(here, "x.u0.g1")
    here.cycle()
    here.exit("x.u0.g1.t0", 143)
    [place] = here.cycle().places
    serve(here, place.attempt)
    started_ns = here.state.attempts[place.attempt].started_at_ns
    assert here.state.waits["pa"][-1] == started_ns - asked_ns


def test_why_says_when_and_then_that():
    here = served()
    go_to(here, SUCCEED_AT_S - 60)
    [words] = why(here)
    assert words.startswith(f"replica x.u0.g1 may run for {LIMIT_S - SUCCEED_AT_S + 60} s more;")
    assert words.endswith("is started in 60 s, as a start takes about 60 s (measured)")
    go_to(here, SUCCEED_AT_S)
    here.cycle()
    here.cycle()
    left_s = LIMIT_S - SUCCEED_AT_S
    [words] = why(here)
    assert words == (
        f"1 replica(s) have reached the end of their time, the first in {left_s} s;"
        " 0 of 1 with time left are ready"
    )


def test_why_says_of_one_that_is_not_heard_that_nothing_follows():
    here = served()
    here.run("x.u0.g1.t0", is_ready=False, evidence="its registration ran out")
    assert here.cycle().is_empty
    assert why(here)[-1] == (
        "1 replica(s) that answered before get no requests, and are not restarted:"
        " x.u0.g1: its registration ran out"
    )


def test_the_one_that_ends_first_leaves_first():
    here = served()
    here.add(WorkloadScaled(workload=CHAT, replicas=2, by="ada"))
    serve(here, here.cycle().places[0].attempt)
    go_to(here, SUCCEED_AT_S + WAIT_S + LOAD_S)
    assert len(here.cycle().successions) == 2
    first, second = here.cycle().places
    serve(here, second.attempt)
    assert [drain.attempt for drain in here.cycle().drains] == ["x.u0.g1"]
    serve(here, first.attempt)
    assert [drain.attempt for drain in here.cycle().drains] == ["x.u1.g1"]


def test_an_endpoint_that_sleeps_has_nobody_to_follow():
    here = served(replicas_min=0, replicas_max=2, idle_s=60)
    here.now_ns += 61 * SECOND
    assert here.cycle().scales[0].replicas == 0
    [drain] = here.cycle().drains
    idle(here, drain.attempt)
    here.cycle()
    here.exit("x.u0.g1.t0", 143)
    here.now_ns += 2 * LIMIT_S * SECOND
    assert here.cycle().is_empty
    assert replicas(here) == {}


def test_scaling_to_nothing_takes_the_successor_along():
    here = served()
    go_to(here, SUCCEED_AT_S)
    here.cycle()
    here.cycle()
    here.add(WorkloadScaled(workload=CHAT, replicas=0, by="ada"))
    leaving = {drain.attempt: drain.cause for drain in here.cycle().drains}
    assert leaving == {
        "x.u0.g1": StopCause.ROLLED_OVER,
        "x.u1.g1": StopCause.SCALED_IN,
    }


def test_scaling_out_brings_no_replica_back_whose_time_ends():
    here = served()
    go_to(here, SUCCEED_AT_S)
    here.cycle()
    [place] = here.cycle().places
    serve(here, place.attempt)
    here.cycle()
    here.add(WorkloadScaled(workload=CHAT, replicas=2, by="ada"))
    assert len(here.cycle().places) == 1
    assert replicas(here)["x.u0.g1"] == "draining"


def test_a_clock_ahead_on_the_node_gives_nobody_more_time():
    here = world(node("n1"))
    here.now_ns = 100 * SECOND
    here.submit("x", endpoint(1, time_limit_s=LIMIT_S))
    here.cycle()
    here.see("x.u0.g1.t0", TaskPhase.RUNNING, None, started_at_ns=here.now_ns + 900 * SECOND)
    assert here.state.attempts[AttemptId("x.u0.g1")].ends_at_ns == (100 + LIMIT_S) * SECOND


def test_a_plan_without_successions_has_the_digest_it_always_had():
    here = served()
    plain = here.decide()
    go_to(here, SUCCEED_AT_S)
    plan = here.decide()
    assert plan_digest(plan) != plan_digest(replace(plan, successions=()))
    assert plan_digest(plain) == plan_digest(replace(plain, successions=()))


def test_nobody_follows_when_the_money_is_spent():
    here = served()
    go_to(here, SUCCEED_AT_S)
    here.cycle()
    here.policy = replace(here.policy, projects_exhausted=("web",))
    plan = here.cycle()
    assert plan.places == ()
    assert [stop.cause for stop in plan.stops] == [StopCause.BUDGET]


# -- an end that somebody moves in the batch system itself ----------------------------------------


def move(here: World, after_s: int, attempt: str = "x.u0.g1") -> int:
    """Let the engine say that it ends a replica so long after its start; return when that is."""
    wall_ns = here.state.attempts[AttemptId(attempt)].started_at_ns + after_s * SECOND
    here.run(f"{attempt}.t0", is_ready=True, address="127.0.0.1:1", wall_ns=wall_ns)
    return wall_ns


def ends_s(here: World, attempt: str = "x.u0.g1") -> int:
    row = here.state.attempts[AttemptId(attempt)]
    return (row.ends_at_ns - row.started_at_ns) // SECOND


def test_a_replica_that_is_given_less_time_is_followed_and_drained_before_its_new_end():
    here = served()
    go_to(here, 100)
    wall_ns = move(here, 1200)
    drain_at_s = 1200 - GRACE_S - DRAIN_S
    succeed_at_s = drain_at_s - (WAIT_S + LOAD_S) * 3 // 2 - SPARE_NS // SECOND
    assert any(f"may run for {1200 - 100} s more" in words for words in why(here))
    go_to(here, succeed_at_s)
    assert next_due_ns(here.state) == here.now_ns
    [succession] = here.cycle().successions
    assert succession.ends_at_ns == wall_ns
    [place] = here.cycle().places
    serve(here, place.attempt)
    assert [drain.cause for drain in here.cycle().drains] == [StopCause.ROLLED_OVER]
    idle(here, "x.u0.g1")
    assert [stop.cause for stop in here.cycle().stops] == [StopCause.ROLLED_OVER]
    here.exit("x.u0.g1.t0", 143)
    here.cycle()
    assert ends_s(here, place.attempt) == LIMIT_S  # its successor has all the time again
    assert here.state.time_limits.next_ns == here.state.attempts[place.attempt].ends_at_ns


def test_a_replica_whose_end_is_suddenly_near_is_followed_at_once_and_stopped_before_it():
    here = served(cpus=1)
    go_to(here, 1000)
    wall_ns = move(here, 1060)
    assert len(here.cycle().successions) == 1
    [drain] = here.cycle().drains
    assert drain.until_ns == wall_ns - GRACE_S * SECOND
    idle(here, "x.u0.g1", is_idle=False)
    here.now_ns = drain.until_ns
    assert [stop.cause for stop in here.cycle().stops] == [StopCause.ROLLED_OVER]


def test_one_that_drains_already_finishes_before_an_end_that_comes_sooner():
    here = served(cpus=1)
    go_to(here, DRAIN_AT_S)
    here.cycle()
    [drain] = here.cycle().drains
    idle(here, "x.u0.g1", is_idle=False)
    wall_ns = move(here, DRAIN_AT_S + 60)
    assert next_due_ns(here.state) == wall_ns - GRACE_S * SECOND < drain.until_ns
    here.now_ns = wall_ns - GRACE_S * SECOND
    assert [stop.attempt for stop in here.cycle().stops] == [drain.attempt]


def test_more_time_than_it_was_given_is_not_used_and_time_given_back_is():
    here = served()
    move(here, 2 * LIMIT_S)
    assert ends_s(here) == LIMIT_S
    move(here, 1200)
    assert ends_s(here) == 1200
    move(here, 2000)
    assert ends_s(here) == 2000
    move(here, LIMIT_S + 130)
    assert ends_s(here) == LIMIT_S
    assert [due.at_ns for due in here.state.time_limits.entries] == [
        here.state.attempts[AttemptId("x.u0.g1")].ends_at_ns
    ]
    go_to(here, SUCCEED_AT_S)
    here.now_ns -= 1
    assert here.cycle().is_empty


def test_a_replica_that_had_all_the_time_ends_when_its_engine_ends_it():
    here = world(node("n1", cpus=8))
    here.now_ns = SECOND
    here.add(GatewayEpochOpened(gateway="gw", gateway_epoch=1))
    here.submit("x", endpoint(1, time_limit_s=0))
    serve(here, here.cycle().places[0].attempt)
    assert next_due_ns(here.state) is None
    move(here, 3600)
    go_to(here, 3600 - 300)
    here.now_ns += 300 * SECOND
    assert len(here.cycle().successions) == 1


def test_only_an_end_that_differs_is_news_and_only_of_replicas():
    here = served()
    attempt = here.state.attempts[AttemptId("x.u0.g1")]
    own_ns = attempt.ends_at_ns
    for wall_ns, is_news in (
        (0, False),
        (own_ns + 130 * SECOND, False),
        (own_ns - MOVED_NS + 1, False),
        (own_ns - MOVED_NS, True),
    ):
        assert moves_end(here.state, attempt, wall_ns) is is_news
    move(here, 1200)
    assert not moves_end(here.state, attempt, attempt.ends_at_ns)
    assert moves_end(here.state, attempt, own_ns)
    here.submit("j", job())
    here.cycle()
    here.run("j.u0.g1.t0", wall_ns=here.now_ns + 60 * SECOND)
    of_job = here.state.attempts[AttemptId("j.u0.g1")]
    assert of_job.ends_at_ns == of_job.started_at_ns + 3600 * SECOND
    assert not moves_end(here.state, of_job, here.now_ns + 60 * SECOND)

"""How replicas leave: drained, confirmed by every gateway, stopped; and how a rollout uses it."""

from dataclasses import replace

import pytest

from moulin.domain.events import (
    DrainConfirmed,
    EndpointRolledOut,
    WorkloadScaled,
    WorkloadStopRequested,
)
from moulin.domain.gateway_events import GatewayEpochClosed, GatewayEpochOpened
from moulin.domain.ids import AttemptId, WorkloadId
from moulin.domain.workload import Resources
from moulin.scheduler import explain, live_steps, start_step, workload_view
from tests.unit.scheduler.test_scaling import ready
from tests.unit.scheduler.world import GB, SECOND, World, endpoint, node, world

CHAT = WorkloadId("x")
DRAIN_S, STALE_S = 300, 60


def served(replicas: int = 2, cpus: int = 8, drain_s: int = DRAIN_S) -> World:
    """A world in which every replica of endpoint x is ready and gateway gw serves."""
    here = world(node("n1", cpus=cpus))
    here.now_ns = SECOND
    here.add(GatewayEpochOpened(gateway="gw", gateway_epoch=1))
    spec = endpoint(replicas)
    assert spec.endpoint is not None
    here.submit("x", replace(spec, endpoint=replace(spec.endpoint, drain_s=drain_s)))
    for place in here.cycle().places:
        ready(here, place.attempt)
    return here


def model_of(here: World, attempt: str) -> str:
    started = start_step(here.state, AttemptId(attempt), 0).endpoint
    return started.model if started is not None else ""


def scale(here: World, replicas: int) -> None:
    here.add(WorkloadScaled(workload=CHAT, replicas=replicas, by="ada"))


def roll_out(here: World, revision: int = 2, cpus: int = 1) -> None:
    spec = here.state.workloads[CHAT].submission.spec
    assert spec.endpoint is not None
    wanted = replace(
        spec,
        endpoint=replace(spec.endpoint, model=f"m{revision}"),
        resources=Resources(cpu_milli=cpus * 1000, memory_bytes=GB),
    )
    here.add(
        EndpointRolledOut(
            workload=CHAT, spec=wanted, revision=revision, by="ada", policy_decision=""
        )
    )


def confirm(here: World, attempt: str, *, is_idle: bool = True, gateway: str = "gw") -> None:
    here.add(
        DrainConfirmed(
            gateway=gateway, gateway_epoch=1, attempt=AttemptId(attempt), is_idle=is_idle
        )
    )


def replicas(here: World) -> dict[str, tuple[int, str]]:
    units = workload_view(here.state, CHAT).units
    return {unit.attempt: (unit.revision, unit.replica) for unit in units if unit.attempt}


def stops(here: World) -> list[str]:
    return [stop.attempt for stop in here.cycle().stops]


def test_a_replica_is_stopped_when_the_gateway_has_nothing_under_way_there():
    here = served()
    scale(here, 1)
    assert [drain.attempt for drain in here.cycle().drains] == ["x.u1.g1"]
    assert replicas(here)["x.u1.g1"] == (1, "draining")
    assert here.decide().is_empty
    confirm(here, "x.u1.g1", is_idle=False)
    assert here.decide().is_empty
    confirm(here, "x.u1.g1")
    assert stops(here) == ["x.u1.g1"]
    here.exit("x.u1.g1.t0", 143)
    assert here.cycle().is_empty
    assert replicas(here) == {"x.u0.g1": (1, "ready")}


def test_every_gateway_is_waited_for_but_not_one_that_is_gone():
    here = served()
    here.add(GatewayEpochOpened(gateway="other", gateway_epoch=1))
    scale(here, 1)
    here.cycle()
    confirm(here, "x.u1.g1")
    assert here.decide().is_empty
    here.add(GatewayEpochClosed(gateway="other", gateway_epoch=1))
    assert stops(here) == ["x.u1.g1"]


def test_a_gateway_that_started_meanwhile_is_waited_for():
    here = served()
    scale(here, 1)
    here.cycle()
    here.add(GatewayEpochOpened(gateway="gw", gateway_epoch=2))
    here.add(GatewayEpochClosed(gateway="gw", gateway_epoch=1))
    confirm(here, "x.u1.g1")
    assert here.decide().is_empty


@pytest.mark.parametrize(
    ("drain_s", "is_told", "stops_at_s"),
    [(300, True, 300), (300, False, 300), (10, True, 10), (10, False, STALE_S)],
)
def test_a_grace_ends_but_never_before_a_gateway_stopped_sending(drain_s, is_told, stops_at_s):
    here = served(drain_s=drain_s)
    scale(here, 1)
    here.cycle()
    if is_told:
        confirm(here, "x.u1.g1", is_idle=False)
    here.now_ns += stops_at_s * SECOND - 1
    assert stops(here) == []
    here.now_ns += 1
    assert stops(here) == ["x.u1.g1"]


def test_a_replica_no_gateway_ever_knew_is_stopped_at_once():
    here = world(node("n1"))
    here.now_ns = SECOND
    here.add(GatewayEpochOpened(gateway="gw", gateway_epoch=1))
    here.submit("x", endpoint(2))
    here.cycle()
    here.run("x.u0.g1.t0", is_ready=True, address="a:1")
    here.run("x.u1.g1.t0")
    scale(here, 1)
    here.cycle()
    assert stops(here) == ["x.u1.g1"]


def test_the_least_useful_replica_goes():
    here = served(3)
    here.run("x.u0.g1.t0", is_ready=False)
    scale(here, 2)
    assert [drain.attempt for drain in here.cycle().drains] == ["x.u0.g1"]


def test_scaling_out_takes_a_draining_replica_back():
    here = served()
    scale(here, 1)
    here.cycle()
    scale(here, 2)
    assert here.cycle().is_empty
    assert replicas(here)["x.u1.g1"] == (1, "ready")
    assert here.decide().is_empty


def test_a_rollout_replaces_replicas_one_for_one_as_the_new_ones_serve():
    here = served()
    roll_out(here)
    assert [place.attempt for place in here.cycle().places] == ["x.u2.g1", "x.u3.g1"]
    assert here.cycle().is_empty
    ready(here, "x.u2.g1")
    assert [drain.attempt for drain in here.cycle().drains] == ["x.u1.g1"]
    ready(here, "x.u3.g1")
    assert [drain.attempt for drain in here.cycle().drains] == ["x.u0.g1"]
    for attempt in ("x.u0.g1", "x.u1.g1"):
        confirm(here, attempt)
    assert sorted(stops(here)) == ["x.u0.g1", "x.u1.g1"]
    for attempt in ("x.u0.g1", "x.u1.g1"):
        here.exit(f"{attempt}.t0", 143)
    assert here.cycle().is_empty
    assert replicas(here) == {"x.u2.g1": (2, "ready"), "x.u3.g1": (2, "ready")}


def test_a_rollout_in_little_room_goes_replica_by_replica():
    here = served(2, cpus=3)
    roll_out(here)
    assert [place.attempt for place in here.cycle().places] == ["x.u2.g1"]
    assert here.cycle().is_empty
    ready(here, "x.u2.g1")
    here.cycle()
    confirm(here, "x.u1.g1")
    assert stops(here) == ["x.u1.g1"]
    here.exit("x.u1.g1.t0", 143)
    assert [place.attempt for place in here.cycle().places] == ["x.u3.g1"]


def test_each_replica_runs_and_holds_what_its_own_revision_says():
    here = served(1)
    roll_out(here, cpus=3)
    here.cycle()
    cpus = {step: here.state.steps[step].cpu_milli for step, _ in live_steps(here.state)}
    assert cpus == {"x.u0.g1.t0": 1000, "x.u1.g1.t0": 3000}
    models = [model_of(here, attempt) for attempt in ("x.u0.g1", "x.u1.g1")]
    assert models == ["m", "m2"]


def test_a_former_replica_that_dies_during_a_rollout_starts_again_as_what_it_was():
    here = served(1)
    roll_out(here, cpus=3)
    here.cycle()
    here.exit("x.u0.g1.t0", 1)
    here.cycle()
    here.now_ns += 60 * SECOND
    assert [place.attempt for place in here.cycle().places] == ["x.u0.g2"]
    assert model_of(here, "x.u0.g2") == "m"
    ready(here, "x.u1.g1")
    assert [drain.attempt for drain in here.cycle().drains] == ["x.u0.g2"]


def test_a_former_replica_that_waits_is_given_up_when_the_new_one_serves():
    here = served(1)
    roll_out(here)
    here.cycle()
    here.exit("x.u0.g1.t0", 1)
    here.cycle()
    ready(here, "x.u1.g1")
    here.cycle()
    here.now_ns += 600 * SECOND
    assert here.cycle().is_empty
    assert replicas(here) == {"x.u1.g1": (2, "ready")}


def test_a_former_replica_is_not_placed_again_when_the_new_one_serves_at_the_same_moment():
    here = served(1)
    roll_out(here)
    here.cycle()
    here.exit("x.u0.g1.t0", 1)
    [requeue] = here.cycle().requeues
    ready(here, "x.u1.g1")
    here.now_ns = requeue.not_before_ns
    plan = here.cycle()
    assert [drain.attempt for drain in plan.drains] == ["x.u0.g1"]
    assert plan.places == ()
    assert here.cycle().is_empty


def test_going_back_keeps_the_replicas_that_are_still_there():
    here = served()
    roll_out(here)
    here.cycle()
    ready(here, "x.u2.g1")
    here.cycle()
    assert replicas(here)["x.u1.g1"] == (1, "draining")
    roll_out(here, revision=1)
    assert replicas(here)["x.u1.g1"] == (1, "ready")
    drained = {drain.attempt for drain in here.cycle().drains}
    assert drained == {"x.u2.g1", "x.u3.g1"}
    serving = here.state.workloads[CHAT].serving
    assert serving is not None
    assert serving.revision_last == 2


def test_going_back_after_the_end_starts_anew_while_the_new_ones_serve():
    here = served(1)
    roll_out(here)
    here.cycle()
    ready(here, "x.u1.g1")
    here.cycle()
    confirm(here, "x.u0.g1")
    here.cycle()
    here.exit("x.u0.g1.t0", 143)
    roll_out(here, revision=1)
    assert [place.attempt for place in here.cycle().places] == ["x.u0.g2"]
    assert replicas(here)["x.u1.g1"] == (2, "ready")


def test_why_tells_how_far_a_rollout_is_and_what_drains():
    here = served()
    roll_out(here)
    here.cycle()
    ready(here, "x.u2.g1")
    here.cycle()
    found = {
        r.code.value: dict(r.parameters)
        for r in explain(here.state, CHAT, here.now_ns, here.policy)
    }
    assert found == {
        "RollingOut": {"revision": "2", "ready": "1", "wanted": "2", "former": "1"},
        "Draining": {"count": "1", "left_s": str(DRAIN_S)},
    }


def test_a_stop_ends_draining_replicas_too():
    here = served()
    scale(here, 1)
    here.cycle()
    here.add(WorkloadStopRequested(workload=CHAT, by="ada"))
    assert stops(here) == ["x.u0.g1", "x.u1.g1"]
    assert here.state.drains == {}

"""Load, drains and rollouts as gateways and tenants bring them: events, snapshots, receipts, refusals."""

from dataclasses import replace
from typing import Any

import pytest

from moulin.controlplane.commands import (
    ExplainWorkload,
    RolloutEndpoint,
    ScaleEndpoint,
    SyncGateway,
)
from moulin.domain.control import RolloutWanted
from moulin.domain.errors import Conflict, InvalidRequest, Refused
from moulin.domain.events import DrainConfirmed, LoadReported, ReplicasDecided
from moulin.domain.ids import WorkloadId
from moulin.domain.snapshot import EndpointLoad, GatewayLoad, SyncRequest
from moulin.domain.workload import Scaling
from tests.integration.controlplane.bench import ADMIN, BIG_MODEL, endpoint, factory, job
from tests.integration.controlplane.serving import GATEWAY, Gateway

IDLE_S = 5


@pytest.fixture
def followed(mill):
    """An endpoint that follows its load, its first replica ready; and a gateway that serves."""
    spec = endpoint()
    assert spec.endpoint is not None
    scaling = Scaling(replicas_max=3, idle_s=IDLE_S, stabilise_s=5)
    view = mill.submit(replace(spec, endpoint=replace(spec.endpoint, scaling=scaling)))
    mill.turns(2, 1.0)
    gate = Gateway(mill)
    gate.sync()
    return mill, view.id, gate


def tell(gate, load: GatewayLoad):
    request = SyncRequest(
        gateway=gate.name,
        epoch=gate.epoch,
        records_epoch=gate.epoch,
        snapshot_version=gate.snapshot_version,
        load=load,
    )
    reply = gate.bench.tell(SyncGateway(principal=GATEWAY, request=request))
    if reply.snapshot is not None:
        gate.snapshot_version = reply.snapshot.version
    return reply


def load(workload: str, in_flight: int = 0, queued: int = 0, busy: tuple[str, ...] = ()):
    each = EndpointLoad(endpoint=workload, in_flight=in_flight, queued=queued)
    return GatewayLoad(endpoints=(each,) if in_flight or queued else (), busy=busy)


def roll_out(mill, workload: str, **wanted: Any):
    command = RolloutEndpoint(
        principal=ADMIN, workload=WorkloadId(workload), wanted=RolloutWanted(**wanted)
    )
    return mill.tell(command)


def replicas(gate) -> list[str]:
    gate.snapshot_version = 0
    [model] = tell(gate, GatewayLoad()).snapshot.models
    return [replica.attempt.removeprefix(model.endpoint) for replica in model.replicas]


def test_a_steady_load_writes_one_event(followed):
    mill, workload, gate = followed
    for _ in range(20):
        tell(gate, load(workload, in_flight=3))
        mill.turn(1.0)
    assert len(mill.events(LoadReported)) == 1
    assert [decided.replicas for decided in mill.events(ReplicasDecided)] == [2]
    assert len(replicas(gate)) == 2


def test_an_endpoint_sleeps_and_wakes_and_its_snapshot_says_how_long_to_wait(followed):
    mill, workload, gate = followed
    mill.turns(IDLE_S + 1, 1.0)
    [model] = tell(gate, GatewayLoad()).snapshot.models
    assert (model.replicas, model.cold_start_s) == ((), 300)
    tell(gate, GatewayLoad())
    mill.turns(3, 1.0)
    assert mill.row(workload).units == ()
    tell(gate, load(workload, queued=1))
    mill.turns(3, 1.0)
    assert replicas(gate) == [".u0.g2"]


def test_a_gateway_that_never_comes_back_asks_for_nothing_after_a_while(followed):
    mill, workload, gate = followed
    tell(gate, load(workload, in_flight=6))
    mill.turns(3, 1.0)
    assert mill.row(workload).units_wanted == 3
    mill.turns(80, 1.0)
    assert mill.row(workload).units_wanted == 0


def test_a_replica_is_stopped_when_the_gateway_serves_from_a_snapshot_without_it_and_is_done(
    followed,
):
    mill, workload, gate = followed
    mill.scale(workload, 2)
    mill.turns(3, 1.0)
    assert replicas(gate) == [".u0.g1", ".u1.g1"]
    mill.scale(workload, 1)
    mill.turn()
    leaving = f"{workload}.u1.g1"
    tell(gate, load(workload, 1))
    assert mill.events(DrainConfirmed) == []
    tell(gate, load(workload, 1, busy=(leaving,)))
    mill.turns(3, 1.0)
    assert [unit.replica for unit in mill.row(workload).units] == ["ready", "draining"]
    tell(gate, load(workload))
    assert [each.is_idle for each in mill.events(DrainConfirmed)] == [False, True]
    mill.turns(3, 1.0)
    assert [unit.replica for unit in mill.row(workload).units] == ["ready"]


def test_replicas_that_cannot_be_paid_are_not_started_and_it_is_said_why(followed):
    mill, workload, gate = followed
    held_neur = mill.row(workload).reserved_neur
    mill.apply(*factory(budget_neur=held_neur * 3 // 2))
    tell(gate, load(workload, in_flight=2, queued=4))
    mill.turn()
    why = mill.tell(ExplainWorkload(workload=WorkloadId(workload)))
    assert why.workload.units_wanted == 1
    assert [reason.code.value for reason in why.reasons] == ["LoadAsks", "BudgetExceeded"]
    mill.apply(*factory(budget_neur=held_neur * 9))
    mill.turn()
    assert mill.row(workload).units_wanted == 3


def test_a_rollout_changes_the_spec_and_going_back_brings_it_back(mill):
    view = mill.submit(endpoint())
    mill.turns(2, 1.0)
    rolled = roll_out(mill, view.id, context_tokens=2048, parallel_requests=3)
    assert rolled.revision == 2
    assert (rolled.spec.endpoint.context_tokens, rolled.spec.endpoint.variant) == (2048, "q8")
    mill.turns(4, 1.0)
    [unit] = mill.row(view.id).units
    assert (unit.revision, unit.replica) == (2, "ready")
    back = roll_out(mill, view.id, is_back=True)
    assert (back.revision, back.spec) == (1, view.spec)
    mill.turns(4, 1.0)
    [unit] = mill.row(view.id).units
    assert (unit.revision, unit.replica) == (1, "ready")


def test_what_cannot_be_rolled_out(mill):
    view = mill.submit(endpoint())
    with pytest.raises(Conflict, match="never served anything else"):
        roll_out(mill, view.id, is_back=True)
    with pytest.raises(InvalidRequest, match="something else"):
        roll_out(mill, view.id, is_back=True, model="m")
    with pytest.raises(Refused, match="not on disk"):
        roll_out(mill, view.id, model="nobody-has-it")
    with pytest.raises(Refused, match="memory"):
        roll_out(mill, view.id, model=BIG_MODEL)
    work = mill.submit(job(None))
    with pytest.raises(InvalidRequest, match="it is a job"):
        roll_out(mill, work.id)
    assert mill.row(view.id).revision == 1


def test_a_range_is_set_by_hand_and_keeps_what_is_there(followed):
    mill, workload, _ = followed
    for scaling, expected in (
        (Scaling(replicas_min=2, replicas_max=4), 2),
        (Scaling(replicas_min=0, replicas_max=1), 1),
    ):
        view = mill.tell(
            ScaleEndpoint(
                principal=ADMIN, workload=WorkloadId(workload), replicas=1, scaling=scaling
            )
        )
        assert (view.units_wanted, view.scaling) == (expected, scaling)
    wrong = Scaling(replicas_min=3, replicas_max=2)
    with pytest.raises(InvalidRequest, match="from 3 to 2"):
        mill.tell(
            ScaleEndpoint(principal=ADMIN, workload=WorkloadId(workload), replicas=1, scaling=wrong)
        )

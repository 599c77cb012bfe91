"""What only leases do: who may get one, how they end, and ends that move."""

from dataclasses import replace

import pytest

from moulin.domain.factory import Zone, ZoneState
from moulin.domain.ids import OrganisationId, ProjectId, WorkloadId
from moulin.domain.lease_events import LeaseExtended
from moulin.domain.plan import StopCause
from moulin.domain.workload import LeaseSpec, WorkloadKind
from moulin.scheduler import explain, lots, possible, start_step
from tests.unit.scheduler.world import SECOND, job, node, submission, world

LEASE = WorkloadId("x")


def lease(nodes=1, **more):
    spec = job(1, kind=WorkloadKind.LEASE, task=None, nodes=nodes, time_limit_s=100)
    return replace(spec, lease=LeaseSpec(ssh_keys=("ssh-ed25519 AAAA",)), **more)


def leased(**more):
    here = world(node("n1", has_login=True), node("n2", has_login=True))
    here.now_ns = 10 * SECOND
    here.submit("x", lease(**more))
    here.cycle()
    return here


def state_of(here):
    row = here.state.workloads[LEASE]
    return row.state, [reason.code for reason in row.reasons]


def test_only_nodes_with_a_login_are_leased():
    here = world(node("n1"), node("n2", has_login=True))
    here.submit("x", lease())
    [place] = here.cycle().places
    assert [task.node for task in place.tasks] == ["n2"]
    assert start_step(here.state, place.attempt, 0).lease == lease().lease
    here = world(node("n1"))
    [reason] = possible(here.state, submission("x", lease()), here.policy)
    assert (reason.code, reason.parameters["what"]) == ("CannotCarry", "an SSH login")


def test_lots_are_by_zone_and_class_and_know_what_is_free():
    here = world(
        node("n1", has_login=True),
        node("n2", has_login=True, cpus=8),
        node("n3", has_login=True, machine_class="big"),
        node("n4"),
    )
    here.submit("small", job(1))
    here.cycle()
    found = lots(here.state, OrganisationId("acme"), ProjectId("web"))
    assert [(lot.machine_class, len(lot.nodes), lot.free) for lot in found] == [
        ("big", 1, 1),
        ("cpu", 2, 1),
    ]
    here.submit("x", lease(nodes=2))
    here.cycle()
    found = lots(here.state, OrganisationId("acme"), ProjectId("web"))
    assert sum(lot.free for lot in found) == 0


def test_a_lease_that_reached_its_end_was_a_success():
    here = leased()
    here.run("x.u0.g1.t0")
    here.now_ns += 100 * SECOND
    [stop] = here.cycle().stops
    assert stop.cause is StopCause.TIME_LIMIT
    here.exit("x.u0.g1.t0", 143)
    here.cycle()
    assert state_of(here) == ("succeeded", ["TimeLimitReached"])


@pytest.mark.parametrize("running", [True, False])
def test_a_lease_is_delivered_once(running):
    here = leased()
    if running:
        here.run("x.u0.g1.t0", started_at_ns=here.now_ns)
    here.gone("x.u0.g1.t0")
    here.cycle()
    here.now_ns += 60 * SECOND
    here.cycle()
    if running:
        assert state_of(here) == ("failed", ["TaskLost"])
    else:
        assert here.state.workloads[LEASE].units[0].generation == 2


def test_a_lease_in_a_zone_that_closes_says_so():
    here = leased()
    here.run("x.u0.g1.t0", started_at_ns=here.now_ns)
    here.declare(Zone(name="a", site="lyon", state=ZoneState.CLOSED))
    assert [stop.cause for stop in here.cycle().stops] == [StopCause.ZONE_CLOSED]
    here.exit("x.u0.g1.t0", 143)
    here.cycle()
    assert state_of(here) == ("failed", ["ZoneNotOpen"])


@pytest.mark.parametrize("is_running", [True, False])
def test_an_end_that_was_put_off_is_the_end(is_running):
    here = leased()
    if is_running:
        here.run("x.u0.g1.t0")
    here.add(LeaseExtended(workload=LEASE, by="ada", time_limit_s=250, added_neur=7))
    if not is_running:
        here.run("x.u0.g1.t0")
    row = here.state.workloads[LEASE]
    assert (row.time_limit_s, row.submission.spec.time_limit_s, row.reserved_neur) == (250, 250, 7)
    here.now_ns += 249 * SECOND
    assert here.cycle().stops == ()
    here.now_ns += SECOND
    assert len(here.cycle().stops) == 1


def test_an_extension_of_what_has_ended_changes_nothing():
    here = leased()
    here.exit("x.u0.g1.t0")
    here.cycle()
    here.add(LeaseExtended(workload=LEASE, by="ada", time_limit_s=250, added_neur=7))
    assert here.state.workloads[LEASE].time_limit_s == 100
    here.add(LeaseExtended(workload=WorkloadId("none"), by="ada", time_limit_s=250, added_neur=7))
    assert explain(here.state, LEASE, here.now_ns, here.policy) == ()

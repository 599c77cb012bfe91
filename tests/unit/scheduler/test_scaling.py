"""How load moves replicas: up at once, down slowly, to zero and back; what is news and what is not."""

from dataclasses import replace

import pytest

from moulin.domain.events import DrainConfirmed, LoadReported, WorkloadScaled
from moulin.domain.factory import Project, Quota
from moulin.domain.gateway_events import GatewayEpochClosed, GatewayEpochOpened
from moulin.domain.ids import WorkloadId
from moulin.domain.snapshot import EndpointLoad
from moulin.domain.workload import Scaling
from moulin.scheduler import SchedulerPolicy, explain, is_load_news, next_due_ns, plan_digest
from tests.unit.scheduler.world import SECOND, World, endpoint, node, world

CHAT = WorkloadId("x")
GATEWAY = ("gw", 1)


def served(policy: SchedulerPolicy | None = None, **scaling: int) -> World:
    """A world in which endpoint x follows its load and its first replica is ready; two slots each."""
    here = world(node("n1", cpus=8))
    here.now_ns = SECOND
    here.policy = policy or here.policy
    spec = endpoint(1)
    assert spec.endpoint is not None
    wanted = Scaling(**{"replicas_max": 4, **scaling})
    here.submit("x", replace(spec, endpoint=replace(spec.endpoint, scaling=wanted)))
    here.cycle()
    ready(here, "x.u0.g1")
    here.add(GatewayEpochOpened(gateway="gw", gateway_epoch=1))
    return here


def ready(here: World, attempt: str) -> None:
    here.run(f"{attempt}.t0", is_ready=True, address="127.0.0.1:1")


def report(here: World, in_flight: int = 0, queued: int = 0, wait_ms: int = 0) -> None:
    load = EndpointLoad(endpoint="x", in_flight=in_flight, queued=queued, oldest_wait_ms=wait_ms)
    loads = (load,) if in_flight or queued else ()
    here.add(LoadReported(gateway="gw", gateway_epoch=1, endpoints=loads))


def fall_asleep(here: World) -> None:
    """Let the last replica go."""
    assert wanted(here) == 0
    [drain] = here.cycle().drains
    here.add(DrainConfirmed(gateway="gw", gateway_epoch=1, attempt=drain.attempt, is_idle=True))
    here.cycle()
    here.exit(f"{drain.attempt}.t0", 143)


def wanted(here: World) -> int:
    here.cycle()
    return here.state.workloads[CHAT].units_wanted


@pytest.mark.parametrize(
    ("in_flight", "queued", "replicas"),
    [(1, 0, 1), (2, 0, 1), (2, 1, 2), (2, 3, 3), (2, 60, 4)],
)
def test_load_asks_for_replicas_at_once_and_for_no_more_than_allowed(in_flight, queued, replicas):
    here = served()
    report(here, in_flight, queued)
    assert wanted(here) == replicas


def test_a_target_below_the_slots_keeps_some_of_them_free():
    here = served(target_requests=1)
    report(here, in_flight=2)
    assert wanted(here) == 2


def test_what_was_wanted_is_kept_for_the_window_and_one_short_lull_changes_nothing():
    here = served(replicas_min=1, stabilise_s=60)
    report(here, 2, 4)
    assert wanted(here) == 3
    for pause_s in (20, 20, 59):
        report(here, 1)
        here.now_ns += pause_s * SECOND
        assert wanted(here) == 3
        report(here, 2, 4)
    report(here, 1)
    assert next_due_ns(here.state) == here.now_ns + 60 * SECOND
    here.now_ns += 60 * SECOND
    assert wanted(here) == 1


def test_a_window_keeps_the_highest_wish_and_then_the_next():
    here = served(replicas_min=1, stabilise_s=60)
    report(here, 8)
    assert wanted(here) == 4
    here.now_ns += 30 * SECOND
    report(here, 4)
    here.now_ns += 30 * SECOND
    report(here, 1)
    here.now_ns += 30 * SECOND
    assert wanted(here) == 2
    here.now_ns += 30 * SECOND
    assert wanted(here) == 1


def test_the_last_replica_goes_after_its_idle_time_and_a_request_brings_one_back():
    here = served(idle_s=30)
    report(here, 1)
    here.now_ns += 100 * SECOND
    assert wanted(here) == 1
    report(here)
    here.now_ns += 29 * SECOND
    assert wanted(here) == 1
    assert next_due_ns(here.state) == here.now_ns + SECOND
    here.now_ns += SECOND
    fall_asleep(here)
    report(here, queued=1)
    assert wanted(here) == 1
    assert here.placed() == ["x"]


def test_a_request_that_comes_while_the_last_replica_drains_keeps_it():
    here = served(idle_s=30)
    here.now_ns += 30 * SECOND
    assert wanted(here) == 0
    here.cycle()
    report(here, queued=1)
    assert wanted(here) == 1
    assert here.cycle().is_empty
    assert here.state.drains == {}


def test_a_replica_that_starts_is_not_idle_however_long_it_takes():
    here = served(idle_s=5)
    here.now_ns += 5 * SECOND
    fall_asleep(here)
    report(here, queued=1)
    wanted(here)
    [place] = here.cycle().places
    report(here)
    here.now_ns += 500 * SECOND
    assert wanted(here) == 1
    ready(here, place.attempt)
    here.now_ns += 4 * SECOND
    assert wanted(here) == 1
    here.now_ns += SECOND
    assert wanted(here) == 0


def test_an_endpoint_asleep_says_so():
    here = served(idle_s=1)
    here.now_ns += SECOND
    fall_asleep(here)
    [reason] = explain(here.state, CHAT, here.now_ns, here.policy)
    assert reason.code.value == "ScaledToZero"


def test_requests_that_wait_too_long_bring_one_replica_more_when_the_last_one_has_settled():
    here = served(target_queue_s=5, target_requests=100)
    here.now_ns += 10 * SECOND
    report(here, 2, 1, wait_ms=4_999)
    assert wanted(here) == 1
    report(here, 2, 1, wait_ms=5_000)
    assert wanted(here) == 2
    [place] = here.cycle().places
    here.now_ns += 60 * SECOND
    report(here, 2, 1, wait_ms=65_000)
    assert wanted(here) == 2, "it is not ready yet"
    ready(here, place.attempt)
    here.now_ns += 4 * SECOND
    report(here, 4, 1, wait_ms=69_000)
    assert wanted(here) == 2, "it had no time yet to empty the queue"
    here.now_ns += SECOND
    report(here, 4, 1, wait_ms=70_000)
    assert wanted(here) == 3


def test_slow_queues_do_not_flap():
    here = served(target_queue_s=5, target_requests=100, stabilise_s=60)
    here.now_ns += 10 * SECOND
    report(here, 2, 1, wait_ms=6_000)
    assert wanted(here) == 2
    report(here, 2)
    here.now_ns += 59 * SECOND
    assert wanted(here) == 2


def test_load_of_a_gateway_that_went_is_gone():
    here = served(replicas_min=1, stabilise_s=0)
    report(here, 8)
    assert wanted(here) == 4
    here.add(GatewayEpochOpened(gateway="gw", gateway_epoch=2))
    assert wanted(here) == 1
    here.add(
        LoadReported(
            gateway="gw", gateway_epoch=2, endpoints=(EndpointLoad(endpoint="x", in_flight=4),)
        )
    )
    assert wanted(here) == 2
    here.add(GatewayEpochClosed(gateway="gw", gateway_epoch=2))
    assert wanted(here) == 1


def test_gateways_add_up():
    here = served()
    report(here, 2)
    here.add(GatewayEpochOpened(gateway="other", gateway_epoch=1))
    load = EndpointLoad(endpoint="x", in_flight=2)
    here.add(LoadReported(gateway="other", gateway_epoch=1, endpoints=(load,)))
    assert wanted(here) == 2


def test_a_project_that_cannot_pay_keeps_what_it_has_and_is_told_why():
    here = served(policy=SchedulerPolicy(endpoints_frozen=("x",)), replicas_min=1)
    report(here, 8)
    assert wanted(here) == 1
    codes = [reason.code.value for reason in explain(here.state, CHAT, here.now_ns, here.policy)]
    assert codes == ["LoadAsks", "BudgetExceeded"]


def test_a_quota_lets_replicas_wait_and_says_why():
    here = served()
    here.declare(Project(name="web", organisation="acme", quota=Quota(cpu_milli=2_000)))
    report(here, 8)
    assert wanted(here) == 4
    here.cycle()
    live = [unit for unit in here.state.workloads[CHAT].units if not unit.is_waiting]
    assert len(live) == 2
    [reason, *_] = explain(here.state, CHAT, here.now_ns, here.policy)
    assert reason.code.value == "InsufficientQuota"


def test_a_number_set_by_hand_ends_scaling_and_a_range_begins_it():
    here = served()
    here.add(WorkloadScaled(workload=CHAT, replicas=2, by="ada"))
    report(here, 8)
    here.now_ns += 10**6 * SECOND
    assert wanted(here) == 2
    here.add(WorkloadScaled(workload=CHAT, replicas=2, by="ada", scaling=Scaling(replicas_max=4)))
    assert wanted(here) == 4


@pytest.mark.parametrize(
    ("before", "after", "pause_s", "is_news"),
    [
        ((1, 0, 0), (2, 0, 0), 60, False),
        ((2, 0, 0), (3, 0, 0), 0, True),
        ((3, 0, 0), (1, 0, 0), 1, False),
        ((3, 0, 0), (1, 0, 0), 2, True),
        ((8, 0, 0), (8, 500, 0), 60, False),
        ((2, 1, 0), (2, 1, 6_000), 0, True),
        ((2, 1, 6_000), (2, 1, 7_000), 1, False),
        ((2, 1, 6_000), (2, 1, 8_000), 2, True),
        ((0, 0, 0), (0, 1, 0), 0, True),
    ],
)
def test_what_is_news(before, after, pause_s, is_news):
    here = served()
    report(here, *before)
    here.now_ns += pause_s * SECOND
    load = EndpointLoad(endpoint="x", in_flight=after[0], queued=after[1], oldest_wait_ms=after[2])
    assert is_load_news(here.state, GATEWAY, (load,), here.now_ns) is is_news


def test_load_of_endpoints_that_do_not_follow_it_is_no_news():
    here = world(node("n1"))
    here.submit("x", endpoint(1))
    here.add(GatewayEpochOpened(gateway="gw", gateway_epoch=1))
    load = EndpointLoad(endpoint="x", in_flight=9)
    gone = EndpointLoad(endpoint="gone", in_flight=9)
    assert not is_load_news(here.state, GATEWAY, (load, gone), here.now_ns)


def test_equal_logs_give_equal_plans_and_digests():
    one, other = served(), served()
    for here in (one, other):
        report(here, 8)
    assert plan_digest(one.decide()) == plan_digest(other.decide())
    assert one.state.digest() == other.state.digest()
    report(other, 2)
    assert plan_digest(one.decide()) != plan_digest(other.decide())

"""However long starts and streams take, within what was measured nobody is cut and somebody serves."""

import heapq
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from moulin.domain.events import DrainConfirmed
from moulin.domain.gateway_events import GatewayEpochOpened
from moulin.domain.ids import AttemptId, WorkloadId
from moulin.domain.plan import Drain, Place, Plan, Stop, StopCause
from moulin.scheduler import next_due_ns, workload_view
from tests.unit.scheduler.world import SECOND, World, endpoint, node, world

CHAT = WorkloadId("x")
RUNS, SERVES, IDLE, ENDED = "runs", "serves", "idle", "ended"


@dataclass
class Cluster:
    """Answers for engine and gateway: starts wait and load, streams end, stopped tasks end."""

    here: World
    waits: list[int]
    loads: list[int]
    streams: list[int]
    due: list[tuple[int, str, str]] = field(default_factory=list)
    begun: int = 0
    left: int = 0
    under_way: set[str] = field(default_factory=set)
    stops: list[Stop] = field(default_factory=list)

    def take(self, plan: Plan) -> None:
        """Begin what was decided."""
        for place in plan.places:
            self.place(place)
        for drain in plan.drains:
            self.drain(drain)
        for stop in plan.stops:
            # Only what nobody uses any more is stopped: nothing is cut.
            assert stop.attempt not in self.under_way
            assert stop.cause is not StopCause.TIME_LIMIT
            self.stops.append(stop)
            self.later(1, ENDED, stop.attempt)

    def place(self, place: Place) -> None:
        wait_s = self.waits[self.begun % len(self.waits)]
        load_s = self.loads[self.begun % len(self.loads)]
        self.begun += 1
        self.later(wait_s, RUNS, place.attempt)
        self.later(wait_s + load_s, SERVES, place.attempt)

    def drain(self, drain: Drain) -> None:
        self.under_way.add(drain.attempt)
        self.later(self.streams[self.left % len(self.streams)], IDLE, drain.attempt)
        self.left += 1

    def later(self, after_s: int, what: str, attempt: str) -> None:
        heapq.heappush(self.due, (self.here.now_ns + after_s * SECOND, what, attempt))

    def happen(self) -> None:
        """Let everything happen whose time has come."""
        while self.due and self.due[0][0] <= self.here.now_ns:
            _, what, attempt = heapq.heappop(self.due)
            if what == IDLE:
                self.under_way.discard(attempt)
                self.here.add(
                    DrainConfirmed(
                        gateway="gw", gateway_epoch=1, attempt=AttemptId(attempt), is_idle=True
                    )
                )
            elif what == ENDED:
                self.here.exit(f"{attempt}.t0", 143)
            else:
                serves = {"is_ready": True, "address": "a:1"} if what == SERVES else {}
                self.here.run(f"{attempt}.t0", **serves)

    def next_ns(self) -> int:
        """Return when something happens or is to be decided."""
        decided_ns = next_due_ns(self.here.state)
        times = [at_ns for at_ns, _, _ in self.due[:1]]
        times += [decided_ns] if decided_ns is not None else []
        return max(min(times), self.here.now_ns + 1)


def ready(here: World) -> int:
    return sum(unit.replica == "ready" for unit in workload_view(here.state, CHAT).units)


few_seconds = st.lists(st.integers(1, 60), min_size=1, max_size=5)


@settings(deadline=None, max_examples=60)
@given(
    replicas=st.integers(1, 3),
    waits=few_seconds,
    loads=few_seconds,
    streams=few_seconds,
    spare_s=st.integers(0, 2000),
    of_node=st.booleans(),
)
def test_replicas_follow_one_another_and_nobody_notices(
    replicas, waits, loads, streams, spare_s, of_node
):
    # The first start is the longest, so that what is measured holds from then on.
    waits, loads = [max(waits), *waits], [max(loads), *loads]
    drain_s = max(streams)
    limit_s = 4 * (drain_s + waits[0] + loads[0] + 20) + spare_s
    here = world(node("n1", cpus=8, time_limit_s=limit_s if of_node else 0))
    here.now_ns = SECOND
    here.add(GatewayEpochOpened(gateway="gw", gateway_epoch=1))
    spec = endpoint(replicas, time_limit_s=0 if of_node else limit_s)
    assert spec.endpoint is not None
    here.submit("x", replace(spec, endpoint=replace(spec.endpoint, drain_s=drain_s)))
    cluster = Cluster(here, waits, loads, streams)
    while len(cluster.stops) < 4 * replicas:
        cluster.happen()
        for _ in range(3):
            cluster.take(here.cycle())
        assert here.cycle().is_empty
        if cluster.begun > replicas:
            assert ready(here) >= replicas
        live = sum(attempt.is_live for attempt in here.state.attempts.values())
        assert live <= 2 * replicas
        here.now_ns = cluster.next_ns()
    assert {stop.cause for stop in cluster.stops} == {StopCause.ROLLED_OVER}

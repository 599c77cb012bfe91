"""What must hold of replicas: none is stopped while a gateway uses it, and their number does not flap.

Judged from the log and from the gateways themselves, as they really are: what the control plane
believes of them is not asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from moulin.domain.events import (
    AttemptDrainDecided,
    AttemptStopDecided,
    EndpointRolledOut,
    Event,
    ReplicasDecided,
    WorkloadScaled,
    WorkloadSubmitted,
)
from moulin.domain.plan import StopCause
from moulin.domain.workload import Scaling
from tests.simulation.gateway import Gateway
from tests.simulation.invariants import must
from tests.simulation.world import SECOND

STALE_NS = 60 * SECOND
LEAVING = frozenset({StopCause.SCALED_IN, StopCause.ROLLED_OUT, StopCause.ROLLED_OVER})


@dataclass(slots=True)
class Number:
    """An endpoint's number of replicas as load moves it; `grown_ns` is when it last grew.

    Another spec keeps the last replica awake, and is no reason to keep more than the load asks for.
    """

    scaling: Scaling | None
    replicas: int
    grown_ns: int = 0
    rolled_out_ns: int = 0

    @property
    def last_ns(self) -> int:
        """When it last changed in any way."""
        return max(self.grown_ns, self.rolled_out_ns)


@dataclass(slots=True)
class Replicas:
    """Tallies of its own over `gateways`; `drains` has when each was decided and when it is over."""

    gateways: Sequence[Gateway]
    drains: dict[str, tuple[int, int]] = field(default_factory=dict)
    numbers: dict[str, Number] = field(default_factory=dict)

    def read(self, event: Event) -> None:
        """Take in one event and judge it."""
        match event.payload:
            case WorkloadSubmitted(submission=submission):
                endpoint = submission.spec.endpoint
                if endpoint is not None:
                    self.numbers[submission.id] = Number(endpoint.scaling, endpoint.replicas)
            case WorkloadScaled(workload=workload, replicas=replicas, scaling=scaling):
                self.numbers[workload] = Number(scaling, replicas, event.at_ns)
            case EndpointRolledOut(workload=workload):
                self.numbers[workload].rolled_out_ns = event.at_ns
            case ReplicasDecided() as decided:
                self._judge_number(decided, event.at_ns)
            case AttemptDrainDecided() as drain:
                self.drains[drain.attempt] = (event.at_ns, drain.until_ns)
            case AttemptStopDecided() as stop if stop.cause in LEAVING:
                self._judge_stop(stop, event.at_ns)
            case _:
                pass

    def _judge_number(self, decided: ReplicasDecided, at_ns: int) -> None:
        number = self.numbers[decided.workload]
        scaling = number.scaling
        assert scaling is not None, f"{decided.workload} does not follow its load"
        what = f"{decided.workload} goes from {number.replicas} to {decided.replicas}"
        must(
            scaling.replicas_min <= decided.replicas <= scaling.replicas_max,
            f"{what}, allowed are {scaling.replicas_min} to {scaling.replicas_max}",
        )
        must(decided.replicas != number.replicas, f"{what}: nothing changes")
        if decided.replicas > number.replicas:
            number.grown_ns = at_ns
        else:
            window_s = scaling.stabilise_s if decided.replicas else scaling.idle_s
            changed_ns = number.grown_ns if decided.replicas else number.last_ns
            since_s = (at_ns - changed_ns) / SECOND
            must(since_s >= window_s, f"{what}, {since_s} s after it grew: it flaps")
        number.replicas = decided.replicas

    def _judge_stop(self, stop: AttemptStopDecided, at_ns: int) -> None:
        must(stop.attempt in self.drains, f"{stop.attempt} is stopped and was never drained")
        decided_ns, until_ns = self.drains[stop.attempt]
        for gateway in self.gateways:
            if not gateway.is_alive:
                continue
            under_way = sum(one.begin.replica == stop.attempt for one in gateway.inflight.values())
            must(
                not under_way or at_ns >= until_ns,
                f"{stop.attempt} is stopped with {under_way} requests of {gateway.name} under way",
            )
            is_stale = at_ns >= max(until_ns, decided_ns + STALE_NS)
            must(
                not gateway.may_send(stop.attempt) or is_stale,
                f"{stop.attempt} is stopped and {gateway.name} may still send to it",
            )

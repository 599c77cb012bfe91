"""What this gateway has under way, as it tells the control plane, and when it must tell it.

It counts requests and names replicas; it never tells anything of what is in a request. Whatever
follows from load is decided by the control plane.
"""

from typing import TYPE_CHECKING, Final

from moulin.domain.snapshot import EndpointLoad, GatewayLoad

if TYPE_CHECKING:
    from moulin.gateway.service import Service

QUEUE_TOLD_EVERY_S: Final = 1.0
"""While requests wait, the control plane hears this often how long."""


def present_load(service: "Service") -> GatewayLoad:
    """Return what is under way now, of the endpoints that have something.

    Cost:   O(requests under way): some 0.1 µs each, asked a few times a second.
    """
    in_flight: dict[str, int] = {}
    for exchange in service.exchanges:
        if exchange.has_replica:
            endpoint = exchange.endpoint
            in_flight[endpoint] = in_flight.get(endpoint, 0) + 1
    now_s = service.loop.time()
    waiting = {name: queue for name, queue in service.queues.items() if queue}
    return GatewayLoad(
        endpoints=tuple(
            EndpointLoad(
                endpoint=name,
                in_flight=in_flight.get(name, 0),
                queued=len(waiting.get(name, ())),
                oldest_wait_ms=max(
                    (int((now_s - each.queued_at_s) * 1000) for each in waiting.get(name, ())),
                    default=0,
                ),
            )
            for name in sorted(in_flight.keys() | waiting.keys())
        ),
        busy=service.busy_attempts(),
    )


class LoadTale:
    """Remembers what was told, so that quiet seconds cost no exchange."""

    def __init__(self) -> None:
        self._told = GatewayLoad()
        self._told_at_s = 0.0

    def is_due(self, load: GatewayLoad, now_s: float) -> bool:
        """Say whether the control plane must hear of a load though there is nothing else to tell.

        What begins or ends under way also writes journal lines, which take the load with them.
        """
        if load.busy != self._told.busy or _waiting(load) != _waiting(self._told):
            return True
        is_long_ago = now_s - self._told_at_s >= QUEUE_TOLD_EVERY_S
        return is_long_ago and bool(_waiting(load) or load != self._told)

    def told(self, load: GatewayLoad, now_s: float) -> None:
        """Note that the control plane has heard it."""
        self._told, self._told_at_s = load, now_s


def _waiting(load: GatewayLoad) -> tuple[str, ...]:
    return tuple(each.endpoint for each in load.endpoints if each.queued)

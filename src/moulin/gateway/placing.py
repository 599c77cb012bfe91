"""Which replica an exchange goes to, and where it goes when that one gives no answer.

It decides when a request waits, moves to another replica or is given up, before the first byte of
an answer. The choice itself is `moulin.routing.replicas`; what a failure costs is `exchange`'s.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from moulin.domain.errors import EngineUnavailable, MoulinError, Unavailable
from moulin.domain.reasons import Reason
from moulin.domain.snapshot import ModelView
from moulin.gateway.directory import Route
from moulin.gateway.forms import Form
from moulin.gateway.records import BEGIN
from moulin.gateway.upstream import Replica, UpstreamConnection
from moulin.gateway.usage import Bounds
from moulin.routing.replicas import choose
from moulin.routing.requests import Ask

if TYPE_CHECKING:
    from moulin.gateway.service import Service

NEVER_S: Final = float("inf")
RETRY_AFTER_S: Final = 2


class Order(NamedTuple):
    """What was ordered, at the price it was promised; the route may change while it waits.

    `form` turns the replica's answer into another shape; most answers go as they come.
    """

    identifier: bytes
    ask: Ask
    model: ModelView
    path: str
    body: bytes
    bounds: Bounds
    form: Form | None = None


class Placing(ABC):
    """The part of an exchange that finds a replica; see the module."""

    begin_form: ClassVar[bytes] = BEGIN

    __slots__ = (
        "_body", "_connection", "_has_begin", "_is_journaled", "_order", "_replica", "_route",
        "_service", "_tried", "asks_stream", "deadline_s", "held_neur", "is_over", "queued_at_s",
    )  # fmt: skip

    def __init__(self, service: "Service", route: Route, order: Order) -> None:
        self._service = service
        self._route = route
        self._order = order
        self._body = order.body
        self._replica: Replica | None = None
        self._connection: UpstreamConnection | None = None
        self._tried: tuple[Replica, ...] = ()
        self._has_begin = False
        self._is_journaled = False
        self.asks_stream = order.ask.is_stream
        self.held_neur = order.model.cost_neur(order.bounds[0], order.bounds[1])
        self.deadline_s = NEVER_S
        self.is_over = False
        self.queued_at_s = 0.0

    @property
    def endpoint(self) -> str:
        """The endpoint that was asked."""
        return self._order.model.endpoint

    @property
    def has_replica(self) -> bool:
        """Whether a replica has it; otherwise it waits, or is over."""
        return self._replica is not None

    def place_again(self) -> bool:
        """Try to leave the queue; True when the exchange no longer belongs in it."""
        try:
            self._route = self._service.current_route(self._route)
        except MoulinError as error:
            self._give_up(error)
            return True
        replica = choose(self._route.replicas, self._service.now_s, self._tried)
        if replica is not None:
            self._take(replica)
        return replica is not None

    def upstream_request(self, replica: Replica) -> bytes:
        """Return the request as it goes to the replica."""
        return b"%b%d\r\n\r\n%b" % (replica.heads[self._order.path], len(self._body), self._body)

    def connected(self, connection: UpstreamConnection) -> None:
        """Remember the connection: a client that leaves closes it."""
        self._connection = connection

    def unanswered(self, replica: Replica, why: str, *, is_stale_connection: bool) -> None:
        """Try another replica, or this one again when only an idle connection had died."""
        self._connection = None
        if is_stale_connection:
            replica.send(self)
            return
        replica.suspect()
        self._service.counts.retried += 1
        self._service.release(replica, self._order.model.endpoint)
        self._replica = None
        self._tried = (*self._tried, replica)
        self._place()

    # -- the other part of an exchange --------------------------------------------------------

    @abstractmethod
    def _give_up(self, error: MoulinError, reason: Reason | None = None) -> None: ...

    @abstractmethod
    def written(self) -> None:
        """The journal has the line."""

    @abstractmethod
    def not_written(self, cause: OSError) -> None:
        """The journal could not take the line."""

    @abstractmethod
    def stream_began(self) -> None:
        """The head of a stream arrived."""

    @abstractmethod
    def streamed(self, data: bytes) -> None:
        """A piece of the stream arrived."""

    @abstractmethod
    def stream_ended(self) -> None:
        """Ending: the stream is complete."""

    @abstractmethod
    def answered(self, status: int, body: bytes) -> None:
        """Ending: a complete answer arrived."""

    @abstractmethod
    def broken(self, why: str) -> None:
        """Ending: the answer stopped in the middle."""

    # -- internal -----------------------------------------------------------------------------

    def _place(self) -> None:
        if self.place_again():
            return
        replicas = self._route.replicas
        if self._tried and all(replica in self._tried for replica in replicas):
            message = f"reach a replica of {self._order.model.name}: {len(self._tried)} tried, none answers"
            self._give_up(EngineUnavailable(message, details={"retry_after_s": 2}))
        elif self._service.enqueue(self, self._order.model.endpoint):
            model = self._route.model
            is_cold = not replicas and model.cold_start_s > 0
            self.queued_at_s = now_s = self._service.loop.time()
            self.deadline_s = now_s + (
                model.cold_start_s if is_cold else self._service.limits.queue_wait_s
            )
        else:
            waiting = self._service.limits.queue_max
            self._give_up(
                busy(f"queue for {self._order.model.name}: {waiting} requests wait already")
            )

    def _take(self, replica: Replica) -> None:
        service = self._service
        replica.outstanding += 1
        replica.served += 1
        self._replica = replica
        self.deadline_s = service.now_s + service.limits.first_byte_timeout_s
        if self._is_journaled:
            replica.send(self)
            return
        self._has_begin = True
        order = self._order
        line = self.begin_form % (
            order.identifier,
            service.now_ns(),
            self._route.fragment,
            replica.fragment,
            order.bounds[0],
            order.bounds[1],
            self.held_neur,
        )
        service.journal.append(line, self)


def busy(message: str, retry_after_s: int = 0) -> Unavailable:
    """Return the refusal of a request that finds no replica free."""
    details = {"retry_after_s": retry_after_s or RETRY_AFTER_S}
    return Unavailable(message, hint="try again shortly", details=details)

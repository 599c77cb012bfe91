"""Which replica an exchange goes to, and where it goes when that one gives no answer.

It decides when a request waits, moves to another replica or is given up, before the first byte of
an answer. The choice itself is `moulin.routing.replicas`; what a failure costs is `exchange`'s.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Final

import orjson

from moulin.domain.errors import EngineUnavailable, MoulinError, Unavailable
from moulin.domain.reasons import Reason
from moulin.domain.snapshot import ModelView
from moulin.domain.usage import WHOLE_PPM
from moulin.gateway.directory import Route
from moulin.gateway.fleet import Fleet
from moulin.gateway.forms import Form
from moulin.gateway.records import BEGIN
from moulin.gateway.upstream import Replica, UpstreamConnection
from moulin.gateway.usage import BYTES_PER_TOKEN, Bounds
from moulin.routing.affinity import NO_PREFIX
from moulin.routing.breaker import Failure
from moulin.routing.replicas import choose, work_of
from moulin.routing.requests import Ask

if TYPE_CHECKING:
    from moulin.gateway.service import Service

NEVER_S: Final = float("inf")
RETRY_AFTER_S: Final = 2
LOOK_AGAIN_S: Final = 5.0
PATIENCE_GROWS: Final = 4


@dataclass(slots=True)
class Order:
    """What was ordered, at the price it was promised; the route may change while it waits.

    `form` turns the replica's answer into another shape; most answers go as they come. `prefix` is
    what `moulin.routing.affinity` makes of a prompt, where there is a choice.
    """

    identifier: bytes
    ask: Ask
    model: ModelView
    path: str
    body: bytes
    bounds: Bounds
    form: Form | None = None
    prefix: int = NO_PREFIX


class Placing(ABC):
    """The part of an exchange that finds a replica; see the module."""

    begin_form: ClassVar[bytes] = BEGIN

    __slots__ = (
        "_body", "_connection", "_fallbacks", "_has_begin", "_is_journaled", "_moves", "_order",
        "_replica", "_route", "_sent_at_s", "_service", "_tried", "_work", "asks_stream",
        "deadline_s", "held_neur", "is_over", "queued_at_s",
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
        self._moves = 0
        self._sent_at_s = 0.0
        bounds = order.bounds
        self._work = 0
        if route.fleet is not None:
            self._work = work_of(bounds.prompt_bytes, bounds.tokens_output)
        self.held_neur = order.model.cost_neur(bounds.tokens_input, bounds.tokens_output)
        self._fallbacks = route.fallbacks
        if route.fallbacks:
            others = [_most_neur(model, _refitted(order, model)) for model in route.fallbacks]
            self.held_neur = max(self.held_neur, *others)
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

    def bill_line(self, line: bytes) -> None:
        """Be the line of a batch: at the batch price, under its name, from its own model alone."""
        model = self._order.model
        reduced = replace(
            model,
            price_input_neur=model.price_input_neur * model.batch_ppm,
            price_output_neur=model.price_output_neur * model.batch_ppm,
            price_per=model.price_per * WHOLE_PPM,
        )
        self._order = replace(self._order, model=reduced)
        self._route = self._route.marked(b',"line":"%b"' % line)
        self._fallbacks = ()
        self.held_neur = _most_neur(reduced, self._order.bounds)

    def finds_spare_room(self) -> bool:
        """Whether a replica has a slot that no person needs now; True also where none runs yet."""
        if self._service.queues.get(self.endpoint):
            return False
        replicas = self._route.replicas
        return not replicas or any(
            each.outstanding < max(1, each.parallel_requests - 1) for each in replicas
        )

    def shape(self, wrap: Callable[[Form | None], Form]) -> None:
        """Give the answer another form, over the one it may need anyway."""
        self._order = replace(self._order, form=wrap(self._order.form))

    def place_again(self) -> bool:
        """Try to leave the queue; True when the exchange no longer belongs in it."""
        directory = self._service.directory
        if directory is None or self._route.snapshot is not directory.snapshot:
            try:
                self._route = self._service.current_route(self._route)
            except MoulinError as error:
                self._give_up(error)
                return True
        replicas = self._route.replicas
        if len(replicas) == 1 and not self._tried:
            only = replicas[0]
            replica = only if only.outstanding < only.parallel_requests else None
        else:
            now_s = self._service.now_s
            replica = choose(replicas, now_s, self._tried, self._order.prefix, self._work)
        if replica is not None:
            self._take(replica)
        return replica is not None

    def upstream_request(self, replica: Replica) -> bytes:
        """Return the request as it goes to the replica."""
        return b"%b%d\r\n\r\n%b" % (replica.heads[self._order.path], len(self._body), self._body)

    def connected(self, connection: UpstreamConnection) -> None:
        """Remember the connection: a client that leaves closes it."""
        self._connection = connection

    def unanswered(self, replica: Replica, failure: Failure, *, is_stale_connection: bool) -> None:
        """Try another replica, or this one again when only an idle connection had died."""
        self._connection = None
        if is_stale_connection:
            replica.send(self)
            return
        replica.circuit.failed(failure, self._service.now_s)
        self._replica = None
        self._tried = (*self._tried, replica)
        self._leave(replica)
        fleet = self._route.fleet
        if fleet is not None and not fleet.retries.spend():
            name = self._order.model.name
            self._give_up(busy(f"serve {name}: too many of its requests are sent again already"))
            return
        self._service.counts.retried += 1
        self._place()

    def _move(self) -> bool:
        """Leave a replica that is silent for longer than is usual, or a queue, for another.

        False when the wait is really over. An answer that began never moves. Each move makes more
        patient, so that what merely takes long ends somewhere.
        """
        service, replica = self._service, self._replica
        if replica is None:
            service.leave_queue(self, self._order.model.endpoint)
            return self._fall_back()
        if self._route.fleet is None:
            return False
        ends_at_s = self._sent_at_s + service.limits.first_byte_timeout_s
        if service.now_s >= ends_at_s:
            return False
        others = [
            other
            for other in self._route.replicas
            if other is not replica and other not in self._tried and not other.circuit.rests_until_s
        ]
        if not others or self._connection is None:
            self.deadline_s = min(ends_at_s, service.now_s + LOOK_AGAIN_S)
            return True
        self._moves += 1
        self._drop_connection()
        self.unanswered(replica, Failure.SILENT, is_stale_connection=False)
        return True

    def _fall_back(self) -> bool:
        """Go to the next model that may serve instead; False when there is none.

        Never to one that could cost more than is held, or that the request does not fit.
        """
        order = self._order
        while self._fallbacks:
            model, *rest = self._fallbacks
            self._fallbacks = tuple(rest)
            route = self._service.fallback_route(self._route, model.name)
            if route is None or order.ask.infills or not self._body.startswith(b"{"):
                continue
            bounds = _refitted(order, route.model)
            if _most_neur(route.model, bounds) > self.held_neur:
                continue
            body = orjson.loads(self._body)
            body["model"] = route.model.name
            if "max_tokens" in body:
                body["max_tokens"] = bounds.tokens_output
            self._body = orjson.dumps(body)
            self._order = replace(order, model=route.model, bounds=bounds)
            self._route, self._tried = route, ()
            self._service.counts.fell_back += 1
            self._place()
            return True
        return False

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

    def _prepare(self, replica: Replica, fleet: Fleet) -> None:
        """Note what only matters where there is a choice: budgets, circuits, patience."""
        if not self._is_journaled:
            fleet.retries.earn()
        if replica.circuit.rests_until_s:
            replica.circuit.probe()
        replica.work += self._work
        self._sent_at_s = self._service.loop.time()
        timeout_s = self._service.limits.first_byte_timeout_s
        bounds = self._order.bounds
        tokens = bounds.prompt_bytes // BYTES_PER_TOKEN
        if self.asks_stream:
            limit_s = fleet.heads.limit_s(tokens, timeout_s)
        else:
            limit_s = fleet.wholes.limit_s(tokens + bounds.tokens_output, timeout_s)
        self.deadline_s = self._sent_at_s + min(limit_s * PATIENCE_GROWS**self._moves, timeout_s)

    def _learn(self, replica: Replica, tokens: int) -> None:
        """Note that a replica answers, after how long, and how much there was to do."""
        if replica.circuit.failures:
            replica.circuit.succeeded()
        fleet = self._route.fleet
        if fleet is not None:
            patience = fleet.heads if self.asks_stream else fleet.wholes
            patience.saw(self._service.loop.time() - self._sent_at_s, tokens)

    def _leave(self, replica: Replica) -> None:
        """Give the slot back."""
        if self._route.fleet is not None:
            replica.work -= self._work
            if replica.circuit.is_probed:
                replica.circuit.abandoned()
        self._service.release(replica, self._order.model.endpoint)

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    # -- internal -----------------------------------------------------------------------------

    def _place(self) -> None:
        if self.place_again():
            return
        replicas = self._route.replicas
        is_nobody_left = all(replica in self._tried for replica in replicas)
        may_fall_back = is_nobody_left and (self._tried or not self._route.model.cold_start_s)
        if may_fall_back and self._fall_back():
            return
        if self._tried and is_nobody_left:
            message = f"reach a replica of {self._order.model.name}: {len(self._tried)} tried, none answers"
            self._give_up(EngineUnavailable(message, details={"retry_after_s": 2}))
        elif self._service.enqueue(self, self._order.model.endpoint):
            model = self._route.model
            is_cold = not replicas and model.cold_start_s > 0
            self.queued_at_s = now_s = self._service.loop.time()
            self.deadline_s = now_s + (
                model.cold_start_s if is_cold else self._service.limits.queue_wait_s
            )
        elif not self._fall_back():
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
        fleet = self._route.fleet
        if fleet is not None:
            self._prepare(replica, fleet)
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
            order.bounds.tokens_input,
            order.bounds.tokens_output,
            self.held_neur,
        )
        service.journal.append(line, self)


def _refitted(order: Order, model: ModelView) -> Bounds:
    """Return the bounds of an order that another model serves."""
    bounds, context = order.bounds, model.context_tokens
    return Bounds(
        min(bounds.tokens_input, context), min(bounds.tokens_output, context), bounds.prompt_bytes
    )


def _most_neur(model: ModelView, bounds: Bounds) -> int:
    """Return the most a request within these bounds costs, in n€."""
    return model.cost_neur(bounds.tokens_input, bounds.tokens_output)


def busy(message: str, retry_after_s: int = 0) -> Unavailable:
    """Return the refusal of a request that finds no replica free."""
    details = {"retry_after_s": retry_after_s or RETRY_AFTER_S}
    return Unavailable(message, hint="try again shortly", details=details)

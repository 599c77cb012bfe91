"""One inference request from its reservation to its settlement.

It decides, step by step: hold the upper bound, take a replica, journal BEGIN, send, pass the answer
on, settle, journal END. It holds a prompt only until a replica has begun to answer and never copies
words of a prompt or an answer anywhere but to the replica and the client.

A request that got no byte of an answer costs nothing and may move to another replica. One that is
cut afterwards is charged: by the replica's usage where it was seen, else estimated from delivered
events, never above what was held.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

import orjson

from moulin.domain.errors import DiskFull, EngineUnavailable, MoulinError, Unavailable
from moulin.domain.reasons import Reason
from moulin.gateway import answers
from moulin.gateway.accounts import Account
from moulin.gateway.directory import Route
from moulin.gateway.placing import Order, Placing, busy
from moulin.gateway.quotas import Pass
from moulin.gateway.records import END
from moulin.gateway.sse import DONE, EventFilter, EventTooLong
from moulin.gateway.upstream import Replica
from moulin.gateway.usage import (
    BYTES_PER_TOKEN,
    NOTHING,
    Used,
    usage_of,
    used,
    with_figures,
)
from moulin.gateway.users import Crowd
from moulin.routing.breaker import Failure
from moulin.routing.figures import COMMENT, HEADERS, provisional, usage_figures
from moulin.routing.parameters import USER_FIELDS

if TYPE_CHECKING:
    from moulin.gateway.service import Service

COMPLETED: Final = b"completed"
CLIENT_DISCONNECTED: Final = b"client_disconnected"
UPSTREAM_FAILED: Final = b"upstream_failed"
CUT: Final = b"cut"
RETRIED_STATUSES: Final = frozenset({502, 503, 504})
_ERROR_BYTES_MAX: Final = 64 * 1024


class Client(Protocol):
    """The side of the exchange that asked."""

    def finish(self, answer: bytes) -> None:
        """Send a complete answer."""
        ...

    def begin_stream(self, headers: bytes) -> None:
        """Send the head of a stream; `headers` are finished lines."""
        ...

    def send_piece(self, data: bytes) -> None:
        """Send a piece of a stream."""
        ...

    def end_stream(self, data: bytes, *, is_whole: bool) -> None:
        """Send the last piece; a stream that is not whole also loses its connection."""
        ...


class Exchange(Placing):
    """See the module. The underscored flags say which step was reached."""

    end_form: ClassVar[bytes] = END
    counts_tokens: ClassVar[bool] = True

    __slots__ = ("_client", "_filter", "_is_held", "_last", "_pass")

    def __init__(self, service: "Service", client: Client, route: Route, order: Order) -> None:
        Placing.__init__(self, service, route, order)  # super() is looked for at each request
        self._client = client
        self._filter: EventFilter | None = None
        self._is_held = False
        self._last = b""
        self._pass: Pass | None = None

    def start(self) -> None:
        """Hold the upper bound of the cost; everything else follows."""
        self._service.exchanges.add(self)
        guard = self._route.guard
        if guard is None:
            self._route.account.pay(self)
            return
        bounds = self._order.bounds
        tokens = bounds.tokens_input + bounds.tokens_output if self.counts_tokens else 0
        try:
            purses = self._find_user(guard.crowd) if guard.crowd is not None else ()
        except MoulinError as error:
            self._give_up(error)
            return
        self._pass = guard.enter(self, tokens, purses)
        if self._pass.refusal is not None:
            self._give_up(self._pass.refusal)
        else:
            self._pass.hold()

    def _find_user(self, crowd: Crowd) -> tuple[Account, ...]:
        """Have the journal name the request's user; return the user's allowances."""
        ask = self._order.ask
        recorded = crowd.recorded(ask.user)
        self._route = self._route.marked(b',"user":%b' % orjson.dumps(recorded))
        if ask.user:
            ignored = tuple(name for name in ask.ignored if name not in USER_FIELDS)
            self._order = replace(self._order, ask=replace(ask, ignored=ignored))
        return crowd.purses(ask.user, recorded)

    def within_limits(self) -> None:
        """Hold the money last: it is what everybody of the project shares."""
        self._route.account.pay(self)

    # -- money --------------------------------------------------------------------------------

    def funded(self) -> None:
        """Go on to a replica: the amount is held."""
        self._is_held = True
        self._place()

    def refused(self, error: MoulinError, reason: Reason | None) -> None:
        """Answer that no money came."""
        self._give_up(error, reason)

    # -- journal ------------------------------------------------------------------------------

    def written(self) -> None:
        """Send the request when its BEGIN is on record, the end of the answer when its END is."""
        if self.is_over:
            self._deliver()
        elif self._replica is not None:
            self._is_journaled = True
            self._replica.send(self)

    def not_written(self, cause: OSError) -> None:
        """Refuse a request that is not on record: it could not be charged."""
        if self.is_over:
            self._deliver()
            return
        self._has_begin = False
        self._give_up(
            DiskFull(
                f"write the usage journal: {cause.strerror}",
                hint="the operator must free disk space",
                details={"retry_after_s": 10},
            )
        )

    # -- replica ------------------------------------------------------------------------------

    def answered(self, status: int, body: bytes) -> None:
        """Settle by the answer's usage and pass it on."""
        self._connection = None
        replica = self._replica
        assert replica is not None
        if status in RETRIED_STATUSES:
            self.unanswered(replica, Failure.ERROR, is_stale_connection=False)
        elif status != 200:
            self._answer_failed(status, body)
        else:
            order = self._order
            amount = used(usage_of(body), order.bounds, len(body) // BYTES_PER_TOKEN)
            tokens = (amount.tokens_input, amount.tokens_output)
            cost_neur = order.model.cost_neur(amount.tokens_input, amount.tokens_output)
            if self._route.fleet is not None or replica.circuit.failures:
                self._learn(replica, sum(tokens))
            figures = provisional(HEADERS, replica.view, tokens, cost_neur)
            headers = self._headers(replica)
            if order.form is not None:
                body = order.form.whole(body)
            if order.ask.wants_figures:
                body = with_figures(body, usage_figures(replica.view, tokens, cost_neur))
            self._last = answers.COMPLETION % (len(body), headers, figures, body)
            self._end(COMPLETED, amount, cost_neur)

    def stream_began(self) -> None:
        """Send the head of the stream; from here on another replica is no longer possible."""
        assert self._replica is not None
        if self._route.fleet is not None or self._replica.circuit.failures:
            self._learn(self._replica, self._order.bounds.prompt_bytes // BYTES_PER_TOKEN)
        self._body = b""
        ask = self._order.ask
        added = self._added if ask.wants_figures and ask.wants_usage else None
        self._filter = EventFilter(shows_usage=ask.wants_usage, added=added)
        self._client.begin_stream(self._headers(self._replica))

    def _added(self, usage: Mapping[str, Any]) -> Mapping[str, object]:
        """Return what the usage of a stream says beside tokens: the figures of its end."""
        assert self._replica is not None
        amount = used(usage, self._order.bounds, 0)
        tokens = (amount.tokens_input, amount.tokens_output)
        return usage_figures(self._replica.view, tokens, self._order.model.cost_neur(*tokens))

    def streamed(self, data: bytes) -> None:
        """Pass on what is for the client."""
        assert self._filter is not None
        self.deadline_s = self._service.now_s + self._service.limits.stream_idle_s
        try:
            passed = self._filter.pass_on(data)
        except EventTooLong:
            self._stop("an event of the replica is too long")
            return
        if self._order.form is not None:
            passed = self._order.form.piece(passed)
        if passed:
            self._client.send_piece(passed)

    def stream_ended(self) -> None:
        """Settle and finish the stream with its provisional figures."""
        self._connection = None
        replica, events = self._replica, self._filter
        assert replica is not None
        if events is None or not events.is_done:
            self.broken("the stream ended early")
            return
        amount = used(events.usage, self._order.bounds, events.events)
        tokens = (amount.tokens_input, amount.tokens_output)
        cost_neur = self._order.model.cost_neur(*tokens)
        self._last = provisional(COMMENT, replica.view, tokens, cost_neur) + DONE
        if self._order.form is not None:
            self._last = self._order.form.end() + self._last
        self._end(COMPLETED, amount, cost_neur)

    def broken(self, why: str) -> None:
        """Settle what was delivered and say in the stream that it is cut."""
        self._connection = None
        if self._replica is not None:
            self._replica.circuit.failed(Failure.ERROR, self._service.now_s)
        self._stop(why)

    # -- other ends ---------------------------------------------------------------------------

    def cancel(self) -> None:
        """Free the replica at once and charge what was delivered: the client went away."""
        if not self.is_over:
            self._drop_connection()
            self._end_delivered(CLIENT_DISCONNECTED)

    def cut(self) -> None:
        """End a request that outlived the shutdown's grace."""
        if not self.is_over:
            self._end_with_error(CUT, Unavailable("finish this request: the gateway is stopping"))

    def expire(self) -> None:
        """End a request whose step took too long."""
        if self.is_over or (self._filter is None and self._move()):
            return
        if self._replica is None:
            # Nobody serves: by then the replica that starts should be ready.
            model = self._route.model
            retry_after_s = 0 if self._route.replicas else model.load_s
            words = f"wait for a replica of {model.name}: none became free"
            self._give_up(busy(words, retry_after_s))
            return
        self._replica.circuit.failed(Failure.SILENT, self._service.now_s)
        self._stop("the replica took too long")

    def pause(self) -> None:
        """Stop reading from the replica: the client is slow."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read on."""
        if self._connection is not None:
            self._connection.resume()

    # -- internal -----------------------------------------------------------------------------

    def _stop(self, why: str) -> None:
        hint = "what was delivered is charged" if self._filter is not None else "nothing is charged"
        error = EngineUnavailable(f"finish this answer: {why}", hint=hint)
        self._end_with_error(UPSTREAM_FAILED, error)

    def _give_up(self, error: MoulinError, reason: Reason | None = None) -> None:
        """End before any answer: nothing is charged."""
        headers = self._pass.headers() if self._pass is not None else b""
        self._last = answers.failure(
            error, request=self._order.identifier, reason=reason, headers=headers
        )
        self._end(UPSTREAM_FAILED, NOTHING, 0)

    def _end_with_error(self, outcome: bytes, error: MoulinError) -> None:
        self._drop_connection()
        if self._filter is not None:
            self._last = b"data: " + answers.error_body(error) + b"\n\n"
        else:
            self._last = answers.failure(error, request=self._order.identifier)
        self._end_delivered(outcome)

    def _deliver(self) -> None:
        """Send the last bytes to the client; there are none for a client that left."""
        last, self._last = self._last, b""
        if not last:
            return
        if self._filter is None:
            self._client.finish(last)
        else:
            self._client.end_stream(last, is_whole=last.endswith(DONE))

    def _end_delivered(self, outcome: bytes) -> None:
        """Charge what the client got of a stream, and nothing where no answer had begun."""
        events = self._filter
        amount = (
            used(events.usage, self._order.bounds, events.events) if events is not None else NOTHING
        )
        self._end(
            outcome, amount, self._order.model.cost_neur(amount.tokens_input, amount.tokens_output)
        )

    def _end(self, outcome: bytes, amount: Used, cost_neur: int) -> None:
        """Settle, free the replica, journal END, and then let the client have `_last`."""
        service, replica, order = self._service, self._replica, self._order
        self.is_over = True
        self._body = b""
        self._replica = None
        service.exchanges.discard(self)
        service.counts.ended(order.model.name, outcome, amount if self.counts_tokens else NOTHING)
        if self._pass is not None:
            tokens = amount.tokens_input + amount.tokens_output if self.counts_tokens else 0
            self._pass.leave(tokens, cost_neur)
        if self._is_held:
            self._route.account.escrow.settle(self.held_neur, cost_neur)
        else:
            self._route.account.forget(self)
        if replica is not None:
            self._leave(replica)
        else:
            service.leave_queue(self, order.model.endpoint)
        if not self._has_begin:
            self._deliver()
            return
        line = self.end_form % (
            order.identifier,
            service.now_ns(),
            self._route.fragment,
            replica.fragment if replica is not None else _NO_REPLICA,
            amount.tokens_input,
            amount.tokens_output,
            cost_neur,
            outcome,
            b"true" if amount.is_estimated else b"false",
        )
        service.journal.append(line, self if self._last else None)

    def _answer_failed(self, status: int, body: bytes) -> None:
        """Pass the replica's refusal on; it cost nothing, and a broken replica's words stay here."""
        if 400 <= status < 500 and len(body) <= _ERROR_BYTES_MAX and body[:1] == b"{":
            headers = b"x-request-id: req_%b\r\n" % self._order.identifier
            told = answers.refused_by_replica(status, body)
            self._last = answers.whole(status, told, headers=headers)
        else:
            error = EngineUnavailable(
                f"serve this request: the replica failed with status {status}"
            )
            self._last = answers.failure(error, request=self._order.identifier)
        self._end(COMPLETED if status < 500 else UPSTREAM_FAILED, NOTHING, 0)

    def _headers(self, replica: Replica) -> bytes:
        order = self._order
        headers = b"x-request-id: req_%b\r\nx-moulin-receipt: rcp_req_%b\r\n%b" % (
            order.identifier,
            order.identifier,
            replica.zone_header,
        )
        if self._pass is not None:
            headers += self._pass.headers()
        if self._route.headers:
            headers += self._route.headers
        if order.ask.ignored:
            headers += b"x-moulin-ignored: %b\r\n" % ", ".join(order.ask.ignored).encode()
        return headers


_NO_REPLICA: Final = b'"replica":""'

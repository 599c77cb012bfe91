"""What the gateway serves: paths, models, and the requests under way.

It decides which path means what, whether the snapshot is fresh enough to serve at all, and who
leaves the queue when a replica is free. Asking the control plane is `control`'s work.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from typing import Final
from urllib.parse import unquote

import orjson

from moulin.domain.errors import InvalidRequest, MoulinError, NotFound, Unavailable
from moulin.domain.model import Ability
from moulin.domain.snapshot import GatewaySnapshot, ModelView
from moulin.domain.units import NS_PER_S
from moulin.gateway import answers
from moulin.gateway.accounts import Account
from moulin.gateway.directory import Caller, Directory, Route, Wish
from moulin.gateway.edge import ClientConnection, Inbound
from moulin.gateway.exchange import Client, Exchange
from moulin.gateway.fleet import Fleet, keep_fleets
from moulin.gateway.forms import Form, make_form
from moulin.gateway.identifiers import RequestIds
from moulin.gateway.journal import Journal
from moulin.gateway.limits import Limits
from moulin.gateway.lines import LINES, open_line
from moulin.gateway.media import KINDS, open_media
from moulin.gateway.metrics import Counts, prometheus_text
from moulin.gateway.placing import Order, Placing
from moulin.gateway.quotas import Quotas
from moulin.gateway.recall import Counted
from moulin.gateway.relay import Relay, open_relay
from moulin.gateway.responses import RESPONSES, open_response
from moulin.gateway.several import Part, Several
from moulin.gateway.trust import Trust
from moulin.gateway.upstream import Replica
from moulin.gateway.usage import Bounds
from moulin.gateway.users import UserAccounts
from moulin.routing.affinity import NO_PREFIX, prefix_of
from moulin.routing.infill import infill
from moulin.routing.media import check_ability
from moulin.routing.requests import (
    CHAT,
    FIM,
    TEXT,
    Ask,
    Dialect,
    input_bound,
    output_limit,
    read_request,
    split,
)

_OPEN_PATHS: Final = frozenset({b"/healthz", b"/metrics"})
_COMPLETIONS: Final = {dialect.path.encode(): dialect for dialect in (CHAT, TEXT, FIM)}
_MODELS: Final = b"/v1/models"
_GENERATE: Final = Ability.GENERATE
_INCLUDE_USAGE: Final = {"include_usage": True}


class Service:
    """State of one gateway process that requests share."""

    def __init__(
        self,
        *,
        limits: Limits,
        pepper: bytes,
        journal: Journal,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.limits = limits
        self.journal = journal
        self.loop = loop
        self.counts = Counts()
        self.connections: set[ClientConnection] = set()
        self.exchanges: set[Exchange] = set()
        self.relays: set[Relay] = set()
        self.connecting: set[asyncio.Task[None]] = set()
        self.control_url = ""
        self.control_trust = Trust()
        self.accounts: dict[str, Account] = {}
        self.users = UserAccounts(limits, loop, self._wake_control)
        self.quotas = Quotas(self.account, self.users, loop)
        self.past: tuple[Counted, ...] = ()
        self.buffered_bytes = 0
        self.now_s = loop.time()
        """Monotonic seconds as of the last sweep: exact enough for deadlines, free to read."""
        self.is_draining = False
        self.wake_control: Callable[[], None] = _nobody_to_wake
        self._pepper = pepper
        self._prefix_key = blake2b(pepper, person=b"prompt prefixes").digest()
        self._ids = RequestIds()
        self._anchor_ns = time.time_ns() - time.monotonic_ns()
        self._replicas: dict[str, Replica] = {}
        self._fleets: dict[str, Fleet] = {}
        self.queues: dict[str, deque[Placing]] = {}
        self._leaving: set[Replica] = set()
        self._directory: Directory | None = None
        self.directory: Directory | None = None
        """What the snapshot says, while it is fresh; `current_directory` raises otherwise."""
        self._confirmed_at_ns = 0

    def now_ns(self) -> int:
        """Return ns since 1970 UTC, never backwards within this process."""
        return self._anchor_ns + time.monotonic_ns()

    # -- snapshot -----------------------------------------------------------------------------

    @property
    def snapshot(self) -> GatewaySnapshot | None:
        """The snapshot in force."""
        return self._directory.snapshot if self._directory is not None else None

    @property
    def snapshot_age_s(self) -> int:
        """Seconds since the leader last confirmed the snapshot; -1 without one."""
        if self._directory is None:
            return -1
        return max(0, self.now_ns() - self._confirmed_at_ns) // NS_PER_S

    def confirm(self, confirmed_at_ns: int) -> None:
        """The leader says that the snapshot in force was current at that time of our clock."""
        self._confirmed_at_ns = max(self._confirmed_at_ns, confirmed_at_ns)
        self._judge_freshness()

    def apply(self, snapshot: GatewaySnapshot, confirmed_at_ns: int) -> None:
        """Put a snapshot in force: keys that are not in it stop, replicas that left are let go."""
        views = {view.attempt: view for model in snapshot.models for view in model.replicas}
        for attempt, replica in list(self._replicas.items()):
            if views.get(attempt) != replica.view:
                del self._replicas[attempt]
                replica.retire()
                if replica.outstanding:
                    self._leaving.add(replica)
        for attempt, view in views.items():
            if attempt not in self._replicas:
                fragment = orjson.dumps({"replica": attempt, "zone": view.zone})[1:-1]
                self._replicas[attempt] = Replica(view, fragment, self.limits, self.loop)
        keep_fleets(self._fleets, snapshot.models)
        past, self.past = self.past, ()
        self.quotas.recall(past, snapshot.keys, self.now_ns())
        for key in snapshot.keys:
            self.account(key.project)
        self._directory = Directory(
            snapshot, self._pepper, self._replicas, self.accounts, self.quotas, fleets=self._fleets
        )
        self._confirmed_at_ns = confirmed_at_ns
        self._judge_freshness()
        for endpoint in list(self.queues):
            self._pump(endpoint)

    def account(self, project: str) -> Account:
        """Return the account of a project or an allowance, opened when needed."""
        account = self.accounts.get(project)
        if account is None:
            account = Account(project, self.limits, self.loop, self._wake_control)
            self.accounts[project] = account
        return account

    def _judge_freshness(self) -> None:
        """Serve nobody from a snapshot that is too old; asked at each sweep, not at each request."""
        directory = self._directory
        is_fresh = (
            directory is not None
            and self.now_ns() - self._confirmed_at_ns
            <= directory.snapshot.staleness_max_s * NS_PER_S
        )
        self.directory = directory if is_fresh else None
        if not is_fresh:
            self.quotas.drop_share()

    def _wake_control(self) -> None:
        self.wake_control()

    def current_directory(self) -> Directory:
        """Return what the snapshot says; raises `Unavailable` when it is missing or too old."""
        if self.directory is not None:
            return self.directory
        directory = self._directory
        if directory is None:
            raise Unavailable(
                "serve requests: the control plane has sent no snapshot yet",
                hint="try again shortly",
                details={"retry_after_s": 2},
            )
        raise Unavailable(
            f"serve requests: the control plane was last heard {self.snapshot_age_s} s ago and "
            f"revocations may be missed after {directory.snapshot.staleness_max_s} s",
            hint="the operator must start the control plane",
            details={"retry_after_s": 5},
        )

    def current_route(self, route: Route) -> Route:
        """Return the route as the snapshot in force has it; raises when the key may no longer."""
        directory = self.current_directory()
        if route.snapshot is directory.snapshot:
            return route
        renewed = directory.renew_route(directory.find(route.digest, self.now_ns), route)
        return renewed.marked(route.marks)

    def find_route(self, inbound: Inbound, name: str, identifier: bytes) -> Route:
        """Return the way of a request to the model it names; raises what `Directory` raises."""
        directory = self.directory or self.current_directory()
        caller = inbound.caller
        assert caller is not None
        if caller.snapshot is not directory.snapshot:  # one came while the body did
            caller = directory.renew(caller, self.now_ns)
        if not inbound.where:
            route = caller.routes.get(name)
            if route is not None:
                return route
        wish = Wish(inbound.where, identifier, self.now_ns())
        return directory.find_route(caller, name, wish)

    def fallback_route(self, route: Route, name: str) -> Route | None:
        """Return the way to a model that may serve instead, None where there is none now."""
        try:
            directory = self.current_directory()
            caller = directory.find(route.digest, self.now_ns)
        except MoulinError:
            return None
        found = directory.fallback_route(caller, route, name)
        return found.marked(route.marks) if found is not None else None

    # -- requests -----------------------------------------------------------------------------

    def authorise(self, url: bytes, authorization: bytes) -> Caller | None:
        """Return whose request this is, None on the paths that ask for no key.

        Raises `Unauthenticated`, or `Unavailable` when nobody can be authenticated.
        """
        if url in _OPEN_PATHS:
            return None
        directory = self.directory or self.current_directory()
        return directory.authenticate(authorization, self.now_ns)

    def serve(self, client: ClientConnection, inbound: Inbound) -> None:
        """Answer a complete request, at once or through an exchange."""
        identifier = self._ids.draw(self.now_ns())
        try:
            dialect = _COMPLETIONS.get(inbound.path)
            if dialect is not None and inbound.method == b"POST" and inbound.caller is not None:
                exchange = self._open(client, inbound, dialect, identifier)
                client.exchange = exchange
                exchange.start()
            elif inbound.path in KINDS and inbound.method == b"POST" and inbound.caller is not None:
                client.exchange = opened = open_media(self, client, inbound, identifier)
                opened.start()
            elif not self._serve_rest(client, inbound, identifier):
                client.finish(self._simple(inbound, b"x-request-id: req_%b\r\n" % identifier))
        except MoulinError as error:
            client.finish(answers.failure(error, request=identifier))

    def _serve_rest(self, client: ClientConnection, inbound: Inbound, identifier: bytes) -> bool:
        """Serve lines of batches, responses, and what is kept elsewhere; False for what is none."""
        if inbound.caller is None:
            return False
        if inbound.path.startswith(LINES):
            client.exchange = line = open_line(self, client, inbound, identifier)
            line.start()
            return True
        if inbound.path == RESPONSES and inbound.method == b"POST":
            open_response(self, client, inbound, identifier)
            return True
        client.exchange = open_relay(self, client, inbound, identifier)
        return client.exchange is not None

    def open_exchange(self, client: Client, inbound: Inbound, identifier: bytes) -> Exchange:
        """Return the exchange of a request that another part of the gateway makes of its client's.

        Raises what such a request raises, `InvalidRequest` for several completions, and `NotFound`
        where no model answers on its path.
        """
        dialect = _COMPLETIONS.get(inbound.path)
        opened: Exchange | Several | None = None
        if dialect is not None:
            opened = self._open(client, inbound, dialect, identifier)
        elif inbound.path in KINDS:
            opened = open_media(self, client, inbound, identifier)
        if opened is None:
            raise NotFound("serve this path", hint="see /v1/chat/completions")
        if isinstance(opened, Several):
            raise InvalidRequest("answer with several completions here", details={"param": "n"})
        return opened

    def _open(
        self,
        client: Client,
        inbound: Inbound,
        dialect: Dialect,
        identifier: bytes,
    ) -> Exchange | Several:
        try:
            body = orjson.loads(inbound.body)
        except orjson.JSONDecodeError as cause:
            raise InvalidRequest(f"read the body as JSON: character {cause.pos}") from None
        ask = read_request(dialect, body, drops=inbound.drops_params)
        ask.wants_figures = inbound.wants_figures or self.limits.tells_figures
        route = self.find_route(inbound, ask.model, identifier)
        model = route.model
        if route.alias is not None:
            body["model"] = model.name
        if model.ability is not _GENERATE:
            check_ability(model, _GENERATE)
        limit = body["max_tokens"] = output_limit(ask, model)
        if ask.is_stream:
            body["stream_options"] = _INCLUDE_USAGE
            if inbound.is_mistral:
                # Mistral's API sends usage in every stream; its client has no way to ask.
                ask.wants_usage = True
        if ask.infills:
            infill(body, model)
        bounds = Bounds(input_bound(ask, model, len(inbound.body)), limit, len(inbound.body))
        if ask.choices > 1:
            return self._open_several(client, (dialect, ask, route, bounds), split(body), inbound)
        form = _form(dialect, ask, identifier, inbound)
        prefix = prefix_of(body, self._prefix_key) if len(route.replicas) > 1 else NO_PREFIX
        order = Order(
            identifier, ask, model, dialect.upstream_path, orjson.dumps(body), bounds, form, prefix
        )
        return Exchange(self, client, route, order)

    def _open_several(
        self,
        client: Client,
        shared: tuple[Dialect, Ask, Route, Bounds],
        bodies: list[dict[str, object]],
        inbound: Inbound,
    ) -> Several:
        """Open an exchange for each completion; they share route, bounds and price."""
        dialect, ask, route, bounds = shared
        identifiers = [self.draw_id() for _ in bodies]
        several = Several(client, identifiers, shows_usage=ask.wants_usage)
        for number, body in enumerate(bodies):
            identifier = identifiers[number]
            form = _form(dialect, ask, identifier, inbound)
            order = Order(
                identifier,
                ask,
                route.model,
                dialect.upstream_path,
                orjson.dumps(body),
                bounds,
                form,
            )
            several.add(Exchange(self, Part(several, number), route, order))
        return several

    def draw_id(self) -> bytes:
        """Return a fresh request id, without its prefix."""
        return self._ids.draw(self.now_ns())

    def _simple(self, inbound: Inbound, headers: bytes) -> bytes:
        path = inbound.path
        if path in _COMPLETIONS or path in KINDS:
            error = InvalidRequest("serve this method here", hint="POST a body")
            body = answers.error_body(error, 405)
            return answers.whole(405, body, headers=headers + b"allow: POST\r\n")
        if inbound.method != b"GET":
            raise NotFound("serve this path", hint="see /v1/models and /v1/chat/completions")
        if path == b"/healthz":
            return self._health()
        if path == b"/metrics":
            text = prometheus_text(self).encode()
            return answers.whole(200, text, content_type=b"text/plain; version=0.0.4")
        if inbound.caller is not None and path.rstrip(b"/") == _MODELS:
            directory = self.current_directory()
            models = directory.visible_models(directory.renew(inbound.caller, self.now_ns))
            data = [_model_card(model) for model in models]
            return answers.whole(
                200, orjson.dumps({"object": "list", "data": data}), headers=headers
            )
        if inbound.caller is not None and path.startswith(_MODELS + b"/"):
            name = unquote(path[len(_MODELS) + 1 :].decode("latin-1"))
            directory = self.current_directory()
            model = directory.model(directory.renew(inbound.caller, self.now_ns), name)
            return answers.whole(200, orjson.dumps(_model_card(model)), headers=headers)
        raise NotFound("serve this path", hint="see /v1/models and /v1/chat/completions")

    def _health(self) -> bytes:
        try:
            self.current_directory()
        except Unavailable as error:
            return answers.failure(error)
        snapshot = self.snapshot
        version = snapshot.version if snapshot is not None else 0
        body = {"status": "ok", "snapshot": version, "snapshot_age_s": self.snapshot_age_s}
        return answers.whole(200, orjson.dumps(body))

    # -- replicas and queues ------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """How many requests wait for a replica."""
        return sum(map(len, self.queues.values()))

    def enqueue(self, exchange: Placing, endpoint: str) -> bool:
        """Let a request wait for a replica of the endpoint; False when the queue is full."""
        queue = self.queues.get(endpoint)
        if not queue:
            queue = self.queues.setdefault(endpoint, deque())
            self.wake_control()
        if len(queue) >= self.limits.queue_max:
            return False
        queue.append(exchange)
        return True

    def leave_queue(self, exchange: Placing, endpoint: str) -> None:
        """Forget a request that ended while it may have waited."""
        queue = self.queues.get(endpoint)
        if queue is not None and exchange in queue:
            queue.remove(exchange)

    def release(self, replica: Replica, endpoint: str) -> None:
        """Free a slot of a replica and give it to who waits longest."""
        replica.outstanding -= 1
        if replica.is_gone:
            self._let_go(replica)
        if self.queues.get(endpoint):
            self._pump(endpoint)

    def _let_go(self, replica: Replica) -> None:
        if not replica.outstanding:
            self._leaving.discard(replica)
            self.wake_control()

    def busy_attempts(self) -> tuple[str, ...]:
        """Return the attempts that left the snapshot and still answer requests, by name."""
        busy = {replica.view.attempt for replica in self._leaving}
        return tuple(sorted(busy - self._replicas.keys()))

    def _pump(self, endpoint: str) -> None:
        """Serve the queue in order; whoever cannot use a free replica keeps its place."""
        queue = self.queues.pop(endpoint, None)
        if not queue:
            return
        kept = deque(exchange for exchange in queue if not exchange.is_over)
        self.queues[endpoint] = waiting = deque[Placing]()
        while kept:
            exchange = kept.popleft()
            if not exchange.place_again():
                waiting.append(exchange)

    # -- time ---------------------------------------------------------------------------------

    def sweep(self) -> None:
        """End what took too long; called about once a second."""
        self._judge_freshness()
        now_s = self.now_s = self.loop.time()
        self.quotas.forget_past()
        for connection in [c for c in self.connections if c.deadline_s < now_s]:
            connection.expire()
        for exchange in [e for e in self.exchanges if e.deadline_s < now_s]:
            exchange.expire()
        for relay in [r for r in self.relays if r.deadline_s < now_s]:
            relay.expire()
        if self.journal.is_behind:
            self.journal.flush()


def _nobody_to_wake() -> None:
    """Before the control link exists; its first round asks anyway."""


def _form(dialect: Dialect, ask: Ask, identifier: bytes, inbound: Inbound) -> Form | None:
    """Return what an answer is turned into, None where it goes as it comes."""
    if not ask.needs_form:
        return None
    return make_form(dialect, ask, identifier, is_mistral=inbound.is_mistral)


def _model_card(model: ModelView) -> dict[str, object]:
    """Return a model as OpenAI and Mistral clients read it."""
    generates = model.ability is Ability.GENERATE
    return {
        "id": model.name,
        "object": "model",
        "type": "base",
        "created": model.created_s,
        "owned_by": "factory" if model.is_public else model.project,
        "name": model.name,
        "max_context_length": model.context_tokens,
        "capabilities": {
            "completion_chat": generates,
            "completion_fim": bool(model.infill),
            "function_calling": generates,
            "fine_tuning": False,
            "vision": False,
            "classification": False,
            "embeddings": model.ability is Ability.EMBED,
            "audio_transcription": model.ability is Ability.TRANSCRIBE,
            "audio_speech": model.ability is Ability.SPEAK,
        },
    }

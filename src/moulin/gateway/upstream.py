"""Connections to replicas: one request at a time each, kept alive, reused last-in first-out.

It turns bytes into events of an exchange (answer, stream piece, failure before or after the first
byte). It never retries and never decides what a failure costs.
"""

import asyncio
from typing import Protocol, cast

import httptools

from moulin.domain.snapshot import ReplicaView
from moulin.gateway.limits import Limits
from moulin.routing.affinity import seat_of
from moulin.routing.breaker import Circuit, Failure
from moulin.routing.figures import energy_note


class Caller(Protocol):
    """Who is told what a replica answers; exactly one of the endings is called, once."""

    is_over: bool
    """Whether nobody waits for the answer any more."""
    asks_stream: bool
    """Whether a good answer is a stream."""

    def upstream_request(self, replica: "Replica") -> bytes:
        """Return the whole request, head and body."""
        ...

    def connected(self, connection: "UpstreamConnection") -> None:
        """The request is on its way over this connection."""
        ...

    def stream_began(self) -> None:
        """The head of a stream arrived."""
        ...

    def streamed(self, data: bytes) -> None:
        """A piece of the stream arrived."""
        ...

    def stream_ended(self) -> None:
        """Ending: the stream is complete."""
        ...

    def answered(self, status: int, body: bytes) -> None:
        """Ending: a complete answer arrived."""
        ...

    def unanswered(
        self, replica: "Replica", failure: Failure, *, is_stale_connection: bool
    ) -> None:
        """Ending: nothing of an answer arrived."""
        ...

    def broken(self, why: str) -> None:
        """Ending: the answer stopped in the middle."""
        ...


class Replica:
    """A replica as this gateway sees it: its load, its health and its idle connections."""

    __slots__ = (
        "_connecting", "_host", "_limits", "_loop", "_port", "circuit", "fragment", "heads", "idle",
        "is_gone", "outstanding", "parallel_requests", "seat", "served", "view", "work", "zone_header",
    )  # fmt: skip

    def __init__(
        self, view: ReplicaView, fragment: bytes, limits: Limits, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.view = view
        self.fragment = fragment
        self.zone_header = f"x-moulin-zone: {view.zone}\r\n".encode() + energy_note(view)
        self.parallel_requests = view.parallel_requests
        self.outstanding = 0
        self.work = 0
        self.served = 0
        self.seat = seat_of(view.attempt)
        self.circuit = Circuit()
        self.is_gone = False
        self.idle: list[UpstreamConnection] = []
        host, _, port = view.address.rpartition(":")
        self._host, self._port = host.strip("[]") or "127.0.0.1", int(port)
        self._limits = limits
        self._loop = loop
        self._connecting: set[asyncio.Task[None]] = set()
        authorization = f"authorization: Bearer {view.key}\r\n" if view.key else ""
        self.heads = {
            path: (
                f"POST {path} HTTP/1.1\r\nhost: {view.address}\r\n{authorization}"
                "content-type: application/json\r\ncontent-length: "
            ).encode()
            for path in ("/v1/chat/completions", "/v1/completions")
        }

    def send(self, caller: Caller) -> None:
        """Send the caller's request over an idle connection, else over a new one."""
        while self.idle:
            connection = self.idle.pop()
            if not connection.is_closed:
                connection.start(caller, is_reused=True)
                return
        task = self._loop.create_task(self._connect(caller))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def keep(self, connection: "UpstreamConnection") -> None:
        """Keep a connection whose answer is complete, unless there is no use for it."""
        if self.is_gone or len(self.idle) >= self._limits.idle_connections_max:
            connection.abort()
        else:
            self.idle.append(connection)

    def retire(self) -> None:
        """The replica left the snapshot: requests under way go on, no new one is sent."""
        self.is_gone = True
        while self.idle:
            self.idle.pop().abort()

    async def _connect(self, caller: Caller) -> None:
        try:
            async with asyncio.timeout(self._limits.connect_timeout_s):
                _, connection = await self._loop.create_connection(
                    lambda: UpstreamConnection(self, self._limits), self._host, self._port
                )
        except (OSError, TimeoutError):
            if not caller.is_over:
                caller.unanswered(self, Failure.UNREACHABLE, is_stale_connection=False)
            return
        if caller.is_over:
            self.keep(connection)
        else:
            connection.start(caller, is_reused=False)


class UpstreamConnection(asyncio.Protocol):
    """One connection to a replica."""

    __slots__ = (
        "_caller", "_has_begun", "_is_complete", "_is_paused", "_is_reused", "_is_stream", "_keeps_alive",
        "_limits", "_parser", "_parts", "_replica", "_size_bytes", "_status", "_transport",
        "is_closed",
    )  # fmt: skip

    def __init__(self, replica: Replica, limits: Limits) -> None:
        self._replica = replica
        self._limits = limits
        self._caller: Caller | None = None
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self.is_closed = False
        self._is_paused = False
        self._is_reused = False
        self._keeps_alive = False
        self._status = 0
        self._reset()

    def start(self, caller: Caller, *, is_reused: bool) -> None:
        """Send a caller's request; the connection is its own until one of the endings."""
        self._caller = caller
        self._is_reused = is_reused
        caller.connected(self)
        self._transport.write(caller.upstream_request(self._replica))

    def abort(self) -> None:
        """Close at once; a replica sees it and stops generating."""
        self._caller = None
        self.is_closed = True
        self._transport.abort()

    def pause(self) -> None:
        """Stop reading: the client does not keep up."""
        if not self.is_closed and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._is_paused:
            self._is_paused = False
            if not self.is_closed:
                self._transport.resume_reading()

    # -- asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the caller which kind of failure this is."""
        self.is_closed = True
        if self._caller is None:
            if self in self._replica.idle:
                self._replica.idle.remove(self)
            return
        self._fail("the replica closed the connection")

    def data_received(self, data: bytes) -> None:
        """Parse, then hand on once what came together."""
        if self._caller is None:
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("the replica does not speak HTTP")
            return
        if self._is_stream and self._parts:
            piece = b"".join(self._parts)
            self._parts.clear()
            self._caller.streamed(piece)
        if self._is_complete and self._caller is not None:
            self._finish()
        elif self._size_bytes > self._limits.answer_bytes_max and self._caller is not None:
            self._fail("the answer is too long")

    # -- httptools ----------------------------------------------------------------------------

    def on_headers_complete(self) -> None:
        """Tell a stream, which was asked for, from an answer; no header is needed for it."""
        self._has_begun = True
        self._status = self._parser.get_status_code()
        caller = self._caller
        if caller is not None and caller.asks_stream and self._status == 200:
            self._is_stream = True
            caller.stream_began()

    def on_body(self, body: bytes) -> None:
        """Collect; `data_received` hands on."""
        self._parts.append(body)
        if not self._is_stream:
            self._size_bytes += len(body)

    def on_message_complete(self) -> None:
        """Note the end; `data_received` acts on it. An interim answer (100) is not the end."""
        if self._status >= 200:
            self._is_complete = True
            # Known only here: the parser forgets it when it turns to the next message.
            self._keeps_alive = self._parser.should_keep_alive()
        else:
            self._has_begun = False

    # -- internal -----------------------------------------------------------------------------

    def _reset(self) -> None:
        self._parts.clear()
        self._size_bytes = 0
        self._is_stream = self._has_begun = self._is_complete = False

    def _finish(self) -> None:
        caller, self._caller = self._caller, None
        assert caller is not None
        is_stream, status = self._is_stream, self._status
        parts = self._parts
        body = parts[0] if len(parts) == 1 and not is_stream else b"".join(parts)
        if self._keeps_alive:
            if self._is_paused:
                self.resume()
            self._reset()
            self._replica.keep(self)
        else:
            self.abort()
        if is_stream:
            caller.stream_ended()
        else:
            caller.answered(status, body)

    def _fail(self, why: str) -> None:
        caller, self._caller = self._caller, None
        has_begun, is_reused = self._has_begun, self._is_reused
        if not self.is_closed:
            self.abort()
        if caller is None:
            return
        if has_begun:
            caller.broken(why)
        else:
            caller.unanswered(self._replica, Failure.ERROR, is_stale_connection=is_reused)

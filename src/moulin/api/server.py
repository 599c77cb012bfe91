"""Runs the API inside the control process: one thread, one event loop, bounded connections.

It bounds what a connection may hold before a request exists (header bytes, time to send them), which
the server library leaves open. It installs no signal handlers: the supervisor stops it.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from moulin.api.problems import problem_response
from moulin.api.state import ApiState
from moulin.domain.errors import InvalidRequest

HEADER_BYTES_MAX: Final = 32_768
HEADER_WAIT_S: Final = 10.0
CONNECTIONS_MAX: Final = 2_000
BACKLOG: Final = 2_048
KEEP_ALIVE_S: Final = 60
STOP_WAIT_S: Final = 5
MESSAGE_BYTES_MAX: Final = 1 << 20
TICKS_PER_S: Final = 10


class GuardedProtocol(HttpToolsProtocol):
    """The library's connection with a bound on the bytes and the time before headers end."""

    _header_bytes = 0
    _header_timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The library asks the logger, not the setting; a line per request is not wanted anywhere.
        self.access_log = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the first request."""
        super().connection_made(transport)
        self._header_timer = self.loop.call_later(HEADER_WAIT_S, self._expire)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Give the next request its own clock and bound."""
        super().on_message_begin()
        self._header_bytes = 0
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_WAIT_S, self._expire)

    def on_url(self, url: bytes) -> None:
        """Count the target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the clock: from here on the application has its own."""
        self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request with a problem document, as every error is answered."""
        response = problem_response(
            InvalidRequest(
                "read the request: it is not HTTP, or its head is too large",
                hint=f"a head has at most {HEADER_BYTES_MAX} bytes, its target included",
            )
        )
        head = b"".join(b"%b: %b\r\n" % field for field in response.raw_headers)
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\n%bconnection: close\r\n\r\n%b"
            % (head, bytes(response.body))
        )
        self.transport.close()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > HEADER_BYTES_MAX:
            # Raised inside the parser's callback, which turns it into a 400 and a closed connection.
            raise ValueError("headers are too large")

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _expire(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self.transport.close()


class Tls(NamedTuple):
    """What connections are secured with, and what looks for a renewed certificate."""

    context: ssl.SSLContext
    refresh: Callable[[], object]


class ApiServer:
    """One running API on bound sockets; `run` blocks the calling thread until `stop`."""

    def __init__(
        self, app: FastAPI, bound: Sequence[socket.socket], tls: Tls | None = None
    ) -> None:
        self._sockets = list(bound)
        self._server = _Server(
            uvicorn.Config(
                app,
                loop="uvloop",
                http=GuardedProtocol,
                ws="websockets-sansio",
                ws_max_size=MESSAGE_BYTES_MAX,
                ws_per_message_deflate=False,
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS_MAX,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=STOP_WAIT_S,
            ),
            tls,
        )

    @property
    def is_started(self) -> bool:
        """Whether requests are answered."""
        return bool(self._server.started)

    def run(self) -> None:
        """Serve until `stop` is called; streams and long waits are ended first."""
        self._server.run(sockets=self._sockets)

    def stop(self) -> None:
        """Ask the server to end; callable from any thread and from a signal handler."""
        self._server.should_exit = True


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, tls: Tls | None) -> None:
        super().__init__(config)
        self._tls = tls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen with our own context where there is one: the library makes its own, for ever."""
        if self._tls is None:
            await super().startup(sockets)
            return
        await super().startup([])
        for each in sockets or ():
            server = await asyncio.get_running_loop().create_server(
                self._connection,
                sock=each,
                backlog=BACKLOG,
                ssl=self._tls.context,
                ssl_handshake_timeout=HEADER_WAIT_S,
            )
            self.servers.append(server)

    async def on_tick(self, counter: int) -> bool:
        """Look for a renewed certificate about once a second."""
        if self._tls is not None and counter % TICKS_PER_S == 0:
            self._tls.refresh()
        return await super().on_tick(counter)

    def _connection(self) -> asyncio.Protocol:
        return GuardedProtocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app: Any = self.config.app
        state = cast("ApiState", app.state.moulin)
        state.news.close()
        state.bridge.close()
        await super().shutdown(sockets)

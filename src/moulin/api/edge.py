"""The outermost ring of every request: its id, its size, its count, and no exception past it.

It never reads a body and never logs one; what it logs of a failure is where, not what.
"""

import asyncio
import contextlib
import logging
import re
import traceback
from time import perf_counter_ns
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moulin.api.messages import choose_language
from moulin.api.metrics import Metrics
from moulin.api.problems import problem_response
from moulin.domain.errors import BodyTooLarge, InternalError, MoulinError
from moulin.domain.ids import make_id
from moulin.ports.clock import Clock, IdSource

LOG: Final = logging.getLogger("moulin.api")
# Marks a request whose body was not read to its end: its connection cannot be used again.
UNREAD: Final = "moulin.is_body_unread"
# Bodies that go to a place of their own piece by piece; their routes have bounds of their own.
UPLOADS: Final = re.compile(r"/api/v1/(?:files|responses|projects/[^/]{1,63}/bundles/[0-9a-f]{64})")
DRAIN_S_MAX: Final = 2.0
DRAIN_BYTES_MAX: Final = 16_000_000
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,64}")


class Edge:
    """ASGI middleware around everything."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        clock: Clock,
        ids: IdSource,
        metrics: Metrics,
        body_bytes_max: int,
        upload_bytes_max: int,
    ) -> None:
        self._app = app
        # Drawn once: an id per request need not be unguessable, only different.
        self._id_prefix = make_id("req", clock.now_ns(), ids.entropy())
        self._count = 0
        self._metrics = metrics
        self._body_bytes_max = body_bytes_max
        self._upload_bytes_max = upload_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = self._request_id(headers.get(b"x-request-id", b""))
        scope["moulin.request_id"] = request_id
        sent = _Sent(scope, receive, send)
        begun_ns = perf_counter_ns()
        self._metrics.in_flight += 1
        try:
            is_upload = UPLOADS.fullmatch(scope["path"]) is not None
            limit = self._upload_bytes_max if is_upload else self._body_bytes_max
            if _is_too_large(headers.get(b"content-length", b""), limit):
                await self._refuse_large(limit, scope, receive, sent)
            else:
                await self._app(scope, receive, sent)
        except Exception as error:  # noqa: BLE001 - the last ring: whatever it is, the caller gets an answer
            await self._answer_bug(error, scope, receive, sent)
        finally:
            self._metrics.in_flight -= 1
            self._metrics.count(
                scope["method"], _route(scope), sent.status, perf_counter_ns() - begun_ns
            )

    def _request_id(self, given: bytes) -> str:
        if _REQUEST_ID.fullmatch(given):
            return given.decode("ascii")
        self._count += 1
        return f"{self._id_prefix}.{self._count}"

    async def _refuse_large(
        self, limit: int, scope: Scope, receive: Receive, sent: "_Sent"
    ) -> None:
        error = BodyTooLarge(
            f"read the body: it is larger than {limit} bytes",
            hint="send less at once; nothing of it was read",
        )
        scope[UNREAD] = True
        await self._problem(error, scope, receive, sent)

    async def _answer_bug(
        self, error: Exception, scope: Scope, receive: Receive, sent: "_Sent"
    ) -> None:
        where = "".join(traceback.format_tb(error.__traceback__))
        LOG.error(
            "%s %s %s failed with %s\n%s",
            sent.request_id,
            scope["method"],
            _route(scope),
            type(error).__name__,
            where,
        )
        if sent.status:
            raise ConnectionAbortedError("an answer failed half-way")
        told = InternalError(
            "answer the request: a bug in Moulin stopped it",
            hint=f"tell the operator: the log has the place under {sent.request_id}",
        )
        await self._problem(told, scope, receive, sent)

    async def _problem(
        self, error: MoulinError, scope: Scope, receive: Receive, sent: "_Sent"
    ) -> None:
        accept = dict(scope["headers"]).get(b"accept-language", b"").decode("latin-1")
        response = problem_response(
            error,
            language=choose_language(accept),
            instance=scope["path"],
            request_id=sent.request_id,
        )
        await response(scope, receive, sent)


class _Sent:
    """A `send` that adds the request id and remembers the status.

    An answer given before the body was read ends the connection, but not at once: closing with
    bytes unread makes the kernel reset the connection, and the client would never see the answer.
    So a little is read and thrown away first, until the client has noticed.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self.request_id: str = scope["moulin.request_id"]
        self.status = 0

    async def __call__(self, message: Message) -> None:
        is_unread = UNREAD in self._scope
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
            message["headers"] = [*headers, (b"connection", b"close")] if is_unread else headers
        elif is_unread and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _drain(self) -> None:
        size_bytes = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S_MAX):
                while size_bytes < DRAIN_BYTES_MAX:
                    message = await self._receive()
                    size_bytes += len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return


def _is_too_large(content_length: bytes, maximum: int) -> bool:
    # The server has refused a length that is no number; many digits are too large anyway.
    return len(content_length) > 18 or (content_length.isdigit() and int(content_length) > maximum)


def _route(scope: Scope) -> str:
    """Return the route's pattern, so that counters have no label per object."""
    route: Any = scope.get("route")
    return getattr(route, "path", "") or "other"

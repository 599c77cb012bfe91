"""Calls on files, batches and stored responses: passed to the control API with the client's own key.

Uploads and downloads go through piece by piece, each side held back while the other is slow. It
decides nothing: whose an object is, the control API knows. It never keeps a byte of one.
"""

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast
from urllib.parse import urlsplit

import httptools
import orjson

from moulin.domain.errors import (
    DeadlineExceeded,
    InvalidRequest,
    MoulinError,
    Unavailable,
    error_by_code,
)
from moulin.gateway import answers
from moulin.gateway.trust import why
from moulin.routing.objects import FILES, Asked, Call, find_call

if TYPE_CHECKING:
    from moulin.gateway.edge import Inbound
    from moulin.gateway.service import Service

ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
CONNECT_TIMEOUT_S: Final = 2.0
STEP_TIMEOUT_S: Final = 60.0
_BOUNDARY: Final = re.compile(rb"--([0-9A-Za-z'()+_,\-./:=? ]{1,200})\r\n")
_AWAY: Final = "reach the control plane, which keeps files and batches"


class Client(Protocol):
    """The side that asked."""

    def finish(self, answer: bytes) -> None:
        """Send a complete answer."""
        ...

    def finish_early(self, answer: bytes) -> None:
        """Send a complete answer to a request that is still being sent, and close."""
        ...

    def begin_whole(self, head: bytes) -> None:
        """Send the head of an answer whose length it says, without its empty line."""
        ...

    def send_raw(self, data: bytes) -> None:
        """Send a piece of it."""
        ...

    def end_whole(self, *, is_whole: bool) -> None:
        """End it; one that is not whole loses its connection."""
        ...

    def hold(self) -> None:
        """Stop reading from the client."""
        ...

    def read_on(self) -> None:
        """Read from the client again."""
        ...


class Relayed(NamedTuple):
    """A call with what goes along: who asks, the body's type, its length or -1 for pieces."""

    call: Call
    authorization: bytes
    identifier: bytes
    content_type: bytes
    length: int


class Relay(asyncio.Protocol):
    """One call, on a connection of its own to the control API; to its client it is an exchange."""

    def __init__(self, service: "Service", client: Client, relayed: Relayed) -> None:
        self._service = service
        self._client = client
        self._relayed = relayed
        self._transport: asyncio.Transport | None = None
        self._waiting: list[bytes] = []
        self._is_body_whole = False
        self._is_over = False
        self._is_holding = False
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._size_bytes = 0
        self._length = b""
        self._is_passing = False
        self.deadline_s = service.loop.time() + STEP_TIMEOUT_S

    # -- what the client's connection asks ----------------------------------------------------

    def start(self) -> None:
        """Connect; what the client sends meanwhile waits."""
        self._service.relays.add(self)
        task = self._service.loop.create_task(self._connect())
        self._service.connecting.add(task)
        task.add_done_callback(self._service.connecting.discard)

    def feed(self, data: bytes) -> None:
        """Pass on a piece of the client's body."""
        self._touch()
        if not data or self._is_over:
            return
        if self._relayed.length < 0:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._transport is None:
            self._waiting.append(data)
            self.pause_writing()
        else:
            self._transport.write(data)

    def end_body(self) -> None:
        """The client has sent everything."""
        self._is_body_whole = True
        if self._relayed.length < 0 and not self._is_over:
            last = b"0\r\n\r\n"
            if self._transport is None:
                self._waiting.append(last)
            else:
                self._transport.write(last)

    def cancel(self) -> None:
        """The client went away."""
        self._leave()

    def pause(self) -> None:
        """The client is slow: read no more from the control API."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def expire(self) -> None:
        """Give up a control API that says nothing."""
        self._fail(DeadlineExceeded(f"{_AWAY}: it took too long"))

    # -- asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the head and what came of the body."""
        self._transport = cast("asyncio.Transport", transport)
        if self._is_over:
            self._transport.abort()
            return
        self._transport.write(self._head() + b"".join(self._waiting))
        self._waiting.clear()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Parse; the callbacks below do the work."""
        self._touch()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail(Unavailable(f"{_AWAY}: it does not speak HTTP"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Say so, unless everything was said."""
        self._fail(Unavailable(f"{_AWAY}: it went away", details={"retry_after_s": 1}))

    def pause_writing(self) -> None:
        """The control API is slow: read no more from the client."""
        if not self._is_holding:
            self._is_holding = True
            self._client.hold()

    def resume_writing(self) -> None:
        """Read on."""
        if self._is_holding:
            self._is_holding = False
            self._client.read_on()

    # -- httptools ----------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the length."""
        if name.lower() == b"content-length":
            self._length = value

    def on_headers_complete(self) -> None:
        """Pass bytes on as they come; JSON is read as a whole."""
        is_good = self._parser.get_status_code() == 200
        if is_good and self._relayed.call.read is None and self._length and not self._is_over:
            self._is_passing = True
            head = answers.status_line(200) + (
                b"content-type: application/octet-stream\r\ncontent-length: %b\r\n"
                b"x-request-id: req_%b\r\n" % (self._length, self._relayed.identifier)
            )
            self._client.begin_whole(head)

    def on_body(self, body: bytes) -> None:
        """Pass a piece on, or keep it."""
        if self._is_over:
            return
        if self._is_passing:
            self._client.send_raw(body)
            return
        self._parts.append(body)
        self._size_bytes += len(body)
        if self._size_bytes > ANSWER_BYTES_MAX:
            self._fail(Unavailable(f"{_AWAY}: its answer is too long"))

    def on_message_complete(self) -> None:
        """Give the answer; an interim one (100) is not the end."""
        status = self._parser.get_status_code()
        if status < 200 or self._is_over:
            return
        body = b"".join(self._parts)
        self._leave()
        if self._is_passing:
            self._client.end_whole(is_whole=True)
            return
        headers = b"x-request-id: req_%b\r\n" % self._relayed.identifier
        try:
            data = _parsed(body)
            if status >= 400:
                raise _told(data, status)
            read = self._relayed.call.read
            shown = read(data) if read is not None else data
            answer = answers.whole(200, orjson.dumps(shown), headers=headers)
        except MoulinError as error:
            answer = answers.failure(error, request=self._relayed.identifier)
        self._answer(answer)

    # -- internal -----------------------------------------------------------------------------

    async def _connect(self) -> None:
        parts = urlsplit(self._service.control_url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._service.loop.create_connection(
                    lambda: self,
                    parts.hostname or "127.0.0.1",
                    port,
                    ssl=self._service.control_trust.context(self._service.control_url),
                )
        except (OSError, TimeoutError) as cause:
            words = f"{_AWAY}: {why(cause)}"
            self._fail(Unavailable(words, details={"retry_after_s": 2}))
        except InvalidRequest:
            words = f"{_AWAY}: the certificates to trust cannot be read"
            self._fail(Unavailable(words, details={"retry_after_s": 2}))

    def _head(self) -> bytes:
        relayed = self._relayed
        parts = urlsplit(self._service.control_url)
        length = (
            f"content-length: {relayed.length}"
            if relayed.length >= 0
            else "transfer-encoding: chunked"
        )
        target = parts.path.rstrip("/") + relayed.call.target
        head = (
            f"{relayed.call.method} {target} HTTP/1.1\r\nhost: {parts.netloc}\r\n"
            f"connection: close\r\n{length}\r\n"
        )
        return head.encode() + (
            b"authorization: %b\r\ncontent-type: %b\r\nx-request-id: req_%b\r\n\r\n"
            % (relayed.authorization, relayed.content_type, relayed.identifier)
        )

    def _touch(self) -> None:
        self.deadline_s = self._service.now_s + STEP_TIMEOUT_S

    def _answer(self, answer: bytes) -> None:
        if self._is_body_whole:
            self._client.finish(answer)
        else:
            self._client.finish_early(answer)

    def _fail(self, error: MoulinError) -> None:
        if self._is_over:
            return
        self._leave()
        if self._is_passing:
            self._client.end_whole(is_whole=False)
        else:
            self._answer(answers.failure(error, request=self._relayed.identifier))

    def _leave(self) -> None:
        self._is_over = True
        self._parts, self._waiting = [], []
        self.resume_writing()
        self._service.relays.discard(self)
        if self._transport is not None:
            self._transport.abort()


def open_relay(
    service: "Service", client: Client, inbound: "Inbound", identifier: bytes
) -> Relay | None:
    """Return the started relay of a complete request, None when its path is another's.

    Raises `InvalidRequest` and `NotFound`.
    """
    body = None
    target = inbound.target.decode("latin-1")
    is_upload = target.partition("?")[0].rstrip("/") == FILES and inbound.method == b"POST"
    if inbound.method == b"POST" and not is_upload and inbound.body:
        body = _parsed(inbound.body)
    call = find_call(Asked(inbound.method.decode("latin-1"), target, body, inbound.is_mistral))
    if call is None:
        return None
    sent = inbound.body if call.is_upload else b""
    if call.body is not None:
        sent = orjson.dumps(call.body)
    kind = _form_type(sent) if call.is_upload else answers.JSON
    relay = Relay(
        service, client, Relayed(call, inbound.authorization, identifier, kind, len(sent))
    )
    relay.start()
    relay.feed(sent)
    relay.end_body()
    return relay


class Upload:
    """A file on its way through: its type is known with its first bytes, then it is a relay."""

    def __init__(
        self, open_with: Callable[[bytes], Relay], client: Client, identifier: bytes
    ) -> None:
        self._open_with = open_with
        self._client = client
        self._identifier = identifier
        self._first = b""
        self.size_bytes = 0
        self.relay: Relay | None = None
        self._is_refused = False

    def feed(self, data: bytes) -> None:
        """Pass on a piece; the first line says how the form is divided."""
        if self.relay is not None:
            self.relay.feed(data)
            return
        self._first += data
        if self._is_refused or (b"\n" not in self._first and len(self._first) < 256):
            return
        try:
            kind = _form_type(self._first)
        except InvalidRequest as error:
            self._is_refused, self._first = True, b""
            self._client.finish_early(answers.failure(error, request=self._identifier))
            return
        self.relay = self._open_with(kind)
        self.relay.start()
        self.relay.feed(self._first)
        self._first = b""

    def end_body(self) -> None:
        """The client has sent everything."""
        if self.relay is not None:
            self.relay.end_body()
        elif not self._is_refused:
            self._is_refused = True
            error = InvalidRequest("read the upload: it is empty", details={"param": "file"})
            self._client.finish(answers.failure(error, request=self._identifier))

    def cancel(self) -> None:
        """The client went away."""
        if self.relay is not None:
            self.relay.cancel()

    def pause(self) -> None:
        """The client is slow."""
        if self.relay is not None:
            self.relay.pause()

    def resume(self) -> None:
        """Read on."""
        if self.relay is not None:
            self.relay.resume()


def open_upload(
    service: "Service", client: Client, authorization: bytes, *, length: int, is_mistral: bool
) -> Upload:
    """Return the way of a file that is about to be sent; `length` is -1 for pieces."""
    identifier = service.draw_id()
    call = find_call(Asked("POST", FILES, None, is_mistral))
    assert call is not None

    def open_with(content_type: bytes) -> Relay:
        relayed = Relayed(call, authorization, identifier, content_type, length)
        return Relay(service, client, relayed)

    return Upload(open_with, client, identifier)


def _form_type(first: bytes) -> bytes:
    """Return a form's content type, its boundary taken from the form's own first line."""
    match = _BOUNDARY.match(first)
    if match is None:
        raise InvalidRequest(
            "read the upload: it is no form",
            hint="send multipart/form-data with the fields file and purpose",
            details={"param": "file"},
        )
    return b'multipart/form-data; boundary="%b"' % match.group(1)


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as cause:
        raise InvalidRequest(f"read the body as JSON: character {cause.pos}") from None


def _told(problem: Any, status: int) -> MoulinError:
    """Return the error that a problem document of the control API tells of."""
    if type(problem) is not dict:
        return Unavailable(f"{_AWAY}: status {status}")
    kind = error_by_code(str(problem.get("code", "")))
    details = problem.get("details")
    return kind(
        str(problem.get("detail", "")),
        hint=str(problem.get("hint", "")),
        details=details if type(details) is dict else {},
    )

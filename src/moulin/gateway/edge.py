"""The client's side: strict HTTP/1.1 in, answers out, one request at a time per connection.

It decides what is HTTP and what is refused before anything is looked at (conflicting lengths, bad
chunking, too much head, too much body, too slow), and tells the exchange when its client is slow or
gone. It never reads a body's meaning. A refused connection is closed after its answer, so that
nothing behind a broken request is ever taken for another one.

Reference: RFC 9112 sections 2.2, 3.2, 6.1 and 6.3; llhttp in its strict default refuses the rest.
"""

import asyncio
import logging
import traceback
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import httptools

from moulin.domain.errors import DeadlineExceeded, InvalidRequest, MoulinError, Unavailable
from moulin.gateway import answers
from moulin.gateway.directory import Caller
from moulin.gateway.exchange import Exchange
from moulin.gateway.fields import KEEP_BY_SPELLING, learn_spelling
from moulin.gateway.grammar import METHODS, is_host, is_misread, is_target
from moulin.gateway.heads import KnownHead, Traits, learn
from moulin.gateway.passing import UPLOADS, Passing
from moulin.gateway.placing import NEVER_S
from moulin.gateway.relay import Relay, Upload
from moulin.gateway.several import Several

if TYPE_CHECKING:
    from moulin.gateway.responses import Responding
    from moulin.gateway.service import Service

_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\n"
)
_PIPELINED_BYTES_MAX: Final = 1 << 20
_LOG: Final = logging.getLogger(__name__)
# What a closed connection has instead of its parser; nothing is fed to it.
_NOBODYS: Final = httptools.HttpRequestParser(object())
_AUDIO_PATHS: Final = frozenset((b"/v1/audio/transcriptions", b"/v1/audio/translations"))


@dataclass(slots=True)
class Inbound:
    """A complete request; `caller` is None only on the paths that ask for no key.

    What follows `body` is what its head says: the `Traits` of `moulin.gateway.heads`.
    """

    caller: Caller | None
    body: bytes
    method: bytes
    path: bytes
    is_mistral: bool
    keeps_alive: bool
    is_http_10: bool
    drops_params: bool
    wants_figures: bool
    where: bytes
    target: bytes
    authorization: bytes


class ClientConnection(Passing):
    """One connection of a client.

    `deadline_s` is when the sweep closes it. What the head of the request being read says is in
    the attributes without underscore, where the table of headers puts it.
    """

    __slots__ = (
        "_body",
        "_body_bytes",
        "_caller",
        "_discarded_bytes",
        "_head_bytes",
        "_headers",
        "_is_head_done",
        "_is_head_long",
        "_is_in_message",
        "_is_paused",
        "_known",
        "_method",
        "_pipeline",
        "_pipeline_bytes",
        "_unfinished",
        "_url",
        "_whole",
        "drops_params",
        "host",
        "hosts",
        "once",
        "problem",
        "wants_close",
        "wants_continue",
        "wants_figures",
        "where",
    )  # fmt: skip

    def __init__(self, service: "Service") -> None:
        self._service = service
        self._parser = httptools.HttpRequestParser(self)
        self._pipeline: deque[Inbound] = deque()
        self._pipeline_bytes = 0
        self._is_closing = False
        self._is_deaf = False
        self._is_head_wanted = False
        self._is_mistral_answer = False
        self._is_paused = False
        self._last_words = b""
        self._unfinished = b""
        self._whole = b""
        self._known: KnownHead | None = None
        self._is_chunked_answer = True
        self._keeps_alive = True
        self.exchange: Exchange | Several | Relay | Upload | Responding | None = None
        self._upload: Upload | None = None
        self.is_busy = False
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._is_head_long = False
        self._discarded_bytes = 0
        self.on_message_begin()
        self._is_in_message = False
        self.deadline_s = service.now_s + service.limits.head_timeout_s

    # -- asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or turn it away when there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        limits = self._service.limits
        self._transport.set_write_buffer_limits(high=limits.write_buffer_bytes)
        if len(self._service.connections) >= limits.connections_max:
            self._transport.write(_too_many(limits.connections_max))
            self._transport.close()
            self._is_deaf = self._is_closing = True
            return
        self._service.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Free everything; a request under way is cancelled."""
        self._is_deaf = self._is_closing = True
        self._service.connections.discard(self)
        self._drop_body()
        self._unfinished = b""
        self._pipeline.clear()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.cancel()
        # A parser and its protocol hold each other: let go, or thousands wait for the collector.
        self._parser = _NOBODYS

    def data_received(self, data: bytes) -> None:
        """Serve what is known, parse what is not."""
        if self._is_deaf:
            self._discard(data)
        elif self._is_in_message or self.is_busy:
            self._parse(data)
        elif self._known is None or not self._serve_known(self._known, data):
            self._whole = data
            self._parse(data)
            self._whole = b""

    def eof_received(self) -> bool:
        """A client that stops sending is gone: half-open connections are closed."""
        return False

    def pause_writing(self) -> None:
        """The client does not read: stop reading from the replica, but not for ever."""
        self._is_paused = True
        self.deadline_s = self._service.now_s + self._service.limits.write_stall_s
        if self.exchange is not None:
            self.exchange.pause()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._is_paused = False
        self.deadline_s = NEVER_S
        if self.exchange is not None:
            self.exchange.resume()
        else:
            self._next()

    # -- httptools ----------------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
        """Let the parser read; the callbacks below do the work."""
        seen = self._unfinished + data if self._unfinished else data
        if (b"\t" in seen or b"RTSP/" in seen) and is_misread(seen):
            self._refuse(InvalidRequest("read this request: its head is not plain HTTP/1.1"))
            return
        # Counting field by field is worth its time only where the head may be too long.
        self._is_head_long = len(data) + self._head_bytes > self._service.limits.head_bytes_max
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(InvalidRequest("switch protocols: this gateway speaks HTTP/1.1 only"), 501)
            return
        except httptools.HttpParserCallbackError as fault:
            self._give_up(fault.__context__ or fault)
            return
        except httptools.HttpParserError:
            self._refuse(InvalidRequest("read this request: it is not well-formed HTTP/1.1"))
            return
        if not self._is_head_done and self._is_in_message:
            self._head_bytes += len(data)
            self._unfinished = seen
            if self._head_bytes > self._service.limits.head_bytes_max:
                self._refuse(*self._head_too_large())
        elif self._unfinished:
            self._unfinished = b""

    def on_message_begin(self) -> None:
        """Start a request."""
        self._url = b""
        self.authorization = b""
        self._head_bytes = 0
        self._headers = 0
        self.host = b""
        self.hosts = 0
        self.length = 0
        self.transfer_encodings = 0
        self.is_mistral = False
        self.drops_params = False
        self.wants_figures = False
        self.where = b""
        self.wants_continue = False
        self._is_head_done = False
        self._is_in_message = True
        self.problem = ""
        self.once = b""
        self.wants_close = False
        self._caller: Caller | None = None
        if not self.is_busy:
            self.deadline_s = self._service.now_s + self._service.limits.head_timeout_s

    def on_url(self, url: bytes) -> None:
        """Collect the target; it may come in pieces."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep what matters."""
        self._headers += 1
        if self._is_head_long:
            self._head_bytes += len(name) + len(value)
        try:
            keep = KEEP_BY_SPELLING[name]
        except KeyError:
            keep = learn_spelling(name)
        if keep is not None:
            keep(self, value)

    def on_headers_complete(self) -> None:
        """Judge the head before a byte of the body is kept."""
        self._is_head_done = True
        if self._is_deaf:
            return
        parser = self._parser
        method = self._method = parser.get_method()
        version = parser.get_http_version()
        self._is_http_10 = version == "1.0"
        if (
            self.hosts != 1
            or version != "1.1"
            or self.problem
            or not is_target(self._url)
            or not is_host(self.host)
            or method not in METHODS
            or self.transfer_encodings
            or self._headers > self._service.limits.headers_max
            or self._head_bytes > self._service.limits.head_bytes_max
            or self.length > self._service.limits.body_bytes_max
        ):
            refusal = self._head_refusal(version)
            if refusal is not None:
                self._refuse(*refusal)
                return
        try:
            self._caller = self._service.authorise(self._url, self.authorization)
        except MoulinError as error:
            self._refuse(error)
            return
        if not self.is_busy:
            self.deadline_s = self._service.now_s + self._service.limits.body_idle_s
        if self.wants_continue:
            self._transport.write(answers.CONTINUE)
        if self._url[:9] == UPLOADS and method == b"POST" and not self.is_busy:
            self._begin_upload()

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body, within bounds."""
        if self._is_deaf:
            return
        if self._upload is not None:
            self._pass_on(self._upload, body)
            return
        self._body.append(body)
        self._body_bytes += len(body)
        service = self._service
        service.buffered_bytes += len(body)
        if (
            self._body_bytes > service.limits.body_bytes_max
            and self._body_bytes > self._body_bytes_max()
        ):
            self._refuse(*self._body_too_large())
        elif service.buffered_bytes > service.limits.buffered_bytes_max:
            self._refuse(
                Unavailable("hold this body: too many are being sent", details={"retry_after_s": 1})
            )
        elif not self.is_busy:
            self.deadline_s = service.now_s + service.limits.body_idle_s

    def on_message_complete(self) -> None:
        """Serve the request, or keep it behind the one being served."""
        if self._is_deaf:
            return
        self._is_in_message = False
        if self._upload is not None:
            self._end_upload(self._upload)
            return
        parts = self._body
        traits = (
            self._method,
            self._url if b"?" not in self._url else self._url.partition(b"?")[0],
            self.is_mistral,
            self._parser.should_keep_alive() and not self.wants_close,
            self._is_http_10,
            self.drops_params,
            self.wants_figures,
            self.where,
            self._url,
            self.authorization,
        )
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        inbound = Inbound(self._caller, body, *traits)
        self._drop_body()
        if self._whole:
            self._learn(inbound, traits)
        if not self.is_busy:
            self._serve(inbound)
            return
        self._pipeline.append(inbound)
        self._pipeline_bytes += len(inbound.body)
        limits = self._service.limits
        if (
            len(self._pipeline) > limits.pipelined_max
            or self._pipeline_bytes > _PIPELINED_BYTES_MAX
        ):
            self._transport.abort()

    # -- exchange -----------------------------------------------------------------------------

    def finish(self, answer: bytes) -> None:
        """Send a complete answer and turn to the next request."""
        if not self._is_closing:
            if self._is_head_wanted:
                answer = answer[: answer.index(b"\r\n\r\n") + 4]
            elif self._is_mistral_answer:
                answer = answers.as_mistral(answer)
            self._transport.write(answer)
            self._next()

    def begin_stream(self, headers: bytes) -> None:
        """Send the head of a stream."""
        if not self._is_closing:
            framing = b"transfer-encoding: chunked\r\n" if self._is_chunked_answer else b""
            last = b"" if self._keeps_alive else b"connection: close\r\n"
            self._transport.write(b"%b%b%b%b\r\n" % (_STREAM_HEAD, framing, last, headers))

    def send_piece(self, data: bytes) -> None:
        """Send a piece of a stream."""
        if not self._is_closing:
            self._transport.write(
                b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked_answer else data
            )

    def end_stream(self, data: bytes, *, is_whole: bool) -> None:
        """Send the last piece and the end; a stream that is not whole ends with the connection."""
        if self._is_closing:
            return
        self.send_piece(data)
        if not is_whole:
            self.exchange = None
            self._close()
            return
        if self._is_chunked_answer:
            self._transport.write(b"0\r\n\r\n")
        self._next()

    def expire(self) -> None:
        """Close a connection that was too slow; say so where nothing was answered yet."""
        if self._is_closing or self.is_busy or not self._is_in_message:
            self._is_deaf = self._is_closing = True
            self._transport.abort()
            return
        self._refuse(DeadlineExceeded("read this request: it was sent too slowly"), 408)

    def drain(self) -> None:
        """Close when the running request, if any, is answered."""
        if self.is_busy:
            self._keeps_alive = False
        else:
            self._close()

    # -- internal -----------------------------------------------------------------------------

    def _serve_known(self, known: KnownHead, data: bytes) -> bool:
        """Serve a request that came in one piece and whose head is known; False for any other."""
        body = known.body_of(data)
        if body is None:
            return False
        service = self._service
        limits = service.limits
        room_bytes = limits.buffered_bytes_max - service.buffered_bytes
        if len(body) > limits.body_bytes_max or len(body) > room_bytes:
            return False
        try:
            directory = service.directory or service.current_directory()
            caller = directory.authenticate(known.authorization, service.now_ns)
            self._serve(Inbound(caller, body, *known.traits))
        except MoulinError as error:
            self._refuse(error)
        except Exception as fault:  # noqa: BLE001 - the loop would log its words
            self._give_up(fault)
        return True

    def _learn(self, inbound: Inbound, traits: Traits) -> None:
        """Remember the head of a request that came in one piece, unless its framing is unusual."""
        is_usual = inbound.keeps_alive and not (inbound.is_http_10 or self.wants_continue)
        if is_usual and inbound.caller is not None and not self.transfer_encodings:
            self._known = learn(self._whole, traits, len(inbound.body))

    def _serve(self, inbound: Inbound) -> None:
        self.is_busy = True
        self.deadline_s = NEVER_S
        self._keeps_alive = inbound.keeps_alive and not self._service.is_draining
        self._is_chunked_answer = not inbound.is_http_10
        self._is_head_wanted = inbound.method == b"HEAD"
        self._is_mistral_answer = inbound.is_mistral
        if inbound.is_http_10:
            # A 1.0 client that may keep alive would need an answer header that says so.
            self._keeps_alive = False
        self._service.serve(self, inbound)

    def _next(self) -> None:
        """Turn to the next request, once the client has read enough of the last answer."""
        self.exchange = None
        if self._is_paused:
            return
        self.is_busy = False
        if not self._keeps_alive:
            self._close()
        elif self._pipeline:
            inbound = self._pipeline.popleft()
            self._pipeline_bytes -= len(inbound.body)
            self.is_busy = True
            self._service.loop.call_soon(self._serve_later, inbound)
        elif self._last_words:
            self._say_last_words()
        else:
            self.deadline_s = self._service.now_s + self._service.limits.keep_alive_s

    def _serve_later(self, inbound: Inbound) -> None:
        if not self._is_closing:
            self._serve(inbound)

    def _close(self) -> None:
        """Close once the client has read what was written, for which it has as long as ever."""
        self._is_deaf = self._is_closing = True
        self.deadline_s = self._service.now_s + self._service.limits.write_stall_s
        self._transport.close()

    def _drop_body(self) -> None:
        self._service.buffered_bytes -= self._body_bytes
        self._body = []
        self._body_bytes = 0

    def _refuse(self, error: MoulinError, status: int = 0) -> None:
        """Stop listening and answer, after what was asked before on this connection."""
        self._is_deaf = True
        self._drop_body()
        self._service.counts.refused += 1
        self._last_words = answers.failure(
            error, status=status, request=self._service.draw_id(), is_last=True
        )
        if self.is_mistral:
            self._last_words = answers.as_mistral(self._last_words)
        if not self.is_busy:
            self._say_last_words()

    def _give_up(self, fault: BaseException) -> None:
        """Cut the connection: the fault is ours. What it says may hold words of a prompt, its place not."""
        place = traceback.extract_tb(fault.__traceback__)[-1]
        where = f"{place.filename.rpartition('/')[2]}:{place.lineno}"
        _LOG.error("a request failed inside: %s at %s", type(fault).__name__, where)
        self._transport.abort()

    def _say_last_words(self) -> None:
        """Answer and give the client a moment to read it.

        Closing at once would reset the connection while the client still sends, and the reset
        would destroy the answer on its way.
        """
        self._is_closing = True
        self._transport.write(self._last_words)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.deadline_s = self._service.now_s + self._service.limits.linger_s

    def _discard(self, data: bytes) -> None:
        """Drop what a refused client still sends, but not for the rest of a gigabyte."""
        self._discarded_bytes += len(data)
        if self._discarded_bytes > self._service.limits.linger_bytes_max:
            self._transport.abort()

    def _head_refusal(self, version: str) -> tuple[MoulinError, int] | None:
        limits = self._service.limits
        if self._headers > limits.headers_max or self._head_bytes > limits.head_bytes_max:
            return self._head_too_large()
        if version not in {"1.0", "1.1"}:
            return InvalidRequest("read this request: HTTP/1.1 or 1.0 is spoken here"), 505
        if self._method not in METHODS:
            return InvalidRequest("read this request: its method means nothing here"), 501
        problem = self.problem or self._ambiguity()
        if problem:
            return InvalidRequest(f"read this request: {problem}"), 400
        if self.length > self._body_bytes_max():
            return self._body_too_large()
        return None

    def _ambiguity(self) -> str:
        """Return what in this head another program might read differently, or nothing."""
        if not is_target(self._url):
            return "its target must be a plain path"
        if self.hosts > 1 or (not self.hosts and not self._is_http_10):
            return "exactly one Host header is needed"
        if self.hosts and not is_host(self.host):
            return "its Host header names no host"
        if self.transfer_encodings and (self.transfer_encodings > 1 or self._is_http_10):
            return "its transfer encoding is ambiguous"
        return ""

    def _head_too_large(self) -> tuple[MoulinError, int]:
        limits = self._service.limits
        return (
            InvalidRequest(
                f"read this request: its head exceeds {limits.head_bytes_max} bytes "
                f"or {limits.headers_max} fields"
            ),
            431,
        )

    def _body_bytes_max(self) -> int:
        """Return the bound of this path; asked only where the common one is passed."""
        limits = self._service.limits
        if self._url[:9] == UPLOADS and not self.is_busy:
            return limits.upload_bytes_max
        is_audio = self._url.partition(b"?")[0] in _AUDIO_PATHS
        return limits.audio_bytes_max if is_audio else limits.body_bytes_max

    def _body_too_large(self) -> tuple[MoulinError, int]:
        limit = self._body_bytes_max()
        return InvalidRequest(f"read this request: its body exceeds {limit} bytes"), 413


def _too_many(limit: int) -> bytes:
    error = Unavailable(
        f"take this connection: {limit} are open already", details={"retry_after_s": 1}
    )
    return answers.failure(error, is_last=True)

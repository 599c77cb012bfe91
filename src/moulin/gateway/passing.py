"""The part of a client's connection that lets files through: uploads in pieces, downloads in pieces.

It decides how much of an upload is taken and when a client is held back. It never reads a file.
"""

import asyncio
from typing import TYPE_CHECKING, Final

from moulin.domain.errors import BodyTooLarge
from moulin.gateway import answers
from moulin.gateway.relay import Relay, Upload, open_upload

if TYPE_CHECKING:
    import httptools

    from moulin.gateway.exchange import Exchange
    from moulin.gateway.responses import Responding
    from moulin.gateway.service import Service
    from moulin.gateway.several import Several

UPLOADS: Final = b"/v1/files"


class Passing(asyncio.Protocol):
    """What `ClientConnection` has besides serving requests whole."""

    __slots__ = (
        "_is_chunked_answer", "_is_closing", "_is_deaf", "_is_head_wanted", "_is_http_10",
        "_is_mistral_answer", "_keeps_alive", "_last_words", "_parser", "_service", "_transport",
        "_upload", "authorization", "deadline_s", "exchange", "is_busy", "is_mistral", "length",
        "transfer_encodings",
    )  # fmt: skip

    exchange: "Exchange | Several | Relay | Upload | Responding | None"
    deadline_s: float
    is_busy: bool
    is_mistral: bool
    authorization: bytes
    length: int
    transfer_encodings: int
    _upload: Upload | None
    _service: "Service"
    _transport: asyncio.Transport
    _parser: "httptools.HttpRequestParser"
    _is_closing: bool
    _is_deaf: bool
    _is_chunked_answer: bool
    _is_head_wanted: bool
    _is_http_10: bool
    _is_mistral_answer: bool
    _keeps_alive: bool
    _last_words: bytes

    def finish_early(self, answer: bytes) -> None:
        """Answer a request that is still being sent: nothing more of it is wanted."""
        if self._is_closing:
            return
        self.exchange = self._upload = None
        self._is_deaf = True
        head, _, body = answer.partition(b"\r\n\r\n")
        self._last_words = b"%b\r\nconnection: close\r\n\r\n%b" % (head, body)
        if self._is_mistral_answer:
            self._last_words = answers.as_mistral(self._last_words)
        self._transport.resume_reading()
        self._say_last_words()

    def begin_whole(self, head: bytes) -> None:
        """Send the head of an answer whose length it says, without its empty line."""
        if not self._is_closing:
            last = b"\r\n" if self._keeps_alive else b"connection: close\r\n\r\n"
            self._transport.write(head + last)

    def send_raw(self, data: bytes) -> None:
        """Send a piece of it."""
        if not self._is_closing:
            self._transport.write(data)

    def end_whole(self, *, is_whole: bool) -> None:
        """End it; what is not whole ends with the connection."""
        if self._is_closing:
            return
        if is_whole:
            self._next()
        else:
            self.exchange = None
            self._close()

    def hold(self) -> None:
        """Read no more from the client for now."""
        if not self._is_closing:
            self._transport.pause_reading()

    def read_on(self) -> None:
        """Read from the client again."""
        if not self._is_closing:
            self._transport.resume_reading()

    def _begin_upload(self) -> None:
        """Let a file go through piece by piece; it is a request being served from its head on."""
        self.is_busy = True
        self.deadline_s = self._service.now_s + self._service.limits.body_idle_s
        self._is_chunked_answer = not self._is_http_10
        self._is_head_wanted = False
        self._is_mistral_answer = self.is_mistral
        length = -1 if self.transfer_encodings else self.length
        self._upload = self.exchange = open_upload(
            self._service, self, self.authorization, length=length, is_mistral=self.is_mistral
        )

    def _pass_on(self, upload: Upload, body: bytes) -> None:
        limit = self._service.limits.upload_bytes_max
        self.deadline_s = self._service.now_s + self._service.limits.body_idle_s
        upload.size_bytes += len(body)
        if upload.size_bytes <= limit:
            upload.feed(body)
            return
        upload.cancel()
        error = BodyTooLarge(
            f"read the upload: it exceeds {limit} bytes", hint="send it in several files"
        )
        self.finish_early(answers.failure(error))

    def _end_upload(self, upload: Upload) -> None:
        self._upload = None
        self.deadline_s = float("inf")
        is_kept = self._parser.should_keep_alive() and not self._is_http_10
        self._keeps_alive = is_kept and not self._service.is_draining
        upload.end_body()

    def finish(self, answer: bytes) -> None:
        """Send a complete answer."""
        raise AssertionError  # the connection's own, as the three below

    def _next(self) -> None:
        """Turn to the next request."""
        raise AssertionError

    def _close(self) -> None:
        raise AssertionError

    def _say_last_words(self) -> None:
        raise AssertionError

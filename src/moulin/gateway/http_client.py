"""A client for one kind of call: POST a JSON body to the control plane over a kept connection.

It tells a call that certainly was not received (`NotSent`) from one that may have been
(`Unreachable`), because money must not be offered twice. It never retries.
"""

import asyncio
import contextlib
from typing import Final
from urllib.parse import urlsplit

import httptools

from moulin.domain.errors import InvalidRequest
from moulin.gateway.trust import Trust, why

_ANSWER_BYTES_MAX: Final = 256 * 1024 * 1024
_CONNECT_TIMEOUT_S: Final = 2.0


class Unreachable(Exception):
    """No answer came; the control plane may have acted on the call."""


class NotSent(Unreachable):
    """No connection: the control plane cannot have seen the call."""


class _Answer:
    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.is_complete = False
        self.keeps_alive = False
        self.request_id = ""
        self.parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-request-id":
            self.request_id = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        self.is_complete = True
        self.keeps_alive = self.parser.should_keep_alive()


class HttpClient:
    """One kept connection to `url`; calls are made one after the other.

    `request_id` is what the last answer was called.
    """

    def __init__(self, url: str, key: str, *, trust: Trust | None = None) -> None:
        parts = urlsplit(url)
        self._url = url
        self._host = parts.hostname or "127.0.0.1"
        self._trust = trust or Trust()
        self.request_id = ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._prefix = parts.path.rstrip("/")
        self._head = (
            f"host: {parts.netloc}\r\nauthorization: Bearer {key}\r\n"
            "content-type: application/json\r\naccept: application/json\r\n"
        )
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        """Return status and body of the answer.

        Raises `NotSent` when no connection was possible and `Unreachable` when no whole answer
        came in `timeout_s`.
        """
        reader, writer = await self._connect()
        head = (
            f"POST {self._prefix}{path} HTTP/1.1\r\n{self._head}content-length: {len(body)}\r\n\r\n"
        )
        try:
            async with asyncio.timeout(timeout_s):
                writer.writelines((head.encode(), body))
                return await self._read_answer(reader)
        except (OSError, TimeoutError, httptools.HttpParserError, EOFError) as cause:
            self.close()
            raise Unreachable(
                f"no answer from the control plane: {type(cause).__name__}"
            ) from cause
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        streams, self._streams = self._streams, None
        if streams is not None:
            with contextlib.suppress(OSError, RuntimeError):
                streams[1].transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        streams = self._streams
        if streams is not None and not streams[0].at_eof() and not streams[1].is_closing():
            return streams
        self.close()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                self._streams = await asyncio.open_connection(
                    self._host, self._port, ssl=self._trust.context(self._url)
                )
        except (OSError, TimeoutError) as cause:
            raise NotSent(f"no connection to the control plane: {why(cause)}") from cause
        except InvalidRequest as cause:
            raise NotSent(cause.message) from cause
        return self._streams

    async def _read_answer(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        answer = _Answer()
        size_bytes = 0
        while not answer.is_complete:
            data = await reader.read(65536)
            size_bytes += len(data)
            if not data or size_bytes > _ANSWER_BYTES_MAX:
                raise EOFError
            answer.parser.feed_data(data)
        if not answer.keeps_alive:
            self.close()
        self.request_id = answer.request_id
        return answer.parser.get_status_code(), b"".join(answer.parts)

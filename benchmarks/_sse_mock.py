"""A replica that answers at once: a stream of 100 events one by one, a stream left open, or JSON.

Run as a program with its port. A body with `"stream":true` gets the stream, one that says `hold` gets
its first event and no more.
"""

import asyncio
import signal
import sys
from typing import Final, cast

import uvloop

EVENTS: Final = 100
_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_EVENT: Final = (
    b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"mock","choices":'
    b'[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
)
_USAGE: Final = (
    b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"mock","choices":[],'
    b'"usage":{"prompt_tokens":31,"completion_tokens":64,"total_tokens":95}}\n\n'
)
_JSON: Final = (
    b'{"id":"c1","object":"chat.completion","created":1,"model":"mock","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"Paris."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":31,"completion_tokens":12,"total_tokens":43}}'
)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_EVENT_CHUNK: Final = _chunk(_EVENT)
_END: Final = _chunk(_USAGE + b"data: [DONE]\n\n") + b"0\r\n\r\n"
_WHOLE: Final = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(_JSON), _JSON)


class Replica(asyncio.Protocol):
    """One connection; requests come one after the other and in one piece, as small ones do here."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._left = 0

    def data_received(self, data: bytes) -> None:
        """Answer."""
        if b'"stream":true' not in data and b'"stream": true' not in data:
            self._transport.write(_WHOLE)
            return
        self._transport.write(_HEAD + _EVENT_CHUNK)
        if b"hold" not in data:
            self._left = EVENTS - 2
            self._step()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop."""
        self._left = 0

    def _step(self) -> None:
        """Send one event and give way: each is a write of its own, as tokens are."""
        if self._left > 0:
            self._left -= 1
            self._transport.write(_EVENT_CHUNK)
            asyncio.get_running_loop().call_soon(self._step)
        elif not self._transport.is_closing():
            self._transport.write(_END)


async def serve(port: int) -> None:
    """Serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    server = await loop.create_server(Replica, "127.0.0.1", port, backlog=2048)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))

"""`python -m benchmarks._failover_replica PORT COUNTRY`: a model server that says where it stands.

It answers chats after a moment, whole or as a stream, and names its own country in every answer, as
text of the model: nothing the gateway says of a zone is believed.
"""

import asyncio
import json
import sys
from typing import Any

DELAY_S = 0.03
EVENTS = 5
EVENT_S = 0.01
_USAGE = {"prompt_tokens": 20, "completion_tokens": EVENTS, "total_tokens": 20 + EVENTS}
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


class Server:
    """The server of one country."""

    def __init__(self, country: str) -> None:
        self._country = country

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests of one connection until it ends."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
                asked = json.loads(await reader.readexactly(length))
                await asyncio.sleep(DELAY_S)
                if asked.get("stream"):
                    await self._stream(writer)
                else:
                    self._answer(writer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            writer.transport.abort()

    def _answer(self, writer: asyncio.StreamWriter) -> None:
        message = {"role": "assistant", "content": self._country}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = json.dumps(
            {"id": "c", "object": "chat.completion", "created": 1, "model": "mock",
             "choices": [choice], "usage": _USAGE}
        ).encode()  # fmt: skip
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(_STREAM_HEAD)
        for number in range(EVENTS):
            text = self._country if number == 0 else "."
            self._event(writer, {"choices": [{"index": 0, "delta": {"content": text}}]})
            await writer.drain()
            await asyncio.sleep(EVENT_S)
        self._event(writer, {"choices": [], "usage": _USAGE})
        _piece(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")

    @staticmethod
    def _event(writer: asyncio.StreamWriter, chunk: dict[str, Any]) -> None:
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", **chunk}
        _piece(writer, b"data: " + json.dumps(chunk).encode() + b"\n\n")


def _piece(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


async def _main(port: int, country: str) -> None:
    server = await asyncio.start_server(Server(country).serve, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), sys.argv[2]))

"""A replica of the tests that speaks OpenAI shapes over real sockets and can be told to misbehave."""

import asyncio
import json
import threading
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Behaviour:
    """How requests are answered from now on."""

    status: int = 200
    tokens_input: int = 5
    tokens_output: int = 3
    events: int = 3
    event_delay_s: float = 0.0
    delay_s: float = 0.0
    text: str = "Paris."
    words: tuple[str, ...] = ()
    has_usage: bool = True
    has_done: bool = True
    closes_after_events: int = -1
    closes_at_once: bool = False


@dataclass
class Seen:
    """What the replica saw: bodies, headers, and connections that went away while it answered."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    cancelled: int = 0
    answered: int = 0


class ReplicaFake:
    def __init__(self) -> None:
        self.behaviour = Behaviour()
        self.seen = Seen()
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)

    def close(self) -> None:
        self.stop()
        asyncio.run_coroutine_threadsafe(self._cancel_rest(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _cancel_rest(self) -> None:
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(
                    next(
                        line.partition(":")[2]
                        for line in head.splitlines()
                        if line.lower().startswith("content-length:")
                    )
                )
                body = json.loads(await reader.readexactly(length))
                self.seen.heads.append(head)
                self.seen.bodies.append(body)
                if self.behaviour.closes_at_once:
                    break
                answering = asyncio.ensure_future(self._answer(body, writer))
                watching = asyncio.ensure_future(reader.read(1))
                await asyncio.wait([answering, watching], return_when=asyncio.FIRST_COMPLETED)
                if watching.done():
                    self.seen.cancelled += not answering.done()
                    answering.cancel()
                    await asyncio.gather(answering, watching, return_exceptions=True)
                    break
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                self.seen.answered += 1
                if answering.result():
                    break
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _answer(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        """Answer one request; True when the connection must be closed behind it."""
        how = self.behaviour
        await asyncio.sleep(how.delay_s)
        if how.status != 200:
            error = json.dumps({"error": {"message": "no", "type": "x", "code": how.status}})
            self._whole(writer, how.status, error.encode())
        elif body.get("stream"):
            return await self._stream(body, writer)
        else:
            self._whole(writer, 200, json.dumps(self._completion(body)).encode())
        await writer.drain()
        return False

    def _whole(self, writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
        writer.write(
            f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )

    async def _stream(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        how = self.behaviour
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        words = how.words or tuple(f"w{number} " for number in range(how.events))
        for number, word in enumerate(words):
            if number == how.closes_after_events:
                return True
            self._event(writer, self._chunk(word))
            await writer.drain()
            await asyncio.sleep(how.event_delay_s)
        self._event(writer, self._chunk("", finish="stop"))
        if how.has_usage and (body.get("stream_options") or {}).get("include_usage"):
            self._event(writer, {**self._chunk(""), "choices": [], "usage": self._usage()})
        if how.has_done:
            self._piece(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return False

    def _event(self, writer: asyncio.StreamWriter, chunk: dict[str, Any]) -> None:
        self._piece(writer, b"data: " + json.dumps(chunk).encode() + b"\n\n")

    @staticmethod
    def _piece(writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _usage(self) -> dict[str, int]:
        how = self.behaviour
        return {
            "prompt_tokens": how.tokens_input,
            "completion_tokens": how.tokens_output,
            "total_tokens": how.tokens_input + how.tokens_output,
        }

    def _chunk(self, text: str, finish: str | None = None) -> dict[str, Any]:
        delta = {"role": "assistant", "content": text}
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {
            "id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [choice],
        }  # fmt: skip

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = {"id": "c1", "created": 1, "model": "m"}
        if "messages" in body:
            message = {"role": "assistant", "content": self.behaviour.text}
            answer["object"] = "chat.completion"
            answer["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
        else:
            answer["object"] = "text_completion"
            answer["choices"] = [
                {"index": 0, "text": self.behaviour.text, "finish_reason": "stop", "logprobs": None}
            ]
        if self.behaviour.has_usage:
            answer["usage"] = self._usage()
        return answer

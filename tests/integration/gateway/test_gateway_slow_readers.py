"""Clients that ask and do not read: what they may hold, and for how long."""

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from moulin.gateway.edge import ClientConnection
from moulin.gateway.journal import Journal
from moulin.gateway.limits import Limits
from moulin.gateway.service import Service
from tests.integration.gateway.plant import (
    CHAT,
    KEY,
    PEPPER,
    chat_body,
    eventually,
    model_view,
    replica_view,
    snapshot,
)
from tests.integration.gateway.replica_fake import ReplicaFake

STALL_S = 0.5
LONG = "word " * 20_000


def request(*, stream: bool) -> bytes:
    body = json.dumps(chat_body(stream=stream, max_tokens=64)).encode()
    return (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n"
        f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )


class Edge:
    """A service with real sockets in this process, so that its buffers can be looked at."""

    def __init__(self, folder: Path, replica: ReplicaFake) -> None:
        loop = asyncio.get_running_loop()
        limits = Limits(write_stall_s=STALL_S, sweep_s=0.05, keep_alive_s=60)
        journal = Journal(folder, 1, loop)
        self.service = Service(limits=limits, pepper=PEPPER, journal=journal, loop=loop)
        self.service.apply(snapshot(model_view(replica_view(replica))), self.service.now_ns())
        self.service.account("lab").escrow.grant(10**15)
        self.buffered_bytes_max = 0

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self.service.sweep()
                sizes = [c._transport.get_write_buffer_size() for c in self.service.connections]
                self.buffered_bytes_max = max([self.buffered_bytes_max, *sizes])
                await asyncio.sleep(0.02)

    async def ask_and_not_read(self, data: bytes) -> None:
        """Send a request, read nothing, and wait until the gateway has had enough."""
        server = await self.service.loop.create_server(
            lambda: ClientConnection(self.service), "127.0.0.1", 0
        )
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(server.sockets[0].getsockname())
            client.sendall(data)
            await self.until(lambda: len(self.service.connections) == 1)
            await self.until(lambda: not self.service.connections)
        server.close()
        self.service.apply(snapshot(), self.service.now_ns())  # idle connections to replicas go
        await asyncio.sleep(0.1)
        self.service.journal.close()


def test_a_stream_nobody_reads_waits_at_the_replica_and_is_cut(
    tmp_path: Path, replica: ReplicaFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica.behaviour.events = 1_000
    chunk = replica._chunk(LONG)
    monkeypatch.setattr(replica, "_chunk", lambda *_, **__: chunk)

    async def scenario() -> Edge:
        edge = Edge(tmp_path, replica)
        await edge.ask_and_not_read(request(stream=True))
        return edge

    edge = asyncio.run(scenario())
    assert 64 * 1024 < edge.buffered_bytes_max < 1024 * 1024
    eventually(lambda: not replica._writers)
    assert not edge.service.exchanges


def test_an_answer_nobody_reads_is_not_kept_for_ever(tmp_path: Path, replica: ReplicaFake) -> None:
    replica.behaviour.text = "a" * 20_000_000

    async def scenario() -> Edge:
        edge = Edge(tmp_path, replica)
        await edge.ask_and_not_read(request(stream=False))
        return edge

    edge = asyncio.run(scenario())
    assert edge.buffered_bytes_max > 10_000_000
    assert not edge.service.connections

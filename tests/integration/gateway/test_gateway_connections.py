"""What a connection leaves behind: nothing, with the collector's help or without it."""

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from moulin.gateway.edge import ClientConnection
from tests.integration.gateway.plant import snapshot
from tests.integration.gateway.replica_fake import ReplicaFake
from tests.integration.gateway.test_gateway_slow_readers import Edge, request

CONNECTIONS = 20


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only counts of references free anything here."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("data", [b"", request(stream=False), b"GET / HTTP/1.1\r\nbad"])
@pytest.mark.usefixtures("no_collector")
def test_closed_connections_are_freed_at_once(
    tmp_path: Path, replica: ReplicaFake, data: bytes
) -> None:
    assert asyncio.run(_left_after(tmp_path, replica, data)) == 0


async def _left_after(folder: Path, replica: ReplicaFake, data: bytes) -> int:
    edge = Edge(folder, replica)
    loop = edge.service.loop
    server = await loop.create_server(lambda: ClientConnection(edge.service), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    for _ in range(CONNECTIONS):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(data)
        if data.startswith(b"POST"):
            await reader.read()
        writer.close()
        await writer.wait_closed()
    await edge.until(lambda: not edge.service.connections)
    server.close()
    edge.service.apply(snapshot(), edge.service.now_ns())  # idle connections to replicas go
    await asyncio.sleep(0.1)
    edge.service.journal.close()
    return sum(isinstance(found, ClientConnection) for found in gc.get_objects())

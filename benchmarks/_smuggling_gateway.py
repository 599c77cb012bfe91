"""Moulin's gateway whose last step answers with how it framed the request, for `smuggling`.

Connections, parser, bounds, keys and pipelining are the gateway's own; only what would go on to a
replica is told to the client instead. Run as a program: the port, then a folder.
"""

import asyncio
import hashlib
import signal
import sys
import time
from pathlib import Path

import uvloop

from benchmarks._gateway import PEPPER, snapshot
from moulin.gateway import answers
from moulin.gateway.edge import ClientConnection, Inbound
from moulin.gateway.journal import Journal
from moulin.gateway.limits import Limits
from moulin.gateway.service import Service

WAIT_S = 1.0
"""How long an unfinished request is waited for."""


class EchoService(Service):
    """A service that serves nobody and tells everybody."""

    def serve(self, client: ClientConnection, inbound: Inbound) -> None:
        """Answer with the frame, a moment later, as a replica would."""
        told = frame(inbound.method, inbound.path, inbound.body)
        answer = answers.whole(200, b"", headers=b"x-frame: %b\r\n" % told)
        self.loop.call_soon(client.finish, answer)


def frame(method: bytes, target: bytes, body: bytes) -> bytes:
    """Return one request as text without spaces: method, path and body, long ones by their digest."""
    path = target.partition(b"?")[0]
    shown = path.hex() if len(path) < 200 else hashlib.sha256(path).hexdigest()
    digest = hashlib.sha256(body).hexdigest()[:16]
    return f"{method.hex()}/{shown}/{len(body)}/{digest}".encode()


async def serve(port: int, folder: Path) -> None:
    """Serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    limits = Limits(
        head_timeout_s=WAIT_S, body_idle_s=WAIT_S, keep_alive_s=WAIT_S, sweep_s=0.1, linger_s=0.2
    )
    service = EchoService(limits=limits, pepper=PEPPER, journal=Journal(folder, 1, loop), loop=loop)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    shown = snapshot("127.0.0.1:1")
    service.apply(shown, time.time_ns())
    server = await loop.create_server(lambda: ClientConnection(service), "127.0.0.1", port)
    while not stop.is_set():
        service.confirm(service.now_ns())
        service.sweep()
        await asyncio.sleep(limits.sweep_s)
    server.close()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), Path(sys.argv[2])))

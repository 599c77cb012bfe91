"""One gateway process from its arguments to its exit status.

It decides the order of starting (lock, journal, cached snapshot, port, control plane) and of
stopping (no new requests, finish or cut, flush, return escrow). It never needs the control plane to
start serving from a snapshot that is fresh enough.
"""

import argparse
import asyncio
import contextlib
import errno
import fcntl
import gc
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvloop

from moulin.domain.addresses import LOOPBACK, addresses_of, check_reach
from moulin.domain.errors import DataDirectoryBusy, InvalidRequest, MoulinError, PortInUse
from moulin.gateway.cache import SnapshotCache
from moulin.gateway.control import ControlLink, Superseded
from moulin.gateway.edge import ClientConnection
from moulin.gateway.journal import Journal, JournalReader, predecessors
from moulin.gateway.limits import Limits
from moulin.gateway.recall import recall
from moulin.gateway.service import Service
from moulin.gateway.tls import HANDSHAKE_S, Certificate
from moulin.gateway.trust import Trust

FOLDER: Final = "gateway"
PEPPER: Final = "pepper"
_PEPPER_BYTES: Final = 32
_FINISH_S: Final = 3.0
_BACKLOG: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one gateway process is told."""

    control_url: str
    key_file: Path
    data: Path
    host: str
    port: int
    name: str
    limits: Limits
    tls: tuple[Path, Path] | None = None
    """Files of the certificate and of its key; plain HTTP without."""
    control_ca: Path | None = None
    """File of the certificates that the control API is judged by; the system's without."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; return 0 after a clean stop and 1 with a message otherwise."""
    _forbid_core_dumps()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s gateway: %(message)s")
    _allow_descriptors()
    try:
        settings = _read_arguments(arguments)
        return uvloop.run(_serve(settings))
    except MoulinError as error:
        sys.stderr.write(f"error: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        return 1


def _forbid_core_dumps() -> None:
    """Keep what requests say out of core dumps, for good.

    A limit of 1 byte, unlike 0, also stops systems that pipe core dumps to a program: see core(5).
    """
    most = resource.getrlimit(resource.RLIMIT_CORE)[1]
    limit = 0 if most == 0 else 1
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


async def _serve(settings: Settings) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    certificate = Certificate(*settings.tls) if settings.tls is not None else None
    if certificate is not None:
        loop.add_signal_handler(signal.SIGHUP, certificate.renew)
    folder = settings.data / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(folder):
        earlier = list(predecessors(folder))
        past = recall(folder, time.time_ns())
        epochs = (past.through_epoch, *(reader.epoch for reader in earlier))
        epoch = max(time.time_ns() // 1_000_000, max(epochs) + 1)
        journal = Journal(folder, epoch, loop)
        cache = SnapshotCache(folder)
        service = Service(
            limits=settings.limits, pepper=_read_pepper(settings.data), journal=journal, loop=loop
        )
        service.control_url = settings.control_url
        service.control_trust = Trust(settings.control_ca)
        service.past = past.counts
        kept = cache.load()
        if kept is not None:
            service.apply(*kept)
        server = await _listen(settings, service, certificate)
        link = ControlLink(
            service=service,
            url=settings.control_url,
            key=_read_key(settings.key_file),
            name=settings.name,
            epoch=epoch,
            readers=[*earlier, JournalReader(journal.path, is_finished=False)],
            sink=cache,
            limits=settings.limits,
            trust=service.control_trust,
        )
        gc.freeze()
        # Requests leave no cycles behind; the default threshold would walk the heap for nothing.
        gc.set_threshold(50_000, 20, 100)
        status = await _until_stopped(service, link, certificate, stop)
        await _drain(service, server)
        journal.close()
        recall(folder, time.time_ns())  # while the journals are there
        await link.finish(_FINISH_S)
        return status


async def _until_stopped(
    service: Service, link: ControlLink, certificate: Certificate | None, stop: asyncio.Event
) -> int:
    async def sweep() -> None:
        while True:
            await asyncio.sleep(service.limits.sweep_s)
            service.sweep()
            if certificate is not None:
                certificate.renew_if_changed()

    waiter = asyncio.ensure_future(stop.wait())
    linking = asyncio.ensure_future(link.run())
    sweeping = asyncio.ensure_future(sweep())
    try:
        await asyncio.wait([waiter, linking, sweeping], return_when=asyncio.FIRST_COMPLETED)
        if linking.done():
            linking.result()
        if sweeping.done():
            sweeping.result()
    except Superseded as superseded:
        logging.getLogger(__name__).warning("stopping: %s", superseded)
        return 1
    finally:
        for task in (waiter, linking, sweeping):
            task.cancel()
        await asyncio.gather(waiter, linking, sweeping, return_exceptions=True)
    return 0


async def _drain(service: Service, server: asyncio.Server) -> None:
    """Take no more requests; let the running ones finish within the grace, then cut them."""
    server.close()
    service.is_draining = True
    for connection in list(service.connections):
        connection.drain()
    deadline_s = service.loop.time() + service.limits.grace_s
    # Requests must not pay for an event that is set once: polled.
    while service.exchanges and service.loop.time() < deadline_s:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    for exchange in list(service.exchanges):
        exchange.cut()
    service.journal.flush()
    await asyncio.sleep(0.05)  # the last words of cut streams reach their sockets
    for connection in list(service.connections):
        connection.expire()


async def _listen(
    settings: Settings, service: Service, certificate: Certificate | None
) -> asyncio.Server:
    tls: dict[str, Any] = {}
    if certificate is not None:
        tls = {"ssl": certificate.context, "ssl_handshake_timeout": HANDSHAKE_S}
    try:
        return await service.loop.create_server(
            lambda: ClientConnection(service),
            addresses_of(settings.host),
            settings.port,
            backlog=_BACKLOG,
            **tls,
        )
    except OSError as cause:
        if cause.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"listen on {settings.host}:{settings.port}: another program does",
                hint="stop it, or choose another --port",
            ) from cause
        raise InvalidRequest(
            f"listen on {settings.host}:{settings.port}: {cause.strerror}",
            hint="choose another --host or --port",
        ) from cause


def _allow_descriptors() -> None:
    """Take as many open files as this user may have: a stream holds two, and 1024 are usual."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as cause:
        os.close(descriptor)
        raise DataDirectoryBusy(
            f"start a gateway in {folder}: another one runs there",
            hint="give each gateway its own --data",
        ) from cause
    try:
        yield
    finally:
        os.close(descriptor)


def _read_pepper(data: Path) -> bytes:
    path = data / PEPPER
    try:
        pepper = path.read_bytes()
    except OSError as cause:
        raise InvalidRequest(
            f"read the pepper of keys in {path}: {cause.strerror}",
            hint="`moulin up` makes it; give the same --data",
        ) from cause
    if len(pepper) != _PEPPER_BYTES:
        raise InvalidRequest(f"read the pepper of keys in {path}: it must be {_PEPPER_BYTES} bytes")
    return pepper


def _read_key(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as cause:
        raise InvalidRequest(
            f"read the service key in {path}: {cause.strerror}", hint="give another --key-file"
        ) from cause


def _read_arguments(arguments: Sequence[str] | None) -> Settings:
    parser = argparse.ArgumentParser(
        prog="python -m moulin.gateway", description="Serve model endpoints to holders of keys."
    )
    parser.add_argument("--control-url", required=True, help="address of the control API")
    parser.add_argument("--key-file", required=True, type=Path, help="file with the service key")
    parser.add_argument("--data", required=True, type=Path, help="data directory of Moulin")
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on, beside loopback")
    parser.add_argument("--port", type=int, default=8701, help="port to listen on")
    parser.add_argument("--name", default="gateway", help="name of this gateway, one per process")
    parser.add_argument(
        "--grace-s", type=float, default=Limits().grace_s, help="seconds to finish in"
    )
    parser.add_argument(
        "--usage-figures", action="store_true", help="put cost and carbon into every usage"
    )
    parser.add_argument("--tls-cert", type=Path, help="PEM file with the certificate chain")
    parser.add_argument("--tls-key", type=Path, help="PEM file with its key")
    parser.add_argument("--control-ca", type=Path, help="PEM file to judge the control API by")
    parser.add_argument(
        "--insecure-plain-http", action="store_true", help="serve other machines without TLS"
    )
    given = parser.parse_args(arguments)
    if (given.tls_cert is None) != (given.tls_key is None):
        parser.error("--tls-cert and --tls-key belong together")
    is_tls = given.tls_cert is not None
    check_reach(given.host, is_tls=is_tls, is_plain_allowed=given.insecure_plain_http)
    return Settings(
        control_url=given.control_url,
        key_file=given.key_file,
        data=given.data,
        host=given.host,
        port=given.port,
        name=given.name,
        limits=Limits(grace_s=given.grace_s, tells_figures=given.usage_figures),
        tls=(given.tls_cert, given.tls_key) if is_tls else None,
        control_ca=given.control_ca,
    )

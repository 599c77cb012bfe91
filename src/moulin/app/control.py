"""The control process: the API in the main thread, the cycle in another, one store between them.

Started by the supervisor as `python -m moulin.app.control --data DIR`. Ends with status 0 on
SIGTERM or SIGINT; workloads go on.
"""

import argparse
import gc
import json
import logging
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from moulin import __version__
from moulin.api.app import create_app
from moulin.api.server import ApiServer, Tls
from moulin.app.listening import open_socket
from moulin.app.processes import forbid_core_dumps
from moulin.app.wiring.factory import Factory, FactorySettings, open_factory
from moulin.app.wiring.local import boot_id
from moulin.controlplane.commands import ApplyFactory, Command, CreateKey
from moulin.controlplane.cycle import cycle
from moulin.controlplane.plane import PlaneSettings
from moulin.controlplane.run import run
from moulin.domain.addresses import LOOPBACK, addresses_of, check_reach
from moulin.domain.errors import MoulinError
from moulin.domain.factory import TYPE_BY_KIND, DeclaredObject, ObjectKind
from moulin.domain.ids import KeyId, OrganisationId, ProjectId
from moulin.domain.principal import ApiKey, Principal, Role
from moulin.domain.wire import decode
from moulin.gateway.tls import Certificate

# A long interval lets a busy cycle starve the event loop's thread, and the other way round.
THREAD_SWITCH_S: Final = 0.002
# Allocations before a young collection, young before a middle one, middle before a full one.
COLLECTOR_THRESHOLDS: Final = (2_000, 2, 20_000)
SETUP: Final = Principal(
    key=KeyId("setup"),
    name="setup",
    role=Role.OPERATOR,
    organisation=OrganisationId(""),
    project=ProjectId(""),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; return 1 after saying why when that is not possible."""
    parser = argparse.ArgumentParser(prog="moulin.app.control", description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="data directory")
    data_dir: Path = parser.parse_args(arguments).data
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    sys.setswitchinterval(THREAD_SWITCH_S)
    forbid_core_dumps()
    try:
        serve(data_dir)
    except MoulinError as error:
        hint = f"\n\nhint: {error.hint}" if error.hint else ""
        sys.stderr.write(f"error: {error.message}{hint}\n")
        return 1
    return 0


def serve(data_dir: Path) -> None:
    """Open the factory, run the cycle beside the API, and close both on a signal.

    Raises whatever `open_factory` does, `PortInUse`, and the error that ended the cycle, if any.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    wanted = read_settings(data_dir)
    bound = bind(wanted)
    certificate = _certificate(wanted)
    factory = open_factory(factory_settings(data_dir, wanted))
    bootstrap(factory, data_dir)
    tls = Tls(certificate.context, certificate.renew_if_changed) if certificate else None
    server = ApiServer(create_app(factory.services), bound, tls)
    failures: list[Exception] = []
    cycle_thread = threading.Thread(
        target=_cycle, args=(factory, stopping, server, failures), name="cycle"
    )
    watcher = threading.Thread(target=_stop_server, args=(stopping, server), daemon=True)
    settle_heap()
    cycle_thread.start()
    watcher.start()
    factory.desk.start()
    server.run()
    stopping.set()
    factory.desk.stop()
    cycle_thread.join()
    factory.store.close()
    if failures:
        raise failures[0]


def settle_heap() -> None:
    """Keep the collector's long pauses away from callers.

    A full collection walks the whole state (0.3 s at a million objects) and finds next to nothing
    in it, so what is alive now is set aside and full collections become rare; the young
    generations, where request garbage dies, are collected as always.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def read_settings(data_dir: Path) -> dict[str, Any]:
    """Return what the supervisor wrote for this process; an empty mapping when there is nothing."""
    path = data_dir / "settings.json"
    found = json.loads(path.read_bytes()) if path.exists() else {}
    return found if isinstance(found, dict) else {}


def factory_settings(data_dir: Path, wanted: dict[str, Any]) -> FactorySettings:
    """Turn the supervisor's words into settings."""
    models = str(wanted.get("models", ""))
    return FactorySettings(
        data_dir=data_dir,
        models_dir=Path(models) if models else None,
        database=str(wanted.get("database", "")),
        factory_name=str(wanted.get("factory_name", "moulin")),
        site_name=str(wanted.get("site_name", "this-site")),
        plane=PlaneSettings(
            factory_name=str(wanted.get("factory_name", "moulin")),
            version=__version__,
            boot_id=boot_id(),
            metering_interval_s=float(wanted.get("metering_interval_s", 15.0)),
        ),
    )


def bind(wanted: dict[str, Any]) -> list[socket.socket]:
    """Return sockets bound to every address that the supervisor's words name.

    Raises `PortInUse` when another program has the port, `InvalidRequest` for an address that this
    machine has not, or one that other machines reach, without TLS.
    """
    listen = str(wanted.get("control_listen") or LOOPBACK)
    port = int(wanted.get("control_port", 0))
    check_reach(
        listen,
        is_tls=bool(wanted.get("tls_cert")),
        is_plain_allowed=bool(wanted.get("insecure_plain_http")),
    )
    return [
        open_socket(address, port, name="control API", flag="--control-port")
        for address in addresses_of(listen)
    ]


def _certificate(wanted: dict[str, Any]) -> Certificate | None:
    """Return the pair of files to serve with; raises `InvalidRequest` when it cannot be used."""
    pair = str(wanted.get("tls_cert") or ""), str(wanted.get("tls_key") or "")
    if not all(pair):
        return None
    return Certificate(Path(pair[0]), Path(pair[1]))


def bootstrap(factory: Factory, data_dir: Path) -> None:
    """At a first start, carry out what was prepared: the first declared objects, then keys.

    Keys come last, so that whatever is cut short is continued at the next start. Raises what the
    commands met: a factory that nobody has a key to is of no use.
    """
    path = data_dir / "bootstrap.json"
    books = factory.plane.books
    wanted = json.loads(path.read_bytes()) if path.exists() else {}
    prepared = [decode(ApiKey, item) for item in wanted.get("keys", ())]
    keys = [key for key in prepared if key.id not in books.keyring.by_id]
    if not keys:
        return
    objects = tuple(_declared(item) for item in wanted.get("objects", ()))
    commands: list[Command] = []
    if objects and not books.declared:
        managed_by = str(wanted.get("managed_by", "default"))
        commands.append(ApplyFactory(principal=SETUP, managed_by=managed_by, objects=objects))
    commands.extend(CreateKey(principal=SETUP, key=key) for key in keys)
    for command in commands:
        answer = factory.plane.inbox.call(command)
        cycle(factory.plane, 0.0)
        answer.result()


def _declared(item: dict[str, Any]) -> DeclaredObject:
    value: DeclaredObject = decode(TYPE_BY_KIND[ObjectKind(item["kind"])], item["body"])
    return value


def _cycle(
    factory: Factory, stopping: threading.Event, server: ApiServer, failures: list[Exception]
) -> None:
    """Run cycles in their own thread; a failure ends the process, since guessing would be worse."""
    try:
        run(factory.plane, stopping.is_set, lambda s: _wait(stopping, s))
    except Exception as failure:
        logging.getLogger(__name__).critical("the cycle ended: %r", failure, exc_info=failure)
        failures.append(failure)
    finally:
        factory.plane.inbox.close()
        stopping.set()
        server.stop()


def _wait(stopping: threading.Event, seconds: float) -> None:
    stopping.wait(seconds)


def _stop_server(stopping: threading.Event, server: ApiServer) -> None:
    stopping.wait()
    server.stop()


if __name__ == "__main__":
    sys.exit(main())

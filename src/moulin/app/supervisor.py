"""Starts Moulin's processes on one data directory, keeps them alive, and stops them.

It never stops a workload: those outlive it, and the next control process adopts them. It decides
nothing about work and imports little, so that it stays small for as long as Moulin runs.

    lock → leftovers → ports → first start → settings → children → ready → watch → stop
"""

import argparse
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

from moulin.app.announcing import Reach, announce
from moulin.app.children import Child, revive, split_words
from moulin.app.datadir import (
    CREDENTIALS,
    GATEWAY_KEY,
    LOGS,
    OWN_CA,
    OWN_CERTIFICATE,
    OWN_KEY,
    RUN,
    SETTINGS,
    lock,
    make_directory,
    models_directory,
    read_json,
    read_run,
    write_json,
)
from moulin.app.listening import choose_port, is_well
from moulin.app.processes import end, mark_of
from moulin.domain.addresses import LOOPBACK, addresses_of
from moulin.domain.errors import DeadlineExceeded, LocalError, MoulinError

GRACE_S: Final = 10.0
POLL_S: Final = 0.02
WATCH_S: Final = 1.0
RENEWAL_S: Final = 86_400.0
OWN_TLS: Final = "self"
# What served this long was no crash loop: when it is killed, it comes back at once.


class Interrupted(Exception):
    """A signal asked for the end before Moulin was ready."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What `moulin up` asks of the supervisor."""

    data: Path
    control_port: int
    gateway_port: int
    nodes: int = 1
    country: str = ""
    factory: Path | None = None
    metering_interval_s: float = 15.0
    database: str = ""
    models: Path | None = None
    listen: str = LOOPBACK
    control_listen: str = ""
    tls: str = ""
    tls_names: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure_plain_http: bool = False
    usage_figures: bool = False
    start_wait_s: float = 60.0
    is_json: bool = False

    @property
    def control_address(self) -> str:
        """Where the control API listens."""
        return self.control_listen or self.listen

    @property
    def pair(self) -> tuple[Path, Path] | None:
        """Files of the certificate and its key, None for plain HTTP."""
        if self.tls == OWN_TLS:
            return self.data / OWN_CERTIFICATE, self.data / OWN_KEY
        if self.tls_cert is None or self.tls_key is None:
            return None
        return self.tls_cert, self.tls_key

    @property
    def ca(self) -> str:
        """What clients trust instead of their system's certificates, as credentials name it."""
        return OWN_CA if self.tls == OWN_TLS else str(self.tls_cert or "")


@dataclass(slots=True)
class Signals:
    """Signals as numbers in a list and bytes in a pipe; nothing happens inside a handler."""

    received: list[int] = field(default_factory=list)
    pipe: tuple[int, int] = (-1, -1)

    def install(self) -> None:
        """Take the signals that end a program, and SIGCHLD as a wake-up."""
        self.pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self.pipe[1], warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._take)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(number)

    def wait(self, wait_s: float) -> None:
        """Sleep for a time, or until a signal."""
        if select.select([self.pipe[0]], [], [], max(0.0, wait_s))[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(self.pipe[0], 4096)

    def check(self) -> None:
        """Raise `Interrupted` when the end was asked for."""
        if self.received:
            raise Interrupted(self.received[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to stop.

    Return 0 after a stop that was asked for once Moulin was ready, 128 + the signal before that,
    and 1 after saying why it cannot start.
    """
    signals = Signals()
    signals.install()
    wanted = _arguments(arguments)
    children: list[Child] = []
    try:
        start(wanted, children, signals)
        watch(wanted, children, signals)
    except Interrupted as interrupted:
        _say("stopping before Moulin was ready")
        stop(wanted.data, children, signals)
        return 128 + interrupted.number
    except (MoulinError, OSError) as problem:
        stop(wanted.data, children, signals)
        _say_error(problem, is_json=wanted.is_json)
        return 1
    stop(wanted.data, children, signals)
    _say(
        "Moulin has stopped. Running workloads go on; the next `moulin up` adopts them, "
        "`moulin down` stops them."
    )
    return 0


def start(wanted: Wanted, children: list[Child], signals: Signals) -> None:
    """Bring everything up and say where it answers; `children` fills as they start.

    Raises `DataDirectoryBusy`, `PortInUse`, `LocalError` and `DeadlineExceeded`, or `Interrupted`
    as soon as a signal came.
    """
    make_directory(wanted.data)
    lock(wanted.data, os.getpid())
    for leftover in read_run(wanted.data).children:
        end(leftover, GRACE_S)  # its supervisor was killed; what it serves is taken over
    record(wanted.data, children)
    ports = choose_ports(wanted)
    make_certificate(wanted)
    signals.check()
    prepare(wanted, ports)
    signals.check()
    children.extend(_children(wanted, ports))
    for child in children:
        child.start()
    record(wanted.data, children)
    _wait_until_ready(wanted, children, signals)
    _state_country(wanted)
    _announce(wanted, children)


def choose_ports(wanted: Wanted) -> dict[str, int]:
    """Return the ports to use, by process; raises as `choose_port` does."""
    control = choose_port(
        wanted.control_port,
        name="control API",
        flag="--control-port",
        addresses=addresses_of(wanted.control_address),
    )
    choose_gateway = partial(
        choose_port,
        wanted.gateway_port,
        name="gateway",
        flag="--gateway-port",
        addresses=addresses_of(wanted.listen),
    )
    gateway = choose_gateway()
    while not wanted.gateway_port and gateway == control:  # drawn twice, as neither is held
        gateway = choose_gateway()
    return {"control": control, "gateway": gateway}


def make_certificate(wanted: Wanted) -> None:
    """Have the factory's own certificate made, or renewed where it lacks a name or time.

    Raises `LocalError` with what the program said that makes it.
    """
    if wanted.tls != OWN_TLS:
        return
    words = ["--data", str(wanted.data)]
    for address in dict.fromkeys((wanted.listen, wanted.control_address)):
        words += ["--listen", address]
    for name in wanted.tls_names.split(","):
        words += ["--name", name.strip()] if name.strip() else []
    _run_program("moulin.app.own_certificate", words, "make a certificate")


def prepare(wanted: Wanted, ports: dict[str, int]) -> None:
    """Write what the processes read: keys and a first factory once, settings and addresses each time.

    Raises `LocalError` when the first start fails, with what it said.
    """
    if not (wanted.data / CREDENTIALS).exists():
        _first_start(wanted)
    elif wanted.factory is not None:
        _say(
            f"this factory exists already; `moulin apply {wanted.factory}` makes it equal to the file"
        )
    known = read_json(wanted.data / SETTINGS)
    if known and known.get("nodes") != wanted.nodes:
        _say(f"this machine stays divided into {known.get('nodes')} node(s), as at the first start")
    kept = {name: known.get(name, value) for name, value in _first_words(wanted).items()}
    write_json(
        wanted.data / SETTINGS,
        {
            **kept,
            "control_port": ports["control"],
            "gateway_port": ports["gateway"],
            "metering_interval_s": wanted.metering_interval_s,
            "database": wanted.database,
            "control_listen": wanted.control_address,
            "listen": wanted.listen,
            "tls_cert": str(wanted.pair[0]) if wanted.pair else "",
            "tls_key": str(wanted.pair[1]) if wanted.pair else "",
            "insecure_plain_http": wanted.insecure_plain_http,
            "models": str((wanted.models or models_directory(wanted.data)).absolute()),
        },
    )
    credentials = read_json(wanted.data / CREDENTIALS)
    places = {f"{child.name}_url": child.url for child in _children(wanted, ports)}
    places["ca"] = wanted.ca
    if any(credentials.get(name, "") != place for name, place in places.items()):
        write_json(wanted.data / CREDENTIALS, {**credentials, **places})


def watch(wanted: Wanted, children: Sequence[Child], signals: Signals) -> None:
    """Start again what ends on its own, later and later while it keeps ending, until a signal."""
    renewal_s = time.monotonic() + RENEWAL_S
    while not signals.received:
        if time.monotonic() >= renewal_s:
            renewal_s = time.monotonic() + RENEWAL_S
            _renew(wanted)
        is_restarting = any(child.restart_at_s for child in children)
        signals.wait(POLL_S if is_restarting else WATCH_S)
        for child in children:
            try:
                if not signals.received and revive(child, _say):
                    record(wanted.data, children)
            except (MoulinError, OSError) as problem:
                # A full disk or table of processes passes; what runs must not end for it.
                _say(f"the {child.name} process could not be started again yet: {problem}")


def _renew(wanted: Wanted) -> None:
    """Renew the factory's own certificate before its end; whoever serves with it takes it up."""
    try:
        make_certificate(wanted)
    except (MoulinError, OSError) as problem:
        _say(f"the certificate could not be renewed yet: {problem}")


def stop(data: Path, children: Sequence[Child], signals: Signals) -> None:
    """End the processes, the gateway first, so that it can return what it holds to the control plane.

    A second signal cuts the waiting short.
    """
    asked = len(signals.received)
    for child in reversed(children):
        if child.process is None:
            continue
        child.process.terminate()
        deadline_s = time.monotonic() + GRACE_S
        while child.end_status() is None and time.monotonic() < deadline_s:
            signals.wait(POLL_S)
            if len(signals.received) > asked:
                break
        if child.end_status() is None:
            child.process.kill()
        child.process.wait()
    own = mark_of(os.getpid())
    if read_run(data).supervisor == own:
        (data / RUN).unlink(missing_ok=True)


def record(data: Path, children: Sequence[Child]) -> None:
    """Write run.json: who runs here, beyond doubt, and where it answers."""
    marks: dict[str, Any] = {}
    for child in children:
        mark = mark_of(child.process.pid) if child.process is not None else None
        marks[child.name] = mark.as_json() if mark is not None else None
    own = mark_of(os.getpid())
    write_json(
        data / RUN,
        {
            "supervisor": own.as_json() if own is not None else None,
            **marks,
            **{f"{child.name}_url": child.url for child in children},
        },
    )


def _first_start(wanted: Wanted) -> None:
    factory = ["--factory", str(wanted.factory)] if wanted.factory is not None else []
    country = ["--country", wanted.country, "--nodes", str(wanted.nodes)]
    _run_first_start(wanted.data, *factory, *country)


def _state_country(wanted: Wanted) -> None:
    """Assert a country given after the first start; a factory from a file says its own."""
    known = read_json(wanted.data / SETTINGS)
    if not wanted.country or known.get("country") == wanted.country:
        return
    nodes = str(known.get("nodes", wanted.nodes))
    try:
        _run_first_start(wanted.data, "--again", "--country", wanted.country, "--nodes", nodes)
    except LocalError as error:
        _say(f"the country stays as it was: {error.message}")
        return
    write_json(wanted.data / SETTINGS, {**known, "country": wanted.country})


def _run_first_start(data: Path, *words: str) -> None:
    _run_program(
        "moulin.app.first_start", ("--data", str(data), *words), "prepare the data directory"
    )


def _run_program(name: str, words: Sequence[str], purpose: str) -> None:
    """Run a program that imports what is too large for here; raise `LocalError` with what it said."""
    done = subprocess.run(
        [sys.executable, "-m", name, *words],
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    if done.returncode != 0:
        message, hint = split_words(done.stderr, purpose)
        raise LocalError(message, hint=hint)


def _first_words(wanted: Wanted) -> dict[str, Any]:
    return {"nodes": wanted.nodes, "country": wanted.country}


def _children(wanted: Wanted, ports: dict[str, int]) -> list[Child]:
    data = str(wanted.data)
    logs = wanted.data / LOGS
    control = [sys.executable, "-m", "moulin.app.control", "--data", data]
    gateway = [
        *(sys.executable, "-m", "moulin.gateway", "--data", data, "--name", "local"),
        *("--host", wanted.listen, "--port", str(ports["gateway"])),
        *("--key-file", str(wanted.data / GATEWAY_KEY)),
    ]
    pair = wanted.pair
    found = [
        Child(name, command, ports[name], logs / f"{name}.log", is_tls=pair is not None)
        for name, command in (("control", control), ("gateway", gateway))
    ]
    gateway += ["--control-url", found[0].url]
    if pair is not None:
        gateway += ["--tls-cert", str(pair[0]), "--tls-key", str(pair[1])]
        gateway += ["--control-ca", str(wanted.data / wanted.ca)]
    if wanted.insecure_plain_http:
        gateway.append("--insecure-plain-http")
    if wanted.usage_figures:
        gateway.append("--usage-figures")
    return found


def _wait_until_ready(wanted: Wanted, children: Sequence[Child], signals: Signals) -> None:
    deadline_s = time.monotonic() + wanted.start_wait_s
    waiting = list(children)
    while waiting:
        signals.check()
        for child in waiting:
            status = child.end_status()
            if status is not None:
                raise _failed_to_start(child, status)
        waiting = [child for child in waiting if not is_well(child.port, is_tls=child.is_tls)]
        if waiting and time.monotonic() >= deadline_s:
            names = " and ".join(child.name for child in waiting)
            raise DeadlineExceeded(
                f"start Moulin: {names} did not answer in {wanted.start_wait_s:g} s",
                hint=f"see {waiting[0].log}; MOULIN_START_WAIT_S gives a slow machine more time",
            )
        if waiting:
            signals.wait(POLL_S)
    for child in children:
        if child.end_status() is not None:
            raise _failed_to_start(child, child.end_status() or 0)


def _failed_to_start(child: Child, status: int) -> LocalError:
    message, hint = split_words(child.last_words(), f"see {child.log}")
    return LocalError(
        f"start the {child.name} process: {message} (status {status})",
        hint=hint or f"its whole log is {child.log}",
    )


def _announce(wanted: Wanted, children: Sequence[Child]) -> None:
    facts = {
        **{f"{child.name}_url": child.url for child in children},
        "console_url": None,
        "credentials_file": str(wanted.data / CREDENTIALS),
        "data_dir": str(wanted.data),
        "pid": os.getpid(),
        **{f"{child.name}_pid": child.process.pid for child in children if child.process},
    }
    reach = Reach(
        control_listen=wanted.control_address,
        gateway_listen=wanted.listen,
        ports={child.name: child.port for child in children},
        is_tls=wanted.pair is not None,
        ca_file=str(wanted.data / OWN_CA) if wanted.tls == OWN_TLS else "",
    )
    announce(facts, reach, is_json=wanted.is_json)


def _say(text: str) -> None:
    # The terminal may be gone; that must not keep anything running.
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _say_error(problem: MoulinError | OSError, *, is_json: bool) -> None:
    error = (
        problem
        if isinstance(problem, MoulinError)
        else LocalError(f"start Moulin: {problem}", hint="make room, then try again")
    )
    hint = f"\n\nhint: {error.hint}" if error.hint else ""
    _say(f"error: {error.message}{hint}")
    if is_json:
        told = {"code": error.code, "message": error.message, "hint": error.hint}
        with contextlib.suppress(OSError):
            print(json.dumps({"error": told}), flush=True)  # noqa: T201 - for the program that asked


def _arguments(arguments: Sequence[str] | None) -> Wanted:
    parser = argparse.ArgumentParser(prog="moulin.app.supervisor", description=__doc__)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--control-port", required=True, type=int)
    parser.add_argument("--gateway-port", required=True, type=int)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--country", default="")
    parser.add_argument("--factory", type=Path, default=None)
    parser.add_argument("--metering-interval-s", type=float, default=15.0)
    parser.add_argument("--database", default="")
    parser.add_argument("--models", type=Path, default=None)
    parser.add_argument("--listen", default=LOOPBACK)
    parser.add_argument("--control-listen", default="")
    parser.add_argument("--tls", default="")
    parser.add_argument("--tls-names", default="")
    parser.add_argument("--tls-cert", type=Path, default=None)
    parser.add_argument("--tls-key", type=Path, default=None)
    parser.add_argument("--insecure-plain-http", action="store_true")
    parser.add_argument("--usage-figures", action="store_true")
    parser.add_argument("--start-wait-s", type=float, default=60.0)
    parser.add_argument("--json", action="store_true", dest="is_json")
    given = vars(parser.parse_args(arguments))
    return Wanted(**{**given, "data": given["data"].resolve()})


if __name__ == "__main__":
    sys.exit(main())

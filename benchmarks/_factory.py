"""Start a control process over a fresh data directory, as the supervisor would, and end it."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moulin.domain.factory import (
    DeclaredObject,
    Organisation,
    Pool,
    Price,
    PriceBook,
    Project,
    Site,
    Zone,
    kind_of,
)
from moulin.domain.principal import ApiKey, Role
from moulin.domain.usage import Meter
from moulin.domain.wire import encode
from moulin.identity.keys import digest, make_key

READY_S_MAX = 30.0
MS_PER_HOUR = 3_600_000


@dataclass(frozen=True)
class RunningControl:
    """A control process with the address and the key to use it."""

    url: str
    key: str
    data_dir: Path
    process: "subprocess.Popen[bytes]"


def objects(pool: Pool) -> tuple[DeclaredObject, ...]:
    """Return a factory of one site, one open zone and one pool, with a price for held CPUs."""
    price = Price(
        sku="cpu-hour",
        meter=Meter.CPU_MILLI_MS,
        unit_price_neur=50_000_000,
        per=1000 * MS_PER_HOUR,
    )
    return (
        Organisation(name="default"),
        Site(name="this-site", country="FR", operator="default"),
        Zone(name="local", site="this-site"),
        pool,
        Project(name="default", organisation="default"),
        PriceBook(name="list", effective_from_ns=0, prices=(price,)),
    )


@contextlib.contextmanager
def control(pool: Pool, *, metering_interval_s: float = 15.0) -> Iterator[RunningControl]:
    """Run a control process until the block ends; its data directory goes with it."""
    with tempfile.TemporaryDirectory(prefix="moulin-bench-") as name:
        data_dir = Path(name)
        key = _prepare(data_dir, objects(pool), metering_interval_s)
        port = json.loads((data_dir / "settings.json").read_text())["control_port"]
        process = subprocess.Popen(
            [
                sys.executable,
                *os.environ.get("MOULIN_BENCH_CONTROL", "-m moulin.app.control").split(),
                "--data",
                str(data_dir),
            ]
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_ready(url, process)
            yield RunningControl(url=url, key=key, data_dir=data_dir, process=process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def wait_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Return when the process answers; raise when it ends or takes too long."""
    until = time.monotonic() + READY_S_MAX
    while time.monotonic() < until:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/healthz", timeout=1):
            return
        if process.poll() is not None:
            raise RuntimeError(f"the control process ended with {process.returncode}")
        time.sleep(0.02)
    raise RuntimeError("the control process did not answer in time")


def _prepare(data_dir: Path, declared: Sequence[DeclaredObject], interval_s: float) -> str:
    pepper = secrets.token_bytes(32)
    _write(data_dir / "pepper", pepper)
    key = make_key(secrets.token_bytes(24))
    admin = ApiKey(
        id="key_benchmark",  # type: ignore[arg-type]
        name="benchmark",
        role=Role.ADMIN,
        organisation="default",  # type: ignore[arg-type]
        project="default",  # type: ignore[arg-type]
        digest=digest(pepper, key),
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"control_port": port, "metering_interval_s": interval_s}
    bootstrap = {
        "managed_by": "benchmark",
        "objects": [{"kind": kind_of(item), "body": encode(item)} for item in declared],
        "keys": [encode(admin)],
    }
    _write(data_dir / "settings.json", json.dumps(settings).encode())
    _write(data_dir / "bootstrap.json", json.dumps(bootstrap).encode())
    return key


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o600)

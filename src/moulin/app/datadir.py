"""The data directory from outside the store: its lock, its small files, and who runs on it.

It decides that one Moulin runs on one directory and that nobody else may read its files. Standard
library only: the supervisor uses it.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moulin.app.processes import ProcessMark, is_alive, mark_from
from moulin.domain.errors import DataDirectoryBusy, DiskFull, LocalError

LOCK: Final = "lock"
RUN: Final = "run.json"
SETTINGS: Final = "settings.json"
CREDENTIALS: Final = "credentials.json"
BOOTSTRAP: Final = "bootstrap.json"
PEPPER: Final = "pepper"
GATEWAY_KEY: Final = "gateway.key"
STORE: Final = "moulin.sqlite"
LOGS: Final = "logs"
OBJECTS: Final = "objects"
SECRETS_MASTER: Final = "secrets.key"
SECRET_KEYS: Final = "secrets"  # noqa: S105 - a folder of them
OWN_CA: Final = "tls/ca.pem"
OWN_CERTIFICATE: Final = "tls/server.pem"
OWN_KEY: Final = "tls/server.key"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What run.json says: the supervisor and its two processes, and where they answer."""

    supervisor: ProcessMark | None
    control: ProcessMark | None
    gateway: ProcessMark | None
    control_url: str = ""
    gateway_url: str = ""

    @property
    def children(self) -> tuple[ProcessMark, ...]:
        """Return the processes the supervisor started, in the order in which to stop them."""
        return tuple(mark for mark in (self.gateway, self.control) if mark is not None)


def make_directory(data: Path) -> None:
    """Make the data directory for this user alone; one that exists is left as it is.

    Raises `LocalError` when that is not possible.
    """
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data / LOGS).mkdir(mode=0o700, exist_ok=True)
    except OSError as cause:
        raise LocalError(
            f"make the data directory {data}: {cause.strerror}",
            hint="choose another directory with --data",
        ) from cause


def make_private(path: Path) -> None:
    """Make the folder of a file for this user alone; raises `LocalError` when it cannot."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as cause:
        raise LocalError(f"make {path.parent}: {cause.strerror}", hint="check its owner") from cause


def models_directory(data: Path) -> Path:
    """Return, and make, the folder of model files that all factories of this user share.

    That is `moulin/models` in the user's cache directory; without one that can be written, the
    data directory itself.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        shared = cache.expanduser() / "moulin" / "models"
        shared.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the latter when nobody knows a home directory
        return data
    return shared if os.access(shared, os.W_OK) else data


def lock(data: Path, pid: int) -> int:
    """Take the directory for this process until it ends; return the open descriptor.

    Raises `DataDirectoryBusy` with the other's pid, `LocalError` when there can be no lock.
    """
    path = data / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as cause:
        raise LocalError(f"lock {data}: {cause.strerror}", hint="check who owns it") from cause
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as cause:
        other = os.read(descriptor, 32).decode("ascii", errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise DataDirectoryBusy(
            f"start on {data}: another Moulin runs there (pid {other})",
            hint="use it as it is, stop it with `moulin down`, or choose another --data",
            details={"pid": other, "data_dir": str(data)},
        ) from cause
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"%d\n" % pid, 0)
    return descriptor


def write_private(path: Path, data: bytes) -> None:
    """Put a file in place whole and durable, readable for this user alone.

    Raises `DiskFull` without room and `LocalError` for any other failure.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as cause:
        part.unlink(missing_ok=True)
        error = DiskFull if cause.errno == 28 else LocalError
        raise error(
            f"write {path}: {cause.strerror}", hint="make room, or choose another --data"
        ) from cause


def write_json(path: Path, value: object) -> None:
    """Put a JSON file in place as `write_private` does, raising what it raises."""
    write_private(path, json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty when there is none.

    Raises `LocalError` when the file is there and is not one JSON object.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as cause:
        raise LocalError(f"read {path}: it is damaged", hint="restore it from a backup") from cause
    if not isinstance(found, dict):
        raise LocalError(f"read {path}: it holds no JSON object", hint="restore it from a backup")
    return found


def trusted_file(data: Path, known: Mapping[str, Any]) -> Path | None:
    """Return the file of certificates that credentials name, None where nothing is served with TLS."""
    named = str(known.get("ca") or "")
    return data / named if named else None


def read_run(data: Path) -> RunRecord:
    """Return who ran last on a directory; every mark is None when nobody did."""
    found = read_json(data / RUN)
    return RunRecord(
        supervisor=mark_from(found.get("supervisor")),
        control=mark_from(found.get("control")),
        gateway=mark_from(found.get("gateway")),
        control_url=str(found.get("control_url") or ""),
        gateway_url=str(found.get("gateway_url") or ""),
    )


def running_supervisor(data: Path) -> ProcessMark | None:
    """Return the supervisor that lives on a directory now, None when none does."""
    mark = read_run(data).supervisor
    return mark if mark is not None and is_alive(mark) else None

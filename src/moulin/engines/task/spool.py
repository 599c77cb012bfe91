"""Where a step's files are and how they are written whole; decides no step's fate.

One directory per task, `spool/ATTEMPT/RANK/`, owner only:

    spec     what the shim needs, NUL-ended names and values     by the engine
    lock     record lock held exactly as long as the shim lives  by the shim
    started  who took the step, made once with link(2)           by the shim, or by a stop (fence)
    log      standard output and error of setup and program      by the task
    usage    last reading of CPU time and memory                 by the shim, about once a second
    stop     the grace of a stop request in ns                   by the engine
    ready    one line host:port of a server that answers, of a   by the task
             leased node with the user and the host's key
    time_limit  the seconds a leased node may last, when longer  by the engine
    door     what the door of an endpoint's replica needs, its key   by the engine
    exit     how the step ended                                  by the shim, or by a burial
    data     what is prepared for it, as JSON                    by the engine
    work     a folder of its own, with its bundle and inputs     by the engine
    secrets  values for the task, until it starts                by the engine, removed by the task
    secret   those it wants as files, a folder, until it ends    by the task, removed by the shim

and beside the ranks `port`, the rendezvous port that all tasks of the attempt agree on, and
`shared`, a directory for the tasks' own use and their working directory when they name none.
`spool/.checkpoints/UNIT/` is kept over the attempts of a unit: what one saved there, the next finds.
"""

import contextlib
import ctypes
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moulin.domain.errors import InvalidSpec, NotFound
from moulin.domain.ids import StepId
from moulin.domain.observation import Claim, LogChunk, Observation, TaskPhase

_STEP: Final = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]{0,180})\.t([0-9]{1,6})")
RECORD_BYTES_MAX: Final = 1 << 16
CHECKPOINTS: Final = ".checkpoints"  # no attempt's name begins with a dot
LOG_BYTES_MAX: Final = 4 * 1024 * 1024
_LOGIN_BYTES_MAX: Final = 1024
_READY: Final = re.compile(rb"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9_.-]+):[0-9]{1,5}\s*")


@dataclass(frozen=True, slots=True)
class StepFiles:
    """The paths of one step, as text because they are used on every observation."""

    attempt_directory: str
    directory: str
    spec: str
    lock: str
    started: str
    log: str
    usage: str
    stop: str
    ready: str
    exit: str
    shared: str
    port: str
    checkpoint: str
    secrets: str
    secret: str


def step_files(spool: Path, step: StepId) -> StepFiles:
    """Return where a step's files are; raises `InvalidSpec` for an id that is no step's."""
    found = _STEP.fullmatch(step)
    if found is None:
        raise InvalidSpec(
            f"find the spool of step {step!r}", hint="step ids look like ATTEMPT.tRANK"
        )
    attempt_directory = f"{spool}/{found[1]}"
    directory = f"{attempt_directory}/{found[2]}"
    names = ("spec", "lock", "started", "log", "usage", "stop", "ready", "exit")
    paths = [f"{directory}/{name}" for name in names]
    paths += (f"{attempt_directory}/{name}" for name in ("shared", "port"))
    paths.append(f"{spool}/{CHECKPOINTS}/{found[1].rpartition('.g')[0]}")
    paths += (f"{directory}/{name}" for name in ("secrets", "secret"))
    return StepFiles(attempt_directory, directory, *paths)


def share_checkpoints(spool: Path, shared: Path | None) -> None:
    """Let checkpoints be in a folder that other spools share; those that are here already stay here.

    Raises `OSError`.
    """
    if shared is None:
        return
    folder = str(shared.resolve())
    make_directory(folder)
    with contextlib.suppress(FileExistsError):
        os.symlink(folder, f"{spool}/{CHECKPOINTS}")


def listed_steps(spool: Path) -> tuple[StepId, ...]:
    """Return every step that has a directory, in step order."""
    found: list[StepId] = []
    for attempt in os.scandir(spool):
        if attempt.is_dir():
            ranks = (entry.name for entry in os.scandir(attempt) if entry.is_dir())
            found.extend(StepId(f"{attempt.name}.t{rank}") for rank in ranks if rank.isdigit())
    return tuple(sorted(found))


def is_there(path: str) -> bool:
    """Say whether there is such a file."""
    return os.path.exists(path)


def look_again(directory: str) -> None:
    """Let a network file system notice what another machine wrote there since."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.listdir(directory)


def read_small(path: str) -> bytes | None:
    """Return a small file, None when there is none; other failures are raised as `OSError`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return os.read(fd, RECORD_BYTES_MAX)
    finally:
        os.close(fd)


def read_record(path: str) -> Mapping[str, str] | None:
    """Return a record of lines `name value`, None when there is none."""
    data = read_small(path)
    if data is None:
        return None
    lines = data.decode(errors="replace").splitlines()
    return {name: value for name, _, value in (line.partition(" ") for line in lines)}


def read_end(step: StepId, files: StepFiles, claim: Claim, now_ns: int) -> Observation | None:
    """Return how a step ended, None while that is not on record; raises as `read_small` does."""
    record = read_record(files.exit)
    if record is None:
        return None
    phase = TaskPhase(record["phase"])
    return Observation(
        step=step,
        phase=phase,
        at_ns=now_ns,
        claim=claim,
        exit_code=int(record["exit_code"]) if phase is TaskPhase.EXITED else None,
        started_at_ns=int(record["started_at_ns"]),
        ended_at_ns=int(record["ended_at_ns"]),
        cpu_ns=int(record["cpu_ns"]),
        memory_bytes_max=int(record["memory_bytes_max"]),
        evidence=record["evidence"],
    )


def read_usage(files: StepFiles) -> tuple[int, int]:
    """Return cumulative CPU ns and peak bytes as of the last second or so; zeros when torn."""
    fields = (read_small(files.usage) or b"").split()
    if len(fields) == 4 and fields[:2] == fields[2:]:
        return int(fields[0]), int(fields[1])
    return 0, 0


def read_address(files: StepFiles) -> str:
    """Return host:port of the server a task runs, empty until it answers."""
    ready = read_small(files.ready) or b""
    return ready.decode().strip() if _READY.fullmatch(ready) is not None else ""


def read_login(files: StepFiles) -> str:
    """Return where one logs in to a leased node, and its host key, empty until one can."""
    ready = (read_small(files.ready) or b"")[:_LOGIN_BYTES_MAX]
    return ready.decode(errors="replace").strip()


def write_time_limit(files: StepFiles, time_limit_s: int) -> None:
    """Tell the program of a leased node how long it may last in all."""
    write_whole(f"{files.directory}/time_limit", b"%d\n" % time_limit_s, is_durable=False)


def read_log(step: StepId, files: StepFiles, cursor: int, limit_bytes: int) -> LogChunk:
    """Return at most `limit_bytes` (and 4 MiB) of a step's output from byte `cursor`.

    Raises `NotFound` when there is none.
    """
    has_ended = os.path.exists(files.exit)
    try:
        fd = os.open(files.log, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as cause:
        raise NotFound(
            f"read the log of {step}", hint="it was never started here, or was forgotten"
        ) from cause
    with open(fd, "rb", buffering=0) as file:
        data = os.pread(file.fileno(), max(0, min(limit_bytes, LOG_BYTES_MAX)), max(0, cursor))
        size = os.fstat(file.fileno()).st_size
    next_cursor = max(0, cursor) + len(data)
    return LogChunk(data=data, next_cursor=next_cursor, is_end=has_ended and next_cursor >= size)


def format_record(values: Mapping[str, object]) -> bytes:
    r"""Write lines `name value`, the inverse of `read_record`.

    >>> format_record({"by": "stop", "at_ns": 5})
    b'by stop\nat_ns 5\n'
    """
    return "".join(f"{name} {value}\n" for name, value in values.items()).encode()


def read_exact(path: str) -> bytes | None:
    """Return a whole file of any size, None when there is none."""
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_whole(path: str, data: bytes, *, is_durable: bool) -> None:
    """Put a file in place whole, replacing what was there."""
    temporary = _temporary(path, data, is_durable=is_durable)
    os.rename(temporary, path)
    if is_durable:
        sync_directory(os.path.dirname(path))


def write_once(path: str, data: bytes, *, is_durable: bool = True) -> bool:
    """Make a file whole, and durable, unless it exists; return whether this call made it."""
    temporary = _temporary(path, data, is_durable=is_durable)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    if is_durable:
        sync_directory(os.path.dirname(path))
    return True


def sync_file_system(path: str) -> None:
    """Make all that was written to a directory's file system survive a power cut, at once.

    Raises `OSError` when it could not be.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(fd)


def last_written_ns(*paths: str) -> int:
    """Return when any of these files was last written, 0 when none of them is there."""
    written = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            written = max(written, os.stat(path).st_mtime_ns)
    return written


def make_directory(path: str) -> None:
    """Make a directory and its missing parents, owner only, each name durable."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_directory(parent)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    sync_directory(parent)


def make_private(*paths: str) -> None:
    """Make directories in order, owner only, of which nothing is durable yet; those there stay."""
    for path in paths:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)


def sync_directory(path: str) -> None:
    """Make the names in a directory survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _temporary(path: str, data: bytes, *, is_durable: bool) -> str:
    temporary = f"{path}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        if is_durable:
            os.fsync(fd)
    return temporary

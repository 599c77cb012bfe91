"""Prepare a task's folder, then become its program; or stay beside it to save what it leaves.

Run by path, `python -I -S -E beside.py PLAN ARGV…`, as a bare file that imports nothing of Moulin:
it runs where the task runs, as part of it, so its time, its memory and its words are the task's. PLAN
is a JSON file in the step's directory. It runs on what Python a node has, so it is written for old
ones too. It never retries, and a program that ends well whose outputs
cannot be saved has failed.

A bundle is unpacked with Python's own filter for data: nothing outside of the folder is written, no
device, owner or special bit is made. References: PEP 706.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from types import FrameType
from typing import Any

FILES_MAX = 60_000
BYTES_MAX = 4 * 10**9
NOT_PREPARED = 125
# While the program runs these are for it alone; whoever sends them sends them to all.
FOR_PROGRAM = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    *(signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
)


class Unprepared(Exception):
    """Why the task cannot start, in words for its log."""


def say(words: str) -> None:
    """Write a line to the task's log."""
    os.write(2, f"moulin: {words}\n".encode())


def unpack(bundle: dict[str, str], folder: str) -> None:
    """Unpack a bundle into an empty folder, once its bytes are known to be the ones meant.

    Raises `Unprepared` for other bytes, for what would leave the folder, and for too much.
    """
    begun = time.monotonic()
    if not hasattr(tarfile, "data_filter"):
        raise Unprepared("this node's python3 is too old to unpack safely; set the pool's `python`")
    try:
        with open(bundle["path"], "rb") as stream:
            if _digest(stream) != bundle["sha256"]:
                raise Unprepared("the bundle is damaged; submit the job again")
            stream.seek(0)
            with tarfile.open(fileobj=stream, mode="r:gz") as archive:
                count, total = _extract(archive, folder)
    except tarfile.FilterError as cause:
        raise Unprepared(f"the bundle is refused: {cause}") from cause
    except (OSError, EOFError, tarfile.TarError) as cause:
        raise Unprepared(f"the bundle cannot be unpacked: {cause}") from cause
    took = time.monotonic() - begun
    say(f"unpacked {count} files, {total:,} bytes, in {took:.1f} s")


def _digest(stream: Any) -> str:
    digest = hashlib.sha256()
    while piece := stream.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def _extract(archive: tarfile.TarFile, folder: str) -> tuple[int, int]:
    count = total = 0
    for member in archive:
        count += 1
        total += member.size
        if count > FILES_MAX or total > BYTES_MAX:
            raise Unprepared(f"the bundle holds more than {FILES_MAX} files or {BYTES_MAX:,} bytes")
        archive.extract(member, folder, filter="data")
        archive.members = []  # type: ignore[attr-defined,unused-ignore] # names need not be kept
    return count, total


def move(plan: dict[str, Any], plan_path: str, doing: str) -> bool:
    """Have the mover copy inputs or outputs; return whether all of it was copied."""
    return subprocess.call([*plan["mover"], doing, plan_path]) == 0


def become(argv: list[str]) -> None:
    """Become the program; returns the status that the shim would give when that is not possible."""
    os.environ["PWD"] = os.getcwd()
    try:
        os.execvp(argv[0], argv)
    except OSError as cause:
        say(f"cannot run {argv[0]}: {cause.strerror}")
        os._exit(127 if isinstance(cause, FileNotFoundError) else 126)


def stay_beside(argv: list[str]) -> int:
    """Run the program to its end and return its wait status."""
    for number in FOR_PROGRAM:
        signal.signal(number, _leave_to_program)
    child = os.fork()
    if child == 0:
        for number in FOR_PROGRAM:
            signal.signal(number, signal.SIG_DFL)
        become(argv)
    return os.waitpid(child, 0)[1]


def _leave_to_program(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the program got the same signal."""


def end_as(status: int) -> int:
    """Return the program's own status, or end by the signal that it ended by."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number in FOR_PROGRAM:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return os.WEXITSTATUS(status)


def main() -> int:
    """Prepare, run, save; return the status of the task."""
    plan_path, argv = sys.argv[1], sys.argv[2:]
    with open(plan_path, encoding="utf-8") as file:
        plan: dict[str, Any] = json.load(file)
    try:
        if plan["bundle"]:
            unpack(plan["bundle"], os.getcwd())
    except Unprepared as cause:
        say(str(cause))
        return NOT_PREPARED
    if plan["inputs"] and not move(plan, plan_path, "in"):
        return NOT_PREPARED
    if not plan["outputs"]:
        become(argv)
    status = stay_beside(argv)
    is_wanted = status == 0 or plan["outputs_when"] == "always"
    if is_wanted and not move(plan, plan_path, "out") and status == 0:
        return NOT_PREPARED
    return end_as(status)


if __name__ == "__main__":
    sys.exit(main())

"""Ends what a step left running after its shim died, so that two generations never overlap.

It looks only for processes of a step whose shim is known to be dead. Without a cgroup a process
that changed its session *and* cleared its environment while its shim lived, and lost its parent
before anyone looked, cannot be recognised; with one it would also have had to leave its group.
"""

import contextlib
import os
import signal
import time
from typing import Final, NamedTuple

from moulin.engines.task.spool import read_small
from moulin.engines.task.task_env import STEP_DIRECTORY_VARIABLE

_WAIT_S: Final = 2.0
_PAUSE_S: Final = 0.01


class Survivors(NamedTuple):
    """How many processes of a step were found alive, and how many of them are still there."""

    found: int
    left: int


def end_survivors(step_directory: str, cgroup: str, *, is_contained: bool = False) -> Survivors:
    """Kill every process of a step and wait up to two seconds for their ends.

    A container's tool has a second to clean up after the program. None left is evidence. Some left
    means that the kernel has not let go of them (uninterruptible I/O): ask again later.
    Cost: one scan of /proc per round.
    """
    deadline = time.monotonic() + _WAIT_S
    found: set[int] = set()
    while True:
        members, pids = _members(cgroup), _marked(step_directory)
        found |= members | pids
        if not is_contained or time.monotonic() > deadline - _WAIT_S / 2:
            pids |= members
        if not members and not pids:
            _remove(cgroup)
            return Survivors(len(found), 0)
        if time.monotonic() > deadline:
            return Survivors(len(found), len(members | pids))
        for pid in sorted(pids):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE_S)


def _members(cgroup: str) -> set[int]:
    data = (read_small(f"{cgroup}/cgroup.procs") if cgroup else None) or b""
    return {int(pid) for pid in data.split() if pid != b"0"}


def _marked(step_directory: str) -> set[int]:
    """Return living processes that carry the step's variable, their sessions and descendants."""
    mark = f"{STEP_DIRECTORY_VARIABLE}={step_directory}".encode()
    parents: dict[int, int] = {}
    sessions: dict[int, int] = {}
    found: set[int] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        pid = int(name)
        fields = _stat_fields(pid)
        if not fields or fields[0] in (b"Z", b"X"):
            continue
        parents[pid], sessions[pid] = int(fields[1]), int(fields[3])
        if mark in _environment(pid):
            found.add(pid)
    # Every task leads a session of its own, so all who share one with a marked process belong.
    shared = {sessions[pid] for pid in found} - {os.getsid(0)}
    found |= {pid for pid, session in sessions.items() if session in shared}
    below = {pid for pid in parents if _has_ancestor(pid, parents, found)}
    return (found | below) - {os.getpid()}


def _has_ancestor(pid: int, parents: dict[int, int], wanted: set[int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid in wanted:
            return True
    return False


def _stat_fields(pid: int) -> list[bytes]:
    try:
        data = read_small(f"/proc/{pid}/stat") or b""
    except OSError:
        return []
    return data.rpartition(b")")[2].split()


def _environment(pid: int) -> list[bytes]:
    try:
        return (read_small(f"/proc/{pid}/environ") or b"").split(b"\0")
    except OSError:
        return []


def _remove(cgroup: str) -> None:
    if cgroup:
        with contextlib.suppress(OSError):
            os.rmdir(cgroup)

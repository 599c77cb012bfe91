"""The local engine as one node of a larger pool: the same promises, a spool of its own.

Some other engine reaches it (today Ray's agent, by name) and says who the other nodes are. Unlike a
machine divided into nodes, members share no disk, so a gang's port is agreed on where rank 0 runs.
"""

import functools
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from moulin.domain.errors import EngineUnavailable, LocalError
from moulin.domain.health import NodeReading
from moulin.domain.ids import NodeId, StepId
from moulin.domain.observation import Claim, NodeCapacity
from moulin.domain.plan import StartStep
from moulin.domain.told import reading_of
from moulin.engines.local.cgroup import find_cgroup_base
from moulin.engines.local.engine import LocalEngine
from moulin.engines.local.launch import rendezvous_port
from moulin.engines.task.bundle_shelf import BundleShelf
from moulin.engines.task.look import Nvml, machine
from moulin.engines.task.spool import make_directory, step_files
from moulin.ports.clock import Clock


class LocalMember(LocalEngine):
    """The engine of one node; `own` is that node, `addresses` where the others are."""

    def __init__(
        self,
        directory: Path,
        *,
        clock: Clock,
        own: NodeCapacity,
        addresses: Mapping[NodeId, str],
    ) -> None:
        """Open or make the spool under `directory`.

        Raises `LocalError` when the directory is another user's or open to others.
        """
        make_directory(str(directory))
        _check_private(directory)
        others = [
            NodeCapacity(node=node, cpu_milli=0, memory_bytes=0, machine_class="", address=address)
            for node, address in sorted(addresses.items())
            if node != own.node
        ]
        self._directory = directory
        self._shelf = BundleShelf((directory / "spool").resolve())
        super().__init__(
            directory,
            clock=clock,
            nodes=(own, *others),
            cgroup=find_cgroup_base(),
            booted_at_ns=clock.now_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            read_health=self._read_machine,
        )

    def start(self, step: StartStep) -> Claim:
        """Start the step as its machine does, its folder from those that were sent here.

        Raises `EngineUnavailable` while that is not here, and what the machine's engine does.
        """
        if step.task.bundle:
            files = step_files(self._directory / "spool", step.step)
            make_directory(files.attempt_directory)
            step = self._shelf.linked(replace(step, bundle_path=""), files)
        return super().start(step)

    def take_bundle(self, digest: str, offset: int, data: bytes, *, is_last: bool) -> int:
        """Add a piece of a folder's bundle; return which is wanted next, -1 when it is here.

        Raises `EngineRefused` when it is not what its digest says, `EngineUnavailable` for the disk.
        """
        try:
            return self._shelf.take(digest, offset, data, is_last=is_last)
        except OSError as cause:
            raise EngineUnavailable(f"take bundle {digest[:12]}: {cause.strerror}") from cause

    def agree_port(self, step: StepId) -> int:
        """Return the port that all tasks of the step's attempt meet on, the same at every call."""
        files = step_files(self._directory / "spool", step)
        make_directory(files.attempt_directory)
        return rendezvous_port(files, self._ports)

    def _read_machine(self) -> NodeReading:
        """Read this machine without anything that would have to be installed on it."""
        return reading_of(NodeId(""), machine(str(self._directory), _nvml()))


@functools.cache
def _nvml() -> Nvml:
    """One for the process, as XIDs are told once and engines come and go."""
    return Nvml()


def _check_private(directory: Path) -> None:
    found = directory.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise LocalError(
            f"keep tasks' files in {directory}: it belongs to another user or is open to others",
            hint="give the pool another `spool`, a path that only its user can write to",
        )

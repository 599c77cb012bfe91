"""Reads the health of this machine: accelerators, its own memory, the disk that work needs.

Sources: NVML where it is, EDAC in /sys, statvfs. Decides nothing about what a reading means.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

from moulin.domain.health import NodeReading
from moulin.domain.ids import NodeId
from moulin.ports.clock import Clock
from moulin.sources.nvml import NvmlHealth

EDAC: Final = Path("/sys/devices/system/edac/mc")


class MachineHealth:
    """One machine, read when asked; `directory` is where its work is written."""

    def __init__(
        self, directory: Path, clock: Clock, *, devices: NvmlHealth | None = None, edac: Path = EDAC
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._devices = devices or NvmlHealth()
        self._edac = edac

    def __call__(self) -> NodeReading:
        """Return a reading of the whole machine, about a millisecond of it for each accelerator."""
        return NodeReading(
            node=NodeId(""),
            at_ns=self._clock.now_ns(),
            devices=self._devices.read(),
            memory_errors=uncorrected_errors(self._edac),
            disk_free_bytes=_free_bytes(self._directory),
            memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        )


def uncorrected_errors(edac: Path) -> int:
    """Return the uncorrected errors of all memory controllers, -1 where none is watched."""
    counts = []
    for file in sorted(edac.glob("mc*/ue_count")):
        with contextlib.suppress(OSError, ValueError):
            counts.append(int(file.read_text(encoding="ascii")))
    return sum(counts) if counts else -1


def _free_bytes(directory: Path) -> int:
    try:
        found = os.statvfs(directory)
    except OSError:
        return -1
    return found.f_bavail * found.f_frsize

"""Devices that break on two nodes of this machine: the driver is replayed, all else is real."""

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks._engines_front import moulin
from benchmarks._node_failure_watch import Case, Gang
from benchmarks._plants import Absent, local_pool
from moulin.domain.workload import Resources
from tests import nvml

DEVICES: Final = 4
NODES: Final = 2
RESOURCES: Final = Resources(cpu_milli=500, memory_bytes=60 * 10**6, accelerators=1)
VISIBLE: Final = b"CUDA_VISIBLE_DEVICES="


class Driver:
    """What the driver of this machine says, until told otherwise."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "driver"
        self.environment = {
            name: value
            for name, value in nvml.environment(nvml.build(folder), self.script).items()
            if name in ("LD_LIBRARY_PATH", nvml.SCRIPT_VARIABLE)
        }
        self._told: list[str] = []  # an XID is told once, in the order of all of them
        self._ecc = [0] * DEVICES
        self.heal()

    def heal(self) -> None:
        """Let every device be there and well; what was counted stays counted."""
        self._say(range(DEVICES))

    def xid(self, device: int) -> None:
        """Tell of a fatal XID: the device has fallen off the bus."""
        self._told.append(f"xid {device} 79")
        self._say(range(DEVICES))

    def ecc(self, device: int) -> None:
        """Count an uncorrected error."""
        self._ecc[device] += 1
        self._say(range(DEVICES))

    def lose(self, device: int) -> None:
        """Lose a device."""
        self._say([each for each in range(DEVICES) if each != device])

    def fail_remap(self, device: int) -> None:
        """Say that a row could not be remapped."""
        self._say(range(DEVICES), [f"remap {device} 0 1"])

    def _say(self, here: Sequence[int], more: Sequence[str] = ()) -> None:
        lines = [f"device {each} GPU-{each}" for each in here]
        lines += [f"ecc {each} {self._ecc[each]}" for each in here]
        lines += [f"remap {each} 0 0" for each in here]
        new = self.script.with_suffix(".new")
        new.write_text("\n".join([*lines, *more, *self._told]) + "\n")
        new.replace(self.script)


def cases(folder: Path, rounds: int, kinds: Sequence[str]) -> list[Case]:
    """Break the device that a task holds in each way there is; its spare is the other node."""
    if shutil.which("cc") is None:
        raise Absent("no C compiler for the replayed driver: apt-get install gcc")
    driver = Driver(folder)
    blows: dict[str, Callable[[int], None]] = {
        "xid": driver.xid,
        "device_missing": driver.lose,
        "ecc_uncorrected": driver.ecc,
        "row_remap_failed": driver.fail_remap,
    }
    pool = local_pool(NODES)
    with moulin(folder, pool, nodes=NODES, environment=driver.environment) as front:
        gang = Gang.begin("local", front.client, folder, ranks=1, resources=RESOURCES)
        for kind in [*blows] * rounds:
            if kinds and kind not in kinds:
                continue
            (node,) = gang.nodes()
            device = device_of(gang.pids()[0])

            gang.fails(kind, node, partial(blows[kind], device), driver.heal)
        gang.end()
    return gang.cases


def device_of(pid: int) -> int:
    """Return the device of the machine that a process was given."""
    with contextlib.suppress(FileNotFoundError):
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if variable.startswith(VISIBLE):
                return int(os.fsdecode(variable.removeprefix(VISIBLE)))
    raise RuntimeError(f"process {pid} has no device")

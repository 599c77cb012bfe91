"""Devices that break on two nodes of this machine: the driver is replayed, all else is real."""

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
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
BLOWS: Final[Mapping[str, Callable[[nvml.Driver, int], None]]] = {
    "xid": nvml.Driver.xid,
    "device_missing": nvml.Driver.lose,
    "ecc_uncorrected": nvml.Driver.ecc,
    "row_remap_failed": nvml.Driver.fail_remap,
}


def cases(folder: Path, rounds: int, kinds: Sequence[str]) -> list[Case]:
    """Break the device that a task holds in each way there is; its spare is the other node."""
    if shutil.which("cc") is None:
        raise Absent("no C compiler for the replayed driver: apt-get install gcc")
    driver = nvml.Driver(folder / "driver", DEVICES)
    replayed = nvml.environment(nvml.build(folder), driver.script)
    environment = {name: replayed[name] for name in ("LD_LIBRARY_PATH", nvml.SCRIPT_VARIABLE)}
    pool = local_pool(NODES)
    with moulin(folder, pool, nodes=NODES, environment=environment) as front:
        gang = Gang.begin("local", front.client, folder, ranks=1, resources=RESOURCES)
        for kind in [*BLOWS] * rounds:
            if kinds and kind not in kinds:
                continue
            (node,) = gang.nodes()
            device = device_of(gang.pids()[0])
            gang.fails(kind, node, partial(BLOWS[kind], driver, device), driver.heal)
        gang.end()
    return gang.cases


def device_of(pid: int) -> int:
    """Return the device of the machine that a process was given."""
    with contextlib.suppress(FileNotFoundError):
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if variable.startswith(VISIBLE):
                return int(os.fsdecode(variable.removeprefix(VISIBLE)))
    raise RuntimeError(f"process {pid} has no device")

"""Reads what this machine is: CPUs, memory, boot, accelerators; never what it is worth or does.

Sources: /proc, sched_getaffinity, the memory limit of the process's own cgroups, NVML if present.
"""

import contextlib
import importlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moulin.domain.errors import SourceUnavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One accelerator; `memory_bytes` is all of its own memory, `uuid` survives renumbering."""

    name: str
    memory_bytes: int
    uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """This machine as seen from this process.

    `cpu_ids` are the CPUs the process may use, ascending; `memory_bytes` the smaller of the
    machine's memory and what its cgroups allow. `gpus` are in PCI order, as NVML counts.
    `booted_at_ns` is by the present clock: it moves when the clock is set.
    """

    cpu_ids: tuple[int, ...]
    memory_bytes: int
    boot_id: str
    booted_at_ns: int
    hostname: str
    cpu_model: str
    gpus: tuple[Gpu, ...] = ()


def read_machine() -> MachineFacts:
    """Read this machine now; about 1 ms without accelerators.

    Raises `SourceUnavailable` where there is no Linux /proc.
    """
    try:
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError as cause:
        raise SourceUnavailable(
            "read this machine's facts from /proc", hint="the local engine needs Linux"
        ) from cause
    uname = os.uname()
    limits = [limit for limit in _cgroup_limits() if limit > 0]
    return MachineFacts(
        cpu_ids=tuple(sorted(os.sched_getaffinity(0))),
        memory_bytes=min([parse_memory_total(meminfo), *limits]),
        boot_id=boot_id,
        booted_at_ns=time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        hostname=uname.nodename,
        cpu_model=parse_cpu_model(cpuinfo) or uname.machine,
        gpus=read_gpus(),
    )


def parse_memory_total(meminfo: str) -> int:
    r"""Return the machine's memory in bytes from the text of /proc/meminfo.

    Raises `SourceUnavailable` when the text does not say.

    >>> parse_memory_total("MemTotal:       2 kB\n")
    2048
    """
    for line in meminfo.splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "MemTotal:" and words[1].isdigit():
            return int(words[1]) * 1024
    raise SourceUnavailable("read the machine's memory: /proc/meminfo has no MemTotal")


def parse_cpu_model(cpuinfo: str) -> str:
    """Return the first CPU's name from the text of /proc/cpuinfo; empty on kernels that hide it."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "cpu model"):
            return value.strip()
    return ""


def cgroup_memory_files(own_groups: str) -> tuple[str, ...]:
    """Return the limit files of a process's cgroups and all their parents.

    `own_groups` is the text of /proc/self/cgroup. Files that do not exist are for the reader to
    skip: which hierarchy carries the limit differs between machines.
    """
    files: list[str] = []
    for line in own_groups.splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        for level in _levels(path):
            if number == "0" and not controllers:
                files.append(f"/sys/fs/cgroup{level}/memory.max")
            elif "memory" in controllers.split(","):
                files.append(f"/sys/fs/cgroup/memory{level}/memory.limit_in_bytes")
    return tuple(files)


def read_gpus(nvml: Any = None) -> tuple[Gpu, ...]:
    """Return the NVIDIA accelerators; none without the library, the kernel module or a device.

    `nvml` is the module to ask; `pynvml` when it is installed. A device that cannot be read is
    left out rather than guessed.
    """
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return ()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        return tuple(_gpus(nvml))
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _gpus(nvml: Any) -> Iterator[Gpu]:
    for index in range(nvml.nvmlDeviceGetCount()):
        with contextlib.suppress(nvml.NVMLError):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            yield Gpu(
                name=_text(nvml.nvmlDeviceGetName(handle)),
                memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
                uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _cgroup_limits() -> Iterator[int]:
    try:
        own_groups = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    except OSError:
        return
    for file in cgroup_memory_files(own_groups):
        with contextlib.suppress(OSError, ValueError):
            yield int(Path(file).read_text(encoding="ascii"))


def _levels(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part]
    return ["".join(f"/{part}" for part in parts[:depth]) for depth in range(len(parts), -1, -1)]

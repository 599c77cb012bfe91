"""Reads how long a node's CPUs were busy, independently of what its tasks say of themselves.

It never attributes time to anyone. Source: /proc/stat, proc(5): USER_HZ ticks since boot per CPU;
time given to other guests of the host (steal) and waiting for disks (iowait) is not busy.
"""

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moulin.domain.errors import SourceUnavailable

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_NS_PER_TICK: Final = 1_000_000_000 // _TICKS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuReading:
    """Cumulative busy time of a set of CPUs since boot, stamped by the monotonic clock.

    `resolution_ns` bounds the error of the difference of two readings, per CPU.
    """

    at_monotonic_ns: int
    busy_ns: int
    resolution_ns: int = _NS_PER_TICK


def read_cpu_busy(cpu_ids: Collection[int]) -> CpuReading:
    """Read the given CPUs now; O(CPUs of the machine).

    Raises `SourceUnavailable` when /proc/stat cannot be read or does not list one of them.
    """
    try:
        before_ns = time.monotonic_ns()
        text = Path("/proc/stat").read_text(encoding="ascii")
        after_ns = time.monotonic_ns()
    except OSError as cause:
        raise SourceUnavailable("read /proc/stat", hint="the local meter needs Linux") from cause
    busy_ns = parse_busy_ticks(text, cpu_ids) * _NS_PER_TICK
    return CpuReading(at_monotonic_ns=(before_ns + after_ns) // 2, busy_ns=busy_ns)


def parse_busy_ticks(stat: str, cpu_ids: Collection[int]) -> int:
    r"""Return user + nice + system + irq + softirq ticks of the given CPUs.

    Raises `SourceUnavailable` for a CPU that is not listed (taken offline).

    >>> parse_busy_ticks("cpu0 5 1 2 900 7 1 1 50 0 0\n", (0,))
    10
    """
    wanted = {f"cpu{cpu}" for cpu in cpu_ids}
    ticks = 0
    for line in stat.splitlines():
        words = line.split()
        if words and words[0] in wanted:
            wanted.discard(words[0])
            user, nice, system, _idle, _iowait, irq, softirq = (int(word) for word in words[1:8])
            ticks += user + nice + system + irq + softirq
    if wanted:
        raise SourceUnavailable(
            f"read the busy time of {', '.join(sorted(wanted))}: /proc/stat does not list it",
            hint="a CPU may have been taken offline; divide the machine again",
        )
    return ticks

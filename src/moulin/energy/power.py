"""Decide how much power a machine without a meter is taken to draw, idle and busy.

Never called a meter: each figure is a per-thread average of whole servers (their memory, fans and
power supplies included) taken from a public table, with a class and an uncertainty beside it.
Source: Cloud Carbon Footprint, ccf-coefficients of 2026-03, from SPECpower_ssj2008 results.
"""

import re
from dataclasses import dataclass
from typing import Final

from moulin.domain.errors import check
from moulin.domain.factory import EnergyClass
from moulin.domain.observation import NodeCapacity

# Stated, not measured: specification models of servers are off by up to 27-37 % (arXiv 2506.14551),
# and a shared or virtual machine may sit on a server that is better or worse filled.
SPECIFICATION_UNCERTAINTY_PPM: Final = 350_000
CONSTANT_UNCERTAINTY_PPM: Final = 500_000
UNKNOWN_UNCERTAINTY_PPM: Final = 1_000_000

_TABLE: Final = "Cloud Carbon Footprint 2026-03 from SPECpower_ssj2008"


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerModel:
    """Power of a whole node in milliwatts: idle, and with every CPU busy; `source` names the table."""

    idle_mw: int
    peak_mw: int
    quality: EnergyClass
    uncertainty_ppm: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    pattern: re.Pattern[str]
    title: str
    idle_mw: int
    peak_mw: int


def _family(pattern: str, title: str, idle_mw: int, peak_mw: int) -> _Family:
    return _Family(
        pattern=re.compile(pattern, re.IGNORECASE), title=title, idle_mw=idle_mw, peak_mw=peak_mw
    )


# Milliwatts per hardware thread. The table's fifth EPYC generation rests on a few small servers
# (3.7 to 9.0 W per thread) and is left out: such a CPU gets the average with its wider uncertainty.
_XEON: Final = r"xeon.*(platinum|gold|silver|bronze) \d"
_FAMILIES: Final = (
    _family(r"epyc 7\w\w1\b", "EPYC 1st generation", 847, 2604),
    _family(r"epyc 7\w\w2\b", "EPYC 2nd generation", 474, 1693),
    _family(r"epyc 7\w\w3\b", "EPYC 3rd generation", 456, 1957),
    _family(r"epyc [89]\w\w4", "EPYC 4th generation", 739, 2282),
    _family(r"xeon.*e5-.*v3\b", "Xeon Haswell", 1857, 5595),
    _family(r"xeon.*e5-.*v4\b", "Xeon Broadwell", 713, 3685),
    _family(_XEON + r"1\d\d", "Xeon Skylake", 613, 4104),
    _family(_XEON + r"2\d\d", "Xeon Cascade Lake", 690, 4063),
    _family(_XEON + r"3\d\d", "Xeon Ice Lake", 767, 3758),
    _family(_XEON + r"4\d\d", "Xeon Sapphire Rapids", 1036, 4160),
    _family(_XEON + r"5\d\d", "Xeon Emerald Rapids", 814, 4482),
    _family(r"xeon.*6[79]\d\dp", "Xeon Granite Rapids", 582, 2527),
    _family(r"graviton|neoverse", "Graviton (taken equal to EPYC 2nd generation)", 474, 1693),
)
# The mean that Cloud Carbon Footprint publishes for one cloud's processors taken together.
_AVERAGE: Final = _family(r"", "an unlisted CPU, average server", 740, 3500)


def cpu_power(model_name: str, cpu_milli: int) -> PowerModel:
    """Return the stated power of a CPU-only node from its CPU's name, as /proc/cpuinfo gives it.

    Units:  `cpu_milli` is the node's hardware threads in thousandths; the result is for the node.

    A listed family gives class D, any other name class E with the average of all.

    >>> cpu_power("AMD EPYC 7742 64-Core Processor", 2000).peak_mw
    3386
    """
    check(cpu_milli >= 0, "a node cannot have fewer than zero CPUs")
    found = next((f for f in _FAMILIES if f.pattern.search(model_name)), _AVERAGE)
    is_listed = found is not _AVERAGE
    return PowerModel(
        idle_mw=found.idle_mw * cpu_milli // 1000,
        peak_mw=found.peak_mw * cpu_milli // 1000,
        quality=EnergyClass.SPECIFICATION_MODEL if is_listed else EnergyClass.CONSTANT,
        uncertainty_ppm=SPECIFICATION_UNCERTAINTY_PPM if is_listed else CONSTANT_UNCERTAINTY_PPM,
        source=f"{found.title}, {found.idle_mw} to {found.peak_mw} mW per thread, {_TABLE}",
    )


def power_of(capacity: NodeCapacity) -> PowerModel:
    """Return the power model that a node's engine states for it.

    A node without figures gets zero watts, said to be unknown, rather than an invented number.
    """
    if capacity.peak_mw <= 0:
        return PowerModel(
            idle_mw=0,
            peak_mw=0,
            quality=EnergyClass.CONSTANT,
            uncertainty_ppm=UNKNOWN_UNCERTAINTY_PPM,
            source="no power figures for this node",
        )
    return PowerModel(
        idle_mw=capacity.idle_mw,
        peak_mw=capacity.peak_mw,
        quality=capacity.power_quality,
        uncertainty_ppm=capacity.power_uncertainty_ppm,
        source=capacity.power_source,
    )

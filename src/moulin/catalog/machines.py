"""The shipped machine classes: what one device or machine of each class is, figure by figure.

Never a ranking and never one speed-up: throughput is per precision (dense, without sparsity), and
B300 over B200 is 1.5 at FP4 and 1.0 at FP8. A figure without a published source stays 0 and its
source says so; figures that are estimates say that too. Power of an accelerator is the device's
own, without its share of the node.
"""

import difflib
from collections.abc import Mapping
from typing import Final

from moulin.domain.errors import UnknownName
from moulin.domain.factory import MachineClass

NOT_PUBLISHED: Final = "not published"
MEASURED_HERE: Final = "measured on this machine when it joins"
THIS_MACHINE: Final = "this-machine"

_GB: Final = 10**9
_HOPPER: Final = "NVIDIA data sheet, with sparsity, halved for dense"
_HGX: Final = "NVIDIA HGX data sheet, 8 devices, with sparsity, divided by 8 and halved for dense"
_FLOPS_HOPPER: Final[Mapping[str, int]] = {
    "fp64": 34,
    "fp64_tensor": 67,
    "fp32": 67,
    "tf32_dense": 494,
    "bf16_dense": 989,
    "fp16_dense": 989,
    "fp8_dense": 1979,
    "int8_dense": 1979,
}

_H100: Final = MachineClass(
    name="H100",
    title="NVIDIA H100 SXM 80 GB",
    architecture="Hopper",
    memory_bytes=80 * _GB,
    tera_flops=_FLOPS_HOPPER,
    idle_mw=70_000,
    peak_mw=700_000,
    interconnect="NVLink 4 with NVSwitch, 900 GB/s per device",
    devices_per_domain=8,
    memory_bytes_per_s=3_350 * _GB,
    lifecycle="ga",
    sources={
        "memory_bytes": "NVIDIA H100 data sheet",
        "memory_bytes_per_s": "NVIDIA H100 data sheet, SXM, 3.35 TB/s",
        "tera_flops": _HOPPER,
        "idle_mw": "arXiv 2605.23918, bare device; a CUDA context adds 26 to 50 W",
        "peak_mw": "NVIDIA H100 data sheet, maximum thermal design power",
        "interconnect": "NVIDIA H100 data sheet",
        "devices_per_domain": "NVIDIA HGX H100 data sheet",
    },
)

_H200: Final = MachineClass(
    name="H200",
    title="NVIDIA H200 SXM 141 GB",
    architecture="Hopper",
    memory_bytes=141 * _GB,
    tera_flops=_FLOPS_HOPPER,
    idle_mw=74_000,
    peak_mw=700_000,
    interconnect="NVLink 4 with NVSwitch, 900 GB/s per device",
    devices_per_domain=8,
    memory_bytes_per_s=4_800 * _GB,
    lifecycle="ga",
    sources={
        "memory_bytes": "NVIDIA H200 data sheet",
        "memory_bytes_per_s": "NVIDIA H200 data sheet, 4.8 TB/s",
        "tera_flops": _HOPPER,
        "idle_mw": "arXiv 2605.23918",
        "peak_mw": "NVIDIA H200 data sheet; decoding draws 137 to 300 W (arXiv 2605.11999)",
        "interconnect": "NVIDIA H200 data sheet",
        "devices_per_domain": "NVIDIA HGX H200 data sheet",
    },
)

_B200: Final = MachineClass(
    name="B200",
    title="NVIDIA B200 SXM 180 GB (HGX)",
    architecture="Blackwell",
    memory_bytes=180 * _GB,
    tera_flops={
        "fp64": 37,
        "fp32": 75,
        "tf32_dense": 1125,
        "bf16_dense": 2250,
        "fp16_dense": 2250,
        "fp8_dense": 4500,
        "int8_dense": 4500,
        "fp4_dense": 9000,
    },
    peak_mw=1_000_000,
    interconnect="NVLink 5 with NVSwitch, 1.8 TB/s per device",
    devices_per_domain=8,
    memory_bytes_per_s=8_000 * _GB,
    lifecycle="ga",
    sources={
        "memory_bytes": "NVIDIA DGX B200 data sheet, 1,440 GB over 8 devices (192 GB fitted)",
        "memory_bytes_per_s": "NVIDIA DGX B200 data sheet, 64 TB/s over 8 devices",
        "tera_flops": _HGX + "; FP4 stated dense, 72 PFLOPS over 8",
        "idle_mw": NOT_PUBLISHED,
        "peak_mw": "NVIDIA HGX B200 data sheet; 1,200 W in GB200",
        "interconnect": "NVIDIA HGX B200 data sheet",
        "devices_per_domain": "NVIDIA HGX B200 data sheet",
    },
)

_B300: Final = MachineClass(
    name="B300",
    title="NVIDIA B300 SXM 288 GB (HGX, Blackwell Ultra)",
    architecture="Blackwell Ultra",
    memory_bytes=288 * _GB,
    tera_flops={
        "fp64": 1,
        "fp32": 75,
        "tf32_dense": 1125,
        "bf16_dense": 2250,
        "fp16_dense": 2250,
        "fp8_dense": 4500,
        "fp4_dense": 13_500,
    },
    peak_mw=1_100_000,
    interconnect="NVLink 5 with NVSwitch, 1.8 TB/s per device",
    devices_per_domain=8,
    memory_bytes_per_s=8_000 * _GB,
    lifecycle="ga",
    sources={
        "memory_bytes": "NVIDIA HGX B300 data sheet, 2.3 TB over 8 devices; later editions say 2.1 TB",
        "memory_bytes_per_s": "NVIDIA HGX B300 data sheet, 8 TB/s per device",
        "tera_flops": _HGX + "; FP4 stated dense, 108 PFLOPS over 8 (an earlier edition: 105)",
        "tera_flops.int8_dense": "left out: editions of the data sheet contradict one another",
        "idle_mw": NOT_PUBLISHED,
        "peak_mw": "third-party table of thermal design power, unconfirmed; 1,400 W in GB300",
        "interconnect": "NVIDIA HGX B300 data sheet",
        "devices_per_domain": "NVIDIA HGX B300 data sheet",
    },
)

_GB300: Final = MachineClass(
    name="GB300-NVL72",
    title="NVIDIA GB300 NVL72, one of the rack's 72 devices",
    architecture="Blackwell Ultra with Grace",
    memory_bytes=279 * _GB,
    tera_flops={
        "fp64": 1,
        "fp32": 80,
        "tf32_dense": 1250,
        "bf16_dense": 2500,
        "fp16_dense": 2500,
        "fp8_dense": 5000,
        "fp4_dense": 15_000,
    },
    peak_mw=1_400_000,
    interconnect="NVLink 5 across the rack, 1.8 TB/s per device",
    devices_per_domain=72,
    memory_bytes_per_s=8_000 * _GB,
    lifecycle="ga",
    sources={
        "memory_bytes": "NVIDIA GB300 NVL72 data sheet, 20.1 TB over 72 devices (288 GB fitted)",
        "memory_bytes_per_s": "NVIDIA GB300 NVL72 data sheet, up to 576 TB/s over 72 devices",
        "tera_flops": (
            "NVIDIA GB300 NVL72 data sheet, 72 devices, with sparsity, divided by 72 and halved for"
            " dense; FP4 stated dense, 1,080 PFLOPS over 72"
        ),
        "idle_mw": NOT_PUBLISHED,
        "peak_mw": "NVIDIA, device only; a rack draws 132 to 140 kW (Supermicro, Microsoft)",
        "interconnect": "NVIDIA GB300 NVL72 data sheet",
        "devices_per_domain": "NVIDIA GB300 NVL72 data sheet",
    },
)

_ALTRA_MAX: Final = MachineClass(
    name="Altra-Max-M128-30",
    title="Ampere Altra Max M128-30, 128 Arm cores, one socket",
    is_accelerator=False,
    architecture="Arm Neoverse N1 (Armv8.2+)",
    peak_mw=250_000,
    interconnect="CCIX between two sockets",
    devices_per_domain=2,
    memory_bytes_per_s=204_800_000_000,
    lifecycle="ga",
    sources={
        "memory_bytes": "as fitted: up to 4 TB of DDR4-3200 per socket (Ampere data sheet)",
        "memory_bytes_per_s": "8 channels of DDR4-3200 at 25.6 GB/s (Ampere data sheet)",
        "tera_flops": NOT_PUBLISHED,
        "idle_mw": NOT_PUBLISHED,
        "peak_mw": "Ampere Altra Max data sheet, thermal design power of the socket alone",
        "interconnect": "Ampere Altra Max data sheet",
        "devices_per_domain": "Ampere Altra Max data sheet",
    },
)

_THIS: Final = MachineClass(
    name=THIS_MACHINE,
    title="The CPU and memory of the machine Moulin runs on",
    is_accelerator=False,
    architecture="as found",
    lifecycle="ga",
    sources={
        "memory_bytes": MEASURED_HERE,
        "memory_bytes_per_s": "measured on this machine when it is asked for",
        "tera_flops": "not measured",
        "idle_mw": "stated per thread by CPU name (moulin.energy.power), class D or E",
        "peak_mw": "stated per thread by CPU name (moulin.energy.power), class D or E",
        "interconnect": "one machine",
        "devices_per_domain": "one machine",
    },
)

MACHINE_CLASSES: Final[Mapping[str, MachineClass]] = {
    found.name: found for found in (_H100, _H200, _B200, _B300, _GB300, _ALTRA_MAX, _THIS)
}


def find_machine_class(
    name: str, classes: Mapping[str, MachineClass] = MACHINE_CLASSES
) -> MachineClass:
    """Return a machine class by name.

    Raises `UnknownName` with the nearest names, or all when none is near.
    """
    found = classes.get(name)
    if found is None:
        by_lower = {known.lower(): known for known in classes}
        near = difflib.get_close_matches(name.lower(), by_lower, n=2)
        words = [by_lower[n] for n in near] or sorted(classes)
        raise UnknownName(
            f"there is no machine class {name!r}",
            hint=f"did you mean {' or '.join(words)}?" if near else f"known: {', '.join(words)}",
            details={"name": name, "known": sorted(classes)},
        )
    return found


def speed_up_ppm(faster: MachineClass, slower: MachineClass, precision: str) -> int | None:
    """Return the ratio of two classes at one precision in millionths, None unless both state it.

    >>> speed_up_ppm(MACHINE_CLASSES["B300"], MACHINE_CLASSES["B200"], "fp4_dense")
    1500000
    """
    numerator, denominator = faster.tera_flops.get(precision), slower.tera_flops.get(precision)
    if not numerator or not denominator:
        return None
    return numerator * 1_000_000 // denominator

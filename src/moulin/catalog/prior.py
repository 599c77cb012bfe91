"""What a token is likely to take before any was metered: the first estimate, replaced by readings.

It turns a model's size and a machine's power into energy per token read and written, and says how far
that may be off: far. It never touches a receipt; what is charged and stated there was metered.

    energy = power of what the replica holds x time at the pace x overhead of the site

Source: the roofline of `moulin.catalog.speed`, at the part of it that servers reach.
"""

from dataclasses import dataclass
from math import isqrt
from typing import Final

from moulin.domain.factory import MachineClass
from moulin.domain.model import Ability
from moulin.domain.units import PPM
from moulin.ports.launcher import ModelWork

# What llama.cpp reached per hardware thread of a shared x86-64 server, with weights of 4 to 8 bits and
# models of 0.1 to 0.3 billion parameters: 2.5 to 3.5 GB of weights and 13 to 41 GFLOPS in a second.
THREAD_READ_BYTES_PER_S: Final = 3 * 10**9
THREAD_FLOPS_PER_S: Final = 20 * 10**9
# Of an accelerator's data sheet, servers reach 30 to 70 %, by batch and kernel.
REACHED_PPM: Final = 500_000
# Three times as much, or a third: between machines, kernels and loads.
UNCERTAINTY_PPM: Final = 2_000_000
# Whisper's encoder reads 30 s of audio as 1,500 positions, whatever is in them (arXiv 2212.04356).
WHISPER_POSITIONS: Final = 1_500
WHISPER_WINDOW_MS: Final = 30_000
# A character of English is about 70 ms of speech; a small VITS voice speaks ten times faster than that.
SPOKEN_MS_PER_CHARACTER: Final = 70
SPOKEN_FASTER: Final = 10
_GFLOPS_PER_TERA: Final = 10**12
_UJ_PER_MJ: Final = 1_000
_TENTHS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a replica holds of a machine: hardware threads in thousandths, or whole devices.

    `power_mw` is what that draws when it is busy; `parallel_requests` are its slots and `pue_ppm` the
    site's overhead.
    """

    power_mw: int
    cpu_milli: int = 0
    devices: int = 0
    parallel_requests: int = 1
    context_tokens: int = 0
    pue_ppm: int = PPM


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """Energy per unit that comes in and goes out, in µJ, and by how much it may be off."""

    input_uj: int
    output_uj: int
    uncertainty_ppm: int


def prior_energy(work: ModelWork, held: Held, machine: MachineClass | None) -> Prior | None:
    """Return what a unit of a model's meters is likely to take; None where too little is known.

    What comes in is tokens, milliseconds of audio or characters, by what the model does. `machine` is
    the class of the devices, None on CPUs.

    >>> work = ModelWork(parameters=134_515_008, weights_bytes=98_362_432)
    >>> prior_energy(work, Held(power_mw=7_000, cpu_milli=2_000), None)
    Prior(input_uj=47000, output_uj=110000, uncertainty_ppm=2000000)
    """
    read_per_s, flops_per_s = _pace(held, machine)
    if not (held.power_mw and flops_per_s and read_per_s and work.parameters):
        return None
    if work.ability is Ability.SPEAK:
        spoken_ms = SPOKEN_MS_PER_CHARACTER // SPOKEN_FASTER
        return _prior(held, held.power_mw * spoken_ms, 0)
    operations = 2 * work.parameters
    if work.ability is Ability.TRANSCRIBE:
        per_ms = operations * WHISPER_POSITIONS // WHISPER_WINDOW_MS
        return _prior(held, _energy_uj(held, per_ms, flops_per_s), 0)
    read_uj = _energy_uj(held, operations, flops_per_s)
    if work.ability is Ability.EMBED:
        return _prior(held, read_uj, 0)
    # Between one request alone, which pays for every weight, and as many as there are slots.
    together = isqrt(held.parallel_requests) if held.devices else 1
    cache_bytes = work.kv_bytes_per_token * held.context_tokens // 2
    step_bytes = work.weights_bytes // together + cache_bytes
    written_uj = max(_energy_uj(held, step_bytes, read_per_s), read_uj)
    return _prior(held, read_uj, written_uj, together)


def _pace(held: Held, machine: MachineClass | None) -> tuple[int, int]:
    """Return bytes and operations in a second, as servers reach them."""
    if machine is None:
        return (
            THREAD_READ_BYTES_PER_S * held.cpu_milli // 1_000,
            THREAD_FLOPS_PER_S * held.cpu_milli // 1_000,
        )
    tera = max(machine.tera_flops.get("bf16_dense", 0), machine.tera_flops.get("fp16_dense", 0))
    return (
        machine.memory_bytes_per_s * held.devices * REACHED_PPM // PPM,
        tera * _GFLOPS_PER_TERA * held.devices * REACHED_PPM // PPM,
    )


def _energy_uj(held: Held, amount: int, per_s: int) -> int:
    return held.power_mw * _UJ_PER_MJ * amount // per_s


def _prior(held: Held, input_uj: int, output_uj: int, together: int = 1) -> Prior:
    return Prior(
        input_uj=_rounded(input_uj * held.pue_ppm // PPM),
        output_uj=_rounded(output_uj * held.pue_ppm // PPM) if output_uj else 0,
        uncertainty_ppm=UNCERTAINTY_PPM * together,
    )


def _rounded(amount_uj: int) -> int:
    """Round to two digits, up from nothing: unknown is not zero, and more digits would be a claim."""
    scale: int = _TENTHS ** max(0, len(str(amount_uj)) - 2)
    return max(1, amount_uj // scale * scale)

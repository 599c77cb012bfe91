"""Estimates how fast a model can be on a machine class: the roofline, an upper bound and called so.

Writing a token reads every weight once for all requests of a step, and each request's KV cache;
reading a prompt multiplies every weight with every token. Whichever of memory and arithmetic is
slower bounds the speed. Links between devices, sampling and scheduling only make it slower.
Source: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009.
"""

from dataclasses import dataclass, replace
from typing import Final

from moulin.domain.factory import MachineClass
from moulin.domain.model import KV_ELEMENT_BYTES, Architecture, Model, Variant
from moulin.domain.outlook import UNKNOWN, Basis, Figure, Speed

MILLI: Final = 1000
_GIGA: Final = 10**9
_TERA: Final = 10**12
# Quantised weights are widened to this precision before they are multiplied.
_ARITHMETIC: Final = (
    ("BF16", ("bf16_dense", "fp16_dense")),
    ("FP8", ("fp8_dense", "fp16_dense")),
    ("", ("fp16_dense", "bf16_dense", "fp32")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a replica runs: devices side by side, context of a request, requests at once."""

    devices: int
    context_tokens: int
    parallel_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What one device can read and multiply in a second, each with its origin; 0 is not known."""

    read_bytes_per_s: int = 0
    read_origin: str = ""
    flops_per_s: int = 0
    flops_origin: str = ""


def pace_of(machine: MachineClass, precision: str) -> Pace:
    """Return what the class's figures say for weights of a precision."""
    name, tera = _arithmetic(machine, precision)
    origin = machine.sources.get("tera_flops", "")
    return Pace(
        read_bytes_per_s=machine.memory_bytes_per_s,
        read_origin=machine.sources.get("memory_bytes_per_s", ""),
        flops_per_s=tera * _TERA,
        flops_origin=f"{name}: {origin}" if tera else "",
    )


def kv_bytes_per_token(architecture: Architecture) -> int:
    """Return what one token of context takes: two half-precision vectors per layer and KV head."""
    a = architecture
    return 2 * a.layers * a.kv_heads * a.head_dim * KV_ELEMENT_BYTES


def roofline(pace: Pace, model: Model, variant: Variant, shape: Shape) -> Speed:
    """Return the most that a device's pace allows; unknown where it is.

    Units:  thousandths of a token per second.

    >>> from moulin.catalog.lookup import find_model
    >>> from moulin.catalog.machines import MACHINE_CLASSES
    >>> model = find_model("qwen2.5-coder-0.5b-instruct")
    >>> shape = Shape(devices=1, context_tokens=4096, parallel_requests=1)
    >>> pace = pace_of(MACHINE_CLASSES["H100"], model.variants[0].precision)
    >>> roofline(pace, model, model.variants[0], shape).output_milli.amount
    6183872
    """
    one = _steps(pace, model, variant, shape)
    count = shape.parallel_requests
    every = (
        replace(one, amount=one.amount * count, origin=f"{count} x one request: {one.origin}")
        if one.amount
        else one
    )
    return Speed(output_milli=one, output_total_milli=every, input_milli=_input(pace, model, shape))


def _arithmetic(machine: MachineClass, precision: str) -> tuple[str, int]:
    for prefix, names in _ARITHMETIC:
        if precision.upper().startswith(prefix):
            for name in names:
                if machine.tera_flops.get(name):
                    return name, machine.tera_flops[name]
    return "", 0


def _steps(pace: Pace, model: Model, variant: Variant, shape: Shape) -> Figure:
    kv_bytes = kv_bytes_per_token(model.architecture) * shape.context_tokens
    step_bytes = variant.size_bytes + shape.parallel_requests * kv_bytes
    read_per_s = pace.read_bytes_per_s * shape.devices
    if not read_per_s or not step_bytes:
        return UNKNOWN
    by_memory = read_per_s * MILLI // step_bytes
    work = 2 * model.architecture.parameters * shape.parallel_requests
    flops_per_s = pace.flops_per_s * shape.devices
    by_arithmetic = flops_per_s * MILLI // work if flops_per_s and work else by_memory
    if by_arithmetic < by_memory:
        origin = (
            f"arithmetic / work per step, at most: {_giga(flops_per_s)} GFLOPS / "
            f"(2 x {model.architecture.parameters} parameters x {shape.parallel_requests} requests)"
            f"; {pace.flops_origin}"
        )
    else:
        origin = (
            f"memory bandwidth / bytes per step, at most: {_giga(read_per_s)} GB/s / "
            f"({_giga(variant.size_bytes)} GB of weights + {shape.parallel_requests} requests x "
            f"{_giga(kv_bytes)} GB of KV cache at {shape.context_tokens} tokens)"
            f"; {pace.read_origin}"
        )
    amount = min(by_memory, by_arithmetic)
    return Figure(amount=amount, basis=Basis.ESTIMATED, origin=origin)


def _input(pace: Pace, model: Model, shape: Shape) -> Figure:
    flops_per_s = pace.flops_per_s * shape.devices
    work = 2 * model.architecture.parameters
    if not flops_per_s or not work:
        return UNKNOWN
    return Figure(
        amount=flops_per_s * MILLI // work,
        basis=Basis.ESTIMATED,
        origin=(
            f"arithmetic / work per token, at most: {_giga(flops_per_s)} GFLOPS / "
            f"(2 x {model.architecture.parameters} parameters); {pace.flops_origin}"
        ),
    )


def _giga(amount: int) -> str:
    return f"{amount / _GIGA:.4g}"

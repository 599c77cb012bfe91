"""Says how much memory a model needs and whether a machine has it, before anything starts."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from moulin.catalog.speed import Pace, Shape, kv_bytes_per_token, pace_of, roofline
from moulin.domain.errors import InvalidSpec
from moulin.domain.factory import EnergyClass, MachineClass
from moulin.domain.model import (
    VLLM,
    Ability,
    MemoryNeed,
    Model,
    Variant,
    paged_memory,
    serving_memory,
)
from moulin.domain.outlook import FitRow
from moulin.domain.reasons import Reason, ReasonCode

PARALLEL_MAX = 256
# Specification models of servers are off by up to 27-37 % (arXiv 2506.14551).
POWER_UNCERTAINTY_PPM = 350_000


def memory_need(model: Model, variant: Variant, context_tokens: int, parallel: int) -> MemoryNeed:
    """Return what one replica takes, by cause; `context_tokens` is per request.

    A model whose memory was measured is no text generator, and its context plays no part.

    Raises `InvalidSpec` for a context the model cannot have or an absurd number of requests.
    """
    _check_parallel(model, parallel)
    if model.memory is not None:
        return MemoryNeed(
            weights_bytes=model.memory.weights_bytes,
            kv_cache_bytes=0,
            batch_bytes=model.memory.request_bytes * parallel,
            process_bytes=model.memory.process_bytes,
        )
    context_max = model.architecture.context_max_tokens
    if not 1 <= context_tokens <= context_max:
        raise InvalidSpec(
            f"a context of {context_tokens} tokens for {model.name}: "
            f"it must be between 1 and {context_max}",
            details={"context_tokens": context_tokens, "context_max_tokens": context_max},
        )
    weights_bytes = variant.size_bytes + variant.repacked_bytes
    by_runtime = paged_memory if model.runtime_of(variant) == VLLM else serving_memory
    return by_runtime(
        model.architecture, weights_bytes, context_tokens=context_tokens, parallel=parallel
    )


def memory_needed_bytes(model: Model, variant: Variant, context_tokens: int, parallel: int) -> int:
    """Return the bytes one replica takes; raises `InvalidSpec` as `memory_need` does.

    >>> from moulin.catalog.lookup import find_model
    >>> model = find_model("smollm2-135m-instruct")
    >>> memory_needed_bytes(model, model.variants[0], 2048, 2) // 2**20
    269
    """
    return memory_need(model, variant, context_tokens, parallel).total_bytes


def fits(
    model: Model, variant: Variant, *, context_tokens: int, parallel: int, largest_bytes: int
) -> Reason | None:
    """Return None when one replica fits a node of `largest_bytes`, else the reason with numbers.

    Raises `InvalidSpec` as `memory_need` does.
    """
    need = memory_need(model, variant, context_tokens, parallel)
    if need.total_bytes <= largest_bytes:
        return None
    return Reason(
        code=ReasonCode.MODEL_TOO_LARGE,
        parameters={
            "model": model.name,
            "needed": _megabytes(need.total_bytes),
            "largest": _megabytes(largest_bytes, up=False),
            "needed_bytes": str(need.total_bytes),
            "largest_bytes": str(largest_bytes),
            "weights": _megabytes(need.weights_bytes),
            "kv_cache": _megabytes(need.kv_cache_bytes),
            "context_tokens": str(context_tokens),
            "parallel": str(parallel),
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A class to try a model on; `pace` overrides its figures where a machine was measured itself.

    `quality` and `uncertainty_ppm` are those of its stated power.
    """

    machine_class: MachineClass
    pace: Pace | None = None
    quality: EnergyClass = EnergyClass.SPECIFICATION_MODEL
    uncertainty_ppm: int = POWER_UNCERTAINTY_PPM


def fit_rows(
    model: Model, machines: Sequence[Machine], context_tokens: int, parallel: int
) -> tuple[FitRow, ...]:
    """Return each variant on each machine class: memory, longest context, speed at most.

    Prices, energy and what was measured are for the caller to add.

    Raises `InvalidSpec` as `memory_need` does.

    Order:  variants as in the catalogue, machines as given.
    """
    return tuple(
        _row(model, variant, machine, context_tokens, parallel)
        for variant in model.variants
        for machine in machines
    )


def _row(
    model: Model, variant: Variant, machine: Machine, context_tokens: int, parallel: int
) -> FitRow:
    found, need = machine.machine_class, memory_need(model, variant, context_tokens, parallel)
    # The registry names a CPU's sockets as its domain; a replica on CPUs has one machine.
    most = max(1, found.devices_per_domain) if found.is_accelerator else 1
    counts = [2**power for power in range(most.bit_length())]
    fitting = [n for n in counts if need.total_bytes <= n * found.memory_bytes]
    devices = fitting[0] if fitting else 0
    available_bytes = (devices or counts[-1]) * found.memory_bytes
    shape = Shape(devices=devices, context_tokens=context_tokens, parallel_requests=parallel)
    row = FitRow(
        variant=variant.name,
        runtime=model.runtime_of(variant),
        precision=variant.precision,
        machine_class=found.name,
        devices=devices,
        need=need,
        needed_bytes=need.total_bytes,
        available_bytes=available_bytes,
        kv_bytes_per_token=kv_bytes_per_token(model.architecture),
        context_max_tokens=_context_max(model, variant, parallel, available_bytes),
        is_fitting=devices > 0,
        problem="" if devices else _problem(found, need, counts[-1]),
    )
    if not devices or model.ability is not Ability.GENERATE:
        return row
    pace = machine.pace or pace_of(found, variant.precision)
    return replace(row, speed=roofline(pace, model, variant, shape))


def _context_max(model: Model, variant: Variant, parallel: int, available_bytes: int) -> int:
    contexts = range(1, model.architecture.context_max_tokens + 1)
    return bisect_right(
        contexts,
        available_bytes,
        key=lambda tokens: memory_need(model, variant, tokens, parallel).total_bytes,
    )


def _problem(machine: MachineClass, need: MemoryNeed, devices: int) -> str:
    if not machine.memory_bytes:
        return f"the memory of {machine.name} is not known: {machine.sources.get('memory_bytes')}"
    largest = _megabytes(machine.memory_bytes * devices, up=False)
    place = f"{devices} x {machine.name}" if devices > 1 else machine.name
    return f"{_megabytes(need.total_bytes)} are needed, {place} has {largest}"


def _check_parallel(model: Model, parallel: int) -> None:
    if not 1 <= parallel <= PARALLEL_MAX:
        raise InvalidSpec(
            f"{parallel} requests at once for {model.name}: "
            f"it must be between 1 and {PARALLEL_MAX}",
            details={"parallel": parallel, "parallel_max": PARALLEL_MAX},
        )


def _megabytes(amount_bytes: int, *, up: bool = True) -> str:
    # Rounded so that the two numbers never look equal when they are not.
    return f"{(amount_bytes + (10**6 - 1 if up else 0)) // 10**6} MB"

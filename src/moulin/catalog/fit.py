"""Says how much memory a model needs and whether a machine has it, before anything starts."""

from moulin.domain.errors import InvalidSpec
from moulin.domain.model import MemoryNeed, Model, Variant, serving_memory
from moulin.domain.reasons import Reason, ReasonCode

PARALLEL_MAX = 256


def memory_need(model: Model, variant: Variant, context_tokens: int, parallel: int) -> MemoryNeed:
    """Return what one replica takes, by cause; `context_tokens` is per request.

    Raises `InvalidSpec` for a context the model cannot have or an absurd number of requests.
    """
    context_max = model.architecture.context_max_tokens
    if not 1 <= context_tokens <= context_max:
        raise InvalidSpec(
            f"a context of {context_tokens} tokens for {model.name}: "
            f"it must be between 1 and {context_max}",
            details={"context_tokens": context_tokens, "context_max_tokens": context_max},
        )
    if not 1 <= parallel <= PARALLEL_MAX:
        raise InvalidSpec(
            f"{parallel} requests at once for {model.name}: "
            f"it must be between 1 and {PARALLEL_MAX}",
            details={"parallel": parallel, "parallel_max": PARALLEL_MAX},
        )
    weights_bytes = variant.size_bytes + variant.repacked_bytes
    return serving_memory(
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


def _megabytes(amount_bytes: int, *, up: bool = True) -> str:
    # Rounded so that the two numbers never look equal when they are not.
    return f"{(amount_bytes + (10**6 - 1 if up else 0)) // 10**6} MB"

"""Memory of a model: worked figures, limits, and the refusal with its numbers."""

from dataclasses import replace

import pytest

from moulin.catalog.fit import Machine, fit_rows, fits, memory_need, memory_needed_bytes
from moulin.catalog.lookup import find_model
from moulin.catalog.machines import MACHINE_CLASSES
from moulin.domain.errors import InvalidSpec
from moulin.domain.model import PAGED_PROCESS_BYTES
from moulin.domain.reasons import ReasonCode, sentence

MIB = 2**20
SMALL = find_model("smollm2-135m-instruct")
LARGER = find_model("qwen2.5-coder-0.5b-instruct")


@pytest.mark.parametrize(
    ("model", "context", "parallel", "kv_mib"),
    [
        # As llama.cpp itself reports the size of its KV buffer.
        (SMALL, 512, 1, 11.25),
        (SMALL, 2048, 2, 90),
        (SMALL, 8192, 8, 1440),
        (LARGER, 512, 1, 6),
        (LARGER, 4096, 2, 96),
        (LARGER, 32_768, 2, 768),
    ],
)
def test_kv_cache_is_exact(model, context, parallel, kv_mib) -> None:
    need = memory_need(model, model.forms()[-1], context, parallel)
    assert need.kv_cache_bytes == kv_mib * MIB


def test_a_form_for_vllm_needs_whole_blocks_and_its_processes() -> None:
    form = replace(SMALL.variants[0], name="bf16", runtime="vllm", size_bytes=269_000_000)
    need = memory_need(SMALL, form, 1000, 3)
    # Three requests of eight blocks of 128 tokens, and one to spare.
    assert need.kv_cache_bytes == 2 * 30 * 3 * 64 * 2 * 128 * (3 * 8 + 1)
    assert need.weights_bytes == 269_000_000
    assert need.process_bytes == PAGED_PROCESS_BYTES
    [row] = fit_rows(
        replace(SMALL, variants=(form,)),
        [Machine(machine_class=MACHINE_CLASSES["H100"])],
        1000,
        3,
    )
    assert (row.runtime, row.needed_bytes) == ("vllm", need.total_bytes)


def test_every_part_is_in_the_total() -> None:
    variant = LARGER.forms()[-1]
    need = memory_need(LARGER, variant, 2048, 2)
    assert need.weights_bytes == 491_400_064 + 29_417_472
    assert need.kv_cache_bytes == 2 * 24 * 2 * 64 * 2 * 2048 * 2
    assert need.batch_bytes == 512 * 4 * (3 * 4864 + 5 * 896) + 512 * 2 * 2048 + 151_936 * 16 * 2
    assert need.process_bytes == 48 * MIB + 428 * 151_936
    assert memory_needed_bytes(LARGER, variant, 2048, 2) == (
        need.weights_bytes + need.kv_cache_bytes + need.batch_bytes + need.process_bytes
    )


def test_a_model_fits_exactly_what_it_needs_and_not_a_byte_less() -> None:
    variant = SMALL.variants[0]
    needed = memory_needed_bytes(SMALL, variant, 4096, 2)
    ask = {"context_tokens": 4096, "parallel": 2}
    assert fits(SMALL, variant, largest_bytes=needed, **ask) is None
    reason = fits(SMALL, variant, largest_bytes=needed - 1, **ask)
    assert reason is not None
    assert reason.code is ReasonCode.MODEL_TOO_LARGE
    assert reason.parameters["needed_bytes"] == str(needed)
    assert reason.parameters["largest_bytes"] == str(needed - 1)
    assert sentence(reason) == (
        "smollm2-135m-instruct needs 380 MB of memory, the largest permitted node has 379 MB"
    )


@pytest.mark.parametrize(
    ("context", "parallel", "words"),
    [
        (0, 1, "between 1 and 8192"),
        (8193, 1, "between 1 and 8192"),
        (10**30, 1, "between 1 and 8192"),
        (-5, 1, "between 1 and 8192"),
        (512, 0, "between 1 and 256"),
        (512, 257, "between 1 and 256"),
    ],
)
def test_impossible_shapes_are_refused_with_the_limit(context, parallel, words) -> None:
    with pytest.raises(InvalidSpec, match=words):
        memory_need(SMALL, SMALL.variants[0], context, parallel)

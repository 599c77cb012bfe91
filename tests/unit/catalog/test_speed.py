"""The roofline by hand: bytes per step and work per token, and which of them bounds."""

from dataclasses import replace

import pytest

from moulin.catalog.entries import QWEN_CODER_05B, SMOLLM2_135M
from moulin.catalog.fit import Machine, fit_rows, memory_need
from moulin.catalog.machines import MACHINE_CLASSES, THIS_MACHINE
from moulin.catalog.speed import Pace, Shape, kv_bytes_per_token, pace_of, roofline
from moulin.domain.errors import InvalidSpec
from moulin.domain.outlook import Basis

VARIANT = QWEN_CODER_05B.variants[0]
H100 = Machine(machine_class=MACHINE_CLASSES["H100"])
LARGE = replace(
    QWEN_CODER_05B,
    name="large",
    architecture=replace(QWEN_CODER_05B.architecture, parameters=70 * 10**9),
    variants=(replace(VARIANT, size_bytes=141 * 10**9, repacked_bytes=0, precision="BF16"),),
)


def shape(devices: int = 1, parallel: int = 1) -> Shape:
    return Shape(devices=devices, context_tokens=4096, parallel_requests=parallel)


def test_a_token_of_context_is_two_half_precision_vectors_per_layer_and_head():
    assert kv_bytes_per_token(QWEN_CODER_05B.architecture) == 2 * 24 * 2 * 64 * 2


def test_one_request_is_bound_by_memory():
    found = roofline(pace_of(H100.machine_class, "Q4_K_M"), QWEN_CODER_05B, VARIANT, shape())
    assert found.output_milli.amount == 3_350 * 10**12 // (491_400_064 + 12_288 * 4096)
    assert found.output_milli.basis is Basis.ESTIMATED
    assert "0.4914 GB of weights + 1 requests x 0.05033 GB" in found.output_milli.origin
    assert "H100 data sheet" in found.output_milli.origin


def test_many_requests_share_the_weights():
    one = roofline(pace_of(H100.machine_class, "Q4_K_M"), QWEN_CODER_05B, VARIANT, shape())
    many = roofline(
        pace_of(H100.machine_class, "Q4_K_M"), QWEN_CODER_05B, VARIANT, shape(parallel=8)
    )
    assert one.output_milli.amount < many.output_total_milli.amount < 8 * one.output_milli.amount
    assert many.output_total_milli.amount == 8 * many.output_milli.amount


def test_slow_arithmetic_bounds_both():
    pace = Pace(read_bytes_per_s=10**15, flops_per_s=10**12, flops_origin="a stopwatch")
    found = roofline(pace, QWEN_CODER_05B, VARIANT, shape())
    work = 2 * QWEN_CODER_05B.architecture.parameters
    assert found.output_milli.amount == found.input_milli.amount == 10**15 // work
    assert found.output_milli.origin.endswith("a stopwatch")


def test_what_is_not_known_is_not_guessed():
    found = roofline(Pace(), QWEN_CODER_05B, VARIANT, shape())
    assert {found.output_milli.basis, found.input_milli.basis} == {Basis.UNKNOWN}


@pytest.mark.parametrize(
    ("precision", "tera"), [("Q4_K_M", 989), ("BF16", 989), ("F16", 989), ("FP8", 1979)]
)
def test_quantised_weights_are_multiplied_at_half_precision(precision, tera):
    assert pace_of(H100.machine_class, precision).flops_per_s == tera * 10**12


def test_what_one_device_cannot_hold_takes_a_power_of_two():
    (row,) = fit_rows(LARGE, [H100], 4096, 1)
    assert (row.devices, row.is_fitting, row.available_bytes) == (2, True, 160 * 10**9)
    one, two = (
        roofline(pace_of(H100.machine_class, "BF16"), LARGE, LARGE.variants[0], shape(devices))
        for devices in (1, 2)
    )
    assert row.speed == two
    assert two.output_milli.amount == pytest.approx(2 * one.output_milli.amount, abs=1)


def test_what_no_domain_holds_is_told_with_numbers():
    huge = replace(LARGE, variants=(replace(LARGE.variants[0], size_bytes=10**12),))
    (row,) = fit_rows(huge, [H100], 4096, 1)
    assert (row.devices, row.is_fitting, row.context_max_tokens) == (0, False, 0)
    assert row.problem.endswith("are needed, 8 x H100 has 640000 MB")
    assert row.speed.output_milli.basis is Basis.UNKNOWN


def test_the_longest_context_is_the_last_one_that_fits():
    small = replace(
        MACHINE_CLASSES[THIS_MACHINE], memory_bytes=SMOLLM2_135M.variants[0].size_bytes * 3
    )
    row, *_ = fit_rows(SMOLLM2_135M, [Machine(machine_class=small)], 2048, 1)
    most = row.context_max_tokens
    variant = SMOLLM2_135M.variants[0]
    assert 1 < most < SMOLLM2_135M.architecture.context_max_tokens
    assert memory_need(SMOLLM2_135M, variant, most, 1).total_bytes <= small.memory_bytes
    assert memory_need(SMOLLM2_135M, variant, most + 1, 1).total_bytes > small.memory_bytes


def test_a_machine_of_unknown_memory_says_so():
    unknown = Machine(machine_class=MACHINE_CLASSES[THIS_MACHINE])
    assert all("not known" in row.problem for row in fit_rows(SMOLLM2_135M, [unknown], 512, 1))


def test_every_class_but_this_machine_states_its_bandwidth_with_a_source():
    for name, found in MACHINE_CLASSES.items():
        assert found.sources["memory_bytes_per_s"]
        assert (found.memory_bytes_per_s > 0) == (name != THIS_MACHINE)


def test_an_impossible_context_is_refused():
    with pytest.raises(InvalidSpec, match="must be between"):
        fit_rows(SMOLLM2_135M, [H100], 10**6, 1)

"""The shipped registry: every figure has its source, and speed depends on precision."""

import pytest

from moulin.catalog.machines import (
    MACHINE_CLASSES,
    NOT_PUBLISHED,
    find_machine_class,
    speed_up_ppm,
)
from moulin.domain.errors import UnknownName

FIGURES = (
    "memory_bytes",
    "tera_flops",
    "idle_mw",
    "peak_mw",
    "interconnect",
    "devices_per_domain",
)


def test_the_classes_that_a_first_user_needs_are_there():
    assert sorted(MACHINE_CLASSES) == [
        "Altra-Max-M128-30",
        "B200",
        "B300",
        "GB300-NVL72",
        "H100",
        "H200",
        "this-machine",
    ]


@pytest.mark.parametrize("name", sorted(MACHINE_CLASSES))
def test_each_figure_has_a_source_and_an_unpublished_one_is_zero(name):
    found = MACHINE_CLASSES[name]
    for figure in FIGURES:
        assert found.sources[figure]
        if found.sources[figure] == NOT_PUBLISHED:
            assert not getattr(found, figure)
    assert found.idle_mw <= found.peak_mw
    assert found.lifecycle == "ga"


@pytest.mark.parametrize(
    ("faster", "slower", "precision", "ratio_ppm"),
    [
        ("B300", "B200", "fp4_dense", 1_500_000),
        ("B300", "B200", "fp8_dense", 1_000_000),
        ("B300", "B200", "bf16_dense", 1_000_000),
        ("B300", "B200", "fp64", 27_027),
        ("H200", "H100", "fp8_dense", 1_000_000),
        ("B200", "H100", "fp4_dense", None),
        ("this-machine", "H100", "fp8_dense", None),
    ],
)
def test_a_speed_up_is_never_one_constant(faster, slower, precision, ratio_ppm):
    found = speed_up_ppm(MACHINE_CLASSES[faster], MACHINE_CLASSES[slower], precision)
    assert found == ratio_ppm


def test_dense_figures_only():
    for found in MACHINE_CLASSES.values():
        assert not any("sparse" in precision for precision in found.tera_flops)


@pytest.mark.parametrize(
    ("wrong", "hint"), [("b30", "did you mean B300"), ("abacus", "known: Altra-Max")]
)
def test_a_wrong_name_is_answered_with_the_nearest(wrong, hint):
    with pytest.raises(UnknownName) as caught:
        find_machine_class(wrong)
    assert caught.value.hint.startswith(hint)


def test_a_right_name_is_found():
    assert find_machine_class("H200").memory_bytes == 141_000_000_000

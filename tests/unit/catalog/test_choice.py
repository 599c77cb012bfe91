"""Which source is taken: the table of preference, reach of the hub and what is in the store."""

from dataclasses import replace

import pytest

from moulin.catalog.choice import choose, needs_hub
from moulin.catalog.lookup import find_model
from moulin.domain.errors import SourceUnavailable, UnknownName
from moulin.domain.model import SourceKind, SourcePreference

BOTH = find_model("qwen2.5-coder-0.5b-instruct")
PACKAGED = find_model("smollm2-135m-instruct")
ANY, HUB, PACKAGES = SourcePreference.ANY, SourcePreference.HUB, SourcePreference.PACKAGES


@pytest.mark.parametrize(
    ("model", "preference", "problem", "held", "variant", "because"),
    [
        (BOTH, ANY, "", (), "q4_k_m", "the official hub answers"),
        (BOTH, HUB, "", (), "q4_k_m", "the official hub answers"),
        (BOTH, ANY, "no route", (), "q4_k_m-packaged", "out of reach (no route)"),
        (BOTH, PACKAGES, "", (), "q4_k_m-packaged", "packages were asked for"),
        (BOTH, ANY, "", ("q4_k_m-packaged",), "q4_k_m-packaged", "already in the store"),
        (BOTH, HUB, "", ("q4_k_m-packaged",), "q4_k_m", "the official hub answers"),
        (BOTH, HUB, "no route", ("q4_k_m",), "q4_k_m", "already in the store"),
        (PACKAGED, HUB, "", (), "q4_1-packaged", "no other kind of source"),
        (PACKAGED, ANY, "", (), "q4_1-packaged", "no other kind of source"),
        (PACKAGED, PACKAGES, "", (), "q4_1-packaged", "packages were asked for"),
    ],
)
def test_choice(model, preference, problem, held, variant, because) -> None:
    choice = choose(model, preference, hub_problem=problem, held=held)
    assert choice.variant.name == variant
    assert because in choice.explanation
    assert choice.source.address in choice.explanation


def test_the_mirror_is_called_one_in_the_explanation() -> None:
    assert "mirror with pinned digest" in choose(BOTH, PACKAGES).explanation


def test_a_hub_out_of_reach_is_an_error_that_names_the_mirror() -> None:
    with pytest.raises(SourceUnavailable, match="no route") as caught:
        choose(BOTH, HUB, hub_problem="no route")
    assert "--source pypi" in caught.value.hint


def test_the_hub_is_asked_only_when_the_choice_depends_on_it() -> None:
    assert needs_hub(BOTH, ANY)
    assert needs_hub(BOTH, HUB)
    assert not needs_hub(BOTH, PACKAGES)
    assert not needs_hub(BOTH, ANY, held=("q4_k_m-packaged",))
    assert needs_hub(BOTH, HUB, held=("q4_k_m-packaged",))
    assert not needs_hub(PACKAGED, HUB)
    assert not needs_hub(BOTH, ANY, variant_name="q4_k_m-packaged")
    assert not needs_hub(BOTH, ANY, variant_name="no-such")


def test_a_variant_by_name_decides_the_source() -> None:
    choice = choose(BOTH, ANY, variant_name="q4_k_m-packaged")
    assert choice.source.kind is SourceKind.PACKAGES


@pytest.mark.parametrize(
    ("preference", "variant", "words"),
    [
        (ANY, "q9", "no variant 'q9'"),
        (PACKAGES, "q4_k_m", "no pypi source"),
    ],
)
def test_what_there_is_not_is_an_unknown_name(preference, variant, words) -> None:
    with pytest.raises(UnknownName, match=words):
        choose(BOTH, preference, variant_name=variant)


def test_forms_for_another_runtime_are_taken_by_name_alone() -> None:
    first, *others = PACKAGED.variants
    form = replace(first, name="bf16", runtime="vllm")
    model = replace(PACKAGED, variants=(form, first, *others))
    assert choose(model, PACKAGES).variant == first
    assert choose(model, PACKAGES, variant_name="bf16").variant == form
    assert choose(model, ANY, held=("bf16",)).variant == first

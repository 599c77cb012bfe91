"""Names of models and variants: found, or answered with the nearest."""

import pytest

from moulin.catalog.entries import MODELS
from moulin.catalog.lookup import find_model, find_variant, is_file_name
from moulin.domain.errors import UnknownName


def test_model_is_found_by_name() -> None:
    assert find_model("smollm2-135m-instruct").title == "SmolLM2 135M Instruct"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smollm-135m", "did you mean smollm2-135m-instruct?"),
        ("Qwen2.5-Coder", "did you mean qwen2.5-coder-0.5b-instruct?"),
        ("zzz", f"known: {', '.join(sorted(MODELS))}"),
        ("", "known: "),
    ],
)
def test_unknown_model_is_answered_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UnknownName) as caught:
        find_model(name)
    assert hint in caught.value.hint
    assert "file:" in caught.value.hint


def test_variant_is_found_by_name_or_is_the_first() -> None:
    model = find_model("qwen2.5-coder-0.5b-instruct")
    assert find_variant(model, "").name == "q4_k_m"
    assert find_variant(model, "q4_k_m-packaged").precision == "Q4_K_M"
    with pytest.raises(UnknownName) as caught:
        find_variant(model, "q4_k_m-package")
    assert "q4_k_m-packaged" in caught.value.hint


def test_file_names_are_told_from_catalogue_names() -> None:
    assert is_file_name("file:/models/a.gguf")
    assert not is_file_name("smollm2-135m-instruct")

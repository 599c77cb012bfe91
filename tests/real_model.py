"""The small real model for tests, fetched once into a cache that outlives the run."""

import os
from functools import cache
from pathlib import Path

from moulin.catalog.entries import SMOLLM2_135M
from moulin.domain.errors import SourceUnavailable
from moulin.domain.model import FetchedModel, SourcePreference
from moulin.sources.fetch import choose_source, fetch_variant
from tests.lacking import lacking


def cache_directory() -> Path:
    """Return where tests keep models: MOULIN_TEST_CACHE, or a folder of the user's cache."""
    named = os.environ.get("MOULIN_TEST_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "moulin-tests"


@cache
def smollm2() -> FetchedModel:
    """Return the small model, or skip the test with the reason it could not be fetched."""
    store = cache_directory() / "store"
    store.mkdir(parents=True, exist_ok=True)
    try:
        return fetch_variant(choose_source(SMOLLM2_135M, SourcePreference.ANY, store), store)
    except SourceUnavailable as cause:
        lacking(f"the small model could not be fetched: {cause.message}")

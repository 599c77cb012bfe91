"""Finds a model by name and one of its variants; a wrong name is answered with the nearest."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Final

from moulin.catalog.entries import MODELS
from moulin.domain.errors import UnknownName
from moulin.domain.model import Model, Variant

FILE_PREFIX: Final = "file:"
ADDRESS_PREFIXES: Final = (FILE_PREFIX, "hf:", "s3:")


def is_file_name(name: str) -> bool:
    """Return whether a model name points at a file, which an edge must read to describe it."""
    return name.startswith(FILE_PREFIX)


def is_address(source: str) -> bool:
    """Return whether a source names one file somewhere, which adds a model to the catalogue."""
    return source.startswith(ADDRESS_PREFIXES)


def find_model(name: str, models: Mapping[str, Model] = MODELS) -> Model:
    """Return the catalogue entry called `name`.

    Raises `UnknownName` with the nearest names, or all of them when none is near.
    """
    model = models.get(name)
    if model is None:
        raise UnknownName(
            f"there is no model {name!r} in the catalogue",
            hint=f"{_nearest(name, models)}; or an operator adds one: moulin deploy file:model.gguf",
            details={"name": name, "known": sorted(models)},
        )
    return model


def find_variant(model: Model, name: str) -> Variant:
    """Return the variant called `name`, or the preferred one for an empty name.

    Raises `UnknownName` with the variants there are.
    """
    if not name:
        return model.variants[0]
    for variant in model.variants:
        if variant.name == name:
            return variant
    known = [v.name for v in model.variants]
    raise UnknownName(
        f"model {model.name} has no variant {name!r}",
        hint=_nearest(name, known),
        details={"name": name, "known": known},
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = get_close_matches(name.lower(), names, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"

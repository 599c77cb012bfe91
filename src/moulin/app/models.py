"""The catalogue as the API and the control plane meet it: what there is, what is here, fetching.

Fetches run in threads of the control process and leave nothing half-made; a killed one is
continued by the next ask. What is known of files on disk is read from the store, never remembered.
"""

import hmac
import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from moulin.app.runtimes import RuntimeBook
from moulin.catalog.entries import MODELS
from moulin.catalog.fit import memory_needed_bytes
from moulin.catalog.lookup import (
    FILE_PREFIX,
    find_model,
    find_variant,
    is_address,
    is_file_name,
    parse_address,
)
from moulin.catalog.speed import kv_bytes_per_token
from moulin.domain.control import FetchStatus, FetchWanted, ModelInfo, VariantInfo
from moulin.domain.errors import (
    AlreadyExists,
    EngineUnavailable,
    InternalError,
    MoulinError,
    Refused,
    SourceUnavailable,
)
from moulin.domain.model import (
    LLAMA_CPP,
    VLLM,
    Ability,
    FetchedModel,
    HubRepository,
    Model,
    Progress,
    Provenance,
    Source,
    SourceChoice,
    SourcePreference,
    Variant,
    opaque,
)
from moulin.domain.plan import StartStep
from moulin.domain.workload import EndpointSpec, TaskTemplate
from moulin.ports.launcher import ModelFacts, ModelWork
from moulin.sources.disk import Report, full_disk_named
from moulin.sources.fetch import choose_source, fetch_variant, held_variants, with_digests
from moulin.sources.files import describe_file
from moulin.sources.shelf import Shelf

log = logging.getLogger(__name__)
ABSENT: Final = "absent"
FETCHING: Final = "fetching"
READY: Final = "ready"
FAILED: Final = "failed"
NAMED_CARD: Final = (
    "A model from an address the operator gave; Moulin knows no more of it than the file says."
)
REPLICA_KEY_CONTEXT: Final = b"moulin replica key v1\n"


class ModelLibrary:
    """Implements the API's `ModelShelf` and the control plane's `Launcher` over one model store."""

    def __init__(
        self,
        store_dir: Path,
        keys_dir: Path,
        pepper: bytes,
        models: Mapping[str, Model] = MODELS,
    ) -> None:
        self._store_dir = store_dir
        self._keys_dir = keys_dir
        self._pepper = pepper
        self._models = dict(models)
        self._runtimes = RuntimeBook(keys_dir.parent / "runtimes")
        self._added_path = keys_dir.parent / "added_models.json"
        self._awaited: dict[str, Model] = {}
        self._fetches: dict[str, FetchStatus] = {}
        self._lock = threading.Lock()

    def models(self) -> Sequence[ModelInfo]:
        """Return every entry by name."""
        return [self.model(name) for name in sorted({*self._models, *self._added()})]

    def model(self, name: str) -> ModelInfo:
        """Return one entry. Raises `UnknownName`, its hint naming the nearest."""
        model = self._find(name)
        names = {model.runtime_of(variant) for variant in model.variants}
        hints = {each: self._runtimes.state(each).problem for each in names}
        return _info(model, self._status(name), hints)

    def entry(self, name: str) -> Model:
        """Return the catalogue's own entry, with digests as far as they are pinned.

        Raises `UnknownName` as `model` does.
        """
        return with_digests(self._find(name), self._store_dir)

    def fetch(self, name: str, wanted: FetchWanted) -> FetchStatus:
        """Start fetching in the background unless it runs, and say where it is.

        A `file:…`, `hf:…` or `s3:…` address adds that model to the catalogue as `name`, a remote one
        when it is here whole.

        Raises `UnknownName` for a model, variant or source that does not exist, `AlreadyExists`
        for a name that another model has, `SourceUnavailable` and `SourceError` for a file that
        is not there or is no model, `DiskFull` when the addition cannot be kept.
        """
        is_new = is_address(wanted.source)
        model = self._registered(name, wanted.source) if is_new else self._find(name)
        preference = SourcePreference.ANY if is_new else SourcePreference(wanted.source)
        if wanted.variant:
            find_variant(model, wanted.variant)
        with self._lock:
            running = self._fetches.get(name)
            if running is not None and running.state == FETCHING:
                return running
            started = FetchStatus(state=FETCHING, stage="locating")
            self._fetches[name] = started
        threading.Thread(
            target=self._fetch, args=(model, preference, wanted.variant), daemon=True
        ).start()
        return started

    def facts(self, endpoint: EndpointSpec) -> ModelFacts:
        """Return what one replica takes.

        Raises `UnknownName` as `model` does, `Refused` when no variant is on disk or the model's
        runtime is not installed, and
        `SourceUnavailable` when the disk cannot be read.
        """
        model, variant = self._variant(endpoint)
        held = self._held(endpoint)
        self._runtimes.command(model.runtime_of(variant))
        context_tokens = _context_tokens(model, endpoint)
        return ModelFacts(
            variant=variant.name,
            infill=model.infill,
            name=endpoint.model,
            digest=f"sha256:{held.sha256}",
            memory_bytes=memory_needed_bytes(
                model, variant, context_tokens, endpoint.parallel_requests
            ),
            context_tokens=context_tokens,
            ability=model.ability,
            terms=model.terms,
            work=ModelWork(
                parameters=model.architecture.parameters,
                weights_bytes=held.size_bytes,
                kv_bytes_per_token=kv_bytes_per_token(model.architecture),
                ability=model.ability,
            ),
        )

    def task(self, step: StartStep) -> TaskTemplate:
        """Return the program of one replica; its key goes into a file of its own.

        Raises what `facts` does, `Refused` for a step that is no endpoint's, and
        `EngineUnavailable` when its key cannot be put on disk now.
        """
        endpoint = step.endpoint
        if endpoint is None:
            raise Refused(f"serve {step.step}: it is not an endpoint's task")
        model, variant = self._variant(endpoint)
        # A part of a CPU is a thread that now and then waits; without it that CPU would stay idle.
        threads = max(1, -(-step.resources.cpu_milli // 1000))
        return TaskTemplate(
            command=(
                *self._runtimes.command(model.runtime_of(variant)),
                "--model",
                self._held(endpoint).path,
                "--alias",
                endpoint.model,
                "--context",
                str(endpoint.context_tokens),
                "--parallel",
                str(endpoint.parallel_requests),
                "--threads",
                str(threads),
                "--key-file",
                str(self._key_file(step)),
            )
        )

    def replica_key(self, attempt: str) -> str:
        """Return the key with which a gateway calls this replica, the same at every call."""
        return hmac.digest(self._pepper, REPLICA_KEY_CONTEXT + attempt.encode(), "sha256").hex()

    def _find(self, name: str) -> Model:
        """Return an entry, one of an operator's file by the digest it was added with."""
        added = self._added().get(name) if name not in self._models else None
        if added is not None:
            self._models[name] = self._described(name, *added)
        elif name in self._awaited and name not in self._models:
            return self._awaited[name]
        return find_model(name, self._models)

    def _described(self, name: str, sha256: str, origin: str) -> Model:
        """Describe a model that is in the store from its own header."""
        path = Shelf(directory=self._store_dir).path_of(sha256)
        model = replace(describe_file(f"{FILE_PREFIX}{path}", sha256=sha256), name=name)
        if not origin:
            return model
        variant = replace(
            model.variants[0], provenance=Provenance.NAMED, sources=(parse_address(origin),)
        )
        return replace(model, card=NAMED_CARD, variants=(variant,))

    def _registered(self, name: str, address: str) -> Model:
        """Return the model of an address: a file's is in the catalogue now, others when fetched."""
        if not is_file_name(address):
            self._check_free(name, address)
            if name not in self._models:
                self._awaited[name] = named_model(name, parse_address(address))
            return self._find(name)
        model = replace(describe_file(address), name=name)
        self._add(model, address)
        return model

    def _add(self, model: Model, address: str) -> None:
        """Keep a described model in the catalogue, by its digest and where it came from."""
        sha256 = model.variants[0].sha256
        if self._added().get(model.name, (sha256, ""))[0] != sha256:
            raise self._taken(model.name, address)
        self._check_free(model.name, address)
        kept = {name: list(each) for name, each in self._added().items()}
        with full_disk_named(self._added_path):
            draft = self._added_path.with_suffix(".draft")
            origin = "" if is_file_name(address) else address
            draft.write_text(json.dumps({**kept, model.name: [sha256, origin]}, sort_keys=True))
            draft.replace(self._added_path)
        self._models[model.name] = model

    def _check_free(self, name: str, address: str) -> None:
        """Raise `AlreadyExists` for the name of a shipped model, or of another address."""
        added = self._added().get(name)
        origin = "" if is_file_name(address) else address
        if (name in self._models and added is None) or (added is not None and added[1] != origin):
            raise self._taken(name, address)

    @staticmethod
    def _taken(name: str, address: str) -> AlreadyExists:
        return AlreadyExists(
            f"add {address} as {name}: the catalogue has another model of that name",
            hint="choose another name",
        )

    def _added(self) -> dict[str, tuple[str, str]]:
        """Return digest and address of the operator's own models by the names they were added under."""
        try:
            found = json.loads(self._added_path.read_bytes())
        except FileNotFoundError:
            return {}
        return {str(name): _digest_and_origin(each) for name, each in found.items()}

    def _variant(self, endpoint: EndpointSpec) -> tuple[Model, Variant]:
        model = self._find(endpoint.model)
        if endpoint.variant:
            return model, find_variant(model, endpoint.variant)
        names = held_variants(model, self._store_dir)
        held = [variant for variant in model.forms() if variant.name in names]
        if not held:
            raise Refused(
                f"serve {endpoint.model}: its weights are not on this factory's disk yet",
                hint=f"fetch them first: moulin deploy {endpoint.model}",
            )
        return model, held[0]

    def _held(self, endpoint: EndpointSpec) -> FetchedModel:
        """Return the verified file of an endpoint's variant; nothing is downloaded."""
        model, variant = self._variant(endpoint)
        if variant.name not in held_variants(model, self._store_dir):
            raise Refused(
                f"serve {endpoint.model} ({variant.name}): its weights are not on disk",
                hint=f"fetch them first: moulin deploy {endpoint.model} --variant {variant.name}",
            )
        choice = SourceChoice(
            model=model, variant=variant, source=variant.sources[0], explanation="on disk"
        )
        try:
            return fetch_variant(choice, self._store_dir)
        except OSError as cause:
            raise SourceUnavailable(
                f"read the weights of {endpoint.model}: {cause.strerror}",
                hint=f"check the disk under {self._store_dir}",
            ) from cause

    def _key_file(self, step: StartStep) -> Path:
        """Write the replica's key where only this user reads it; its predecessors' keys go."""
        path = self._keys_dir / step.attempt
        try:
            self._keys_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            for old in self._keys_dir.glob(f"{step.workload}.u{step.unit}.g*"):
                if old != path:
                    old.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(self.replica_key(step.attempt))
        except OSError as cause:
            raise EngineUnavailable(
                f"write the key of {step.attempt}: {cause.strerror}",
                hint=f"check the disk under {self._keys_dir}",
            ) from cause
        return path

    def _status(self, name: str) -> FetchStatus:
        with self._lock:
            known = self._fetches.get(name)
        if known is not None:
            return known
        model = self._find(name)
        names = held_variants(model, self._store_dir)
        for variant in model.variants:
            if variant.name in names:
                return FetchStatus(
                    state=READY,
                    variant=variant.name,
                    provenance=variant.provenance,
                    source=variant.sources[0].address,
                    sha256=variant.sha256,
                )
        return FetchStatus(state=ABSENT)

    def _fetch(self, model: Model, preference: SourcePreference, variant: str) -> None:
        """Fetch in a thread; whatever happens ends up in the status that callers poll."""
        try:
            choice = choose_source(model, preference, self._store_dir, variant_name=variant)
            fetched = fetch_variant(choice, self._store_dir, self._reporter(model.name, choice))
            if choice.variant.provenance is Provenance.NAMED and model.name not in self._models:
                origin = choice.source.address
                self._add(self._described(model.name, fetched.sha256, origin), origin)
        except MoulinError as error:
            self._set(
                model.name,
                FetchStatus(state=FAILED, code=error.code, message=error.message, hint=error.hint),
            )
            return
        except Exception as bug:
            # Without a word here, callers would wait for ever for a fetch that has ended.
            log.exception("fetching %s failed", model.name)
            words = f"fetch {model.name}: a fault inside Moulin stopped it ({type(bug).__name__})"
            failed = InternalError(words, hint="the operator's log says more")
            status = FetchStatus(
                state=FAILED, code=failed.code, message=failed.message, hint=failed.hint
            )
            self._set(model.name, status)
            return
        self._set(model.name, _ready(choice, fetched))

    def _reporter(self, name: str, choice: SourceChoice) -> Report:
        def report(progress: Progress) -> None:
            self._set(
                name,
                FetchStatus(
                    state=FETCHING,
                    stage=progress.stage,
                    done_bytes=progress.bytes_done,
                    total_bytes=progress.bytes_total,
                    variant=choice.variant.name,
                    provenance=choice.variant.provenance,
                    source=choice.explanation,
                ),
            )

        return report

    def _set(self, name: str, status: FetchStatus) -> None:
        with self._lock:
            self._fetches[name] = status


def named_model(name: str, source: Source) -> Model:
    """Return an entry for an address of which nothing is known before it was fetched."""
    is_checkpoint = isinstance(source, HubRepository)
    variant = Variant(
        name="checkpoint" if is_checkpoint else "file",
        precision="",
        size_bytes=0,
        sha256="",
        provenance=Provenance.NAMED,
        sources=(source,),
    )
    return Model(
        name=name,
        title=name,
        publisher="not stated",
        licence="not stated",
        licence_url="",
        card=NAMED_CARD,
        architecture=opaque("", 0),
        variants=(variant,),
        runtime=VLLM if is_checkpoint else LLAMA_CPP,
    )


def _digest_and_origin(found: object) -> tuple[str, str]:
    """Read one entry of the added models; a bare digest is of a file."""
    if isinstance(found, list) and len(found) == 2:
        return str(found[0]), str(found[1])
    return str(found), ""


def _ready(choice: SourceChoice, fetched: FetchedModel) -> FetchStatus:
    return FetchStatus(
        state=READY,
        stage="ready",
        done_bytes=fetched.size_bytes,
        total_bytes=fetched.size_bytes,
        variant=choice.variant.name,
        provenance=fetched.provenance,
        source=choice.explanation,
        sha256=fetched.sha256,
    )


def _context_tokens(model: Model, endpoint: EndpointSpec) -> int:
    """Return the context that is served: what was asked for, or all that another model has."""
    if model.ability is Ability.GENERATE:
        return endpoint.context_tokens
    return model.architecture.context_max_tokens


def _info(model: Model, status: FetchStatus, runtime_hints: Mapping[str, str]) -> ModelInfo:
    return ModelInfo(
        name=model.name,
        title=model.title,
        publisher=model.publisher,
        licence=model.licence,
        licence_url=model.licence_url,
        card=model.card,
        parameters=model.architecture.parameters,
        context_max_tokens=model.architecture.context_max_tokens,
        variants=tuple(
            VariantInfo(
                name=variant.name,
                precision=variant.precision,
                size_bytes=variant.size_bytes,
                sha256=variant.sha256,
                provenance=variant.provenance,
                sources=tuple(source.address for source in variant.sources),
                runtime=model.runtime_of(variant),
                runtime_hint=runtime_hints[model.runtime_of(variant)],
            )
            for variant in model.variants
        ),
        fetch=status,
        licence_terms=model.licence_terms,
        stage=model.lifecycle.stage(time.time_ns()),
        lifecycle=model.lifecycle,
        languages=model.languages,
        known_limits=model.known_limits,
    )

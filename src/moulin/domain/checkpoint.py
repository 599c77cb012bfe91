"""Reads a checkpoint in the form of the model hub from bytes handed in: `config.json`, safetensors.

It decides what figures a folder's model has and what the folder's one digest is. It never touches
a disk, never runs code of a checkpoint and never believes a length: every read is checked.

Reference: safetensors' format (a length, a JSON header, the tensors), and the keys of
transformers' configurations.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from moulin.domain.errors import SourceError
from moulin.domain.model import Architecture

CONFIG: Final = "config.json"
WEIGHTS: Final = ".safetensors"
# What a server reads: weights without pickled code, texts, templates. Python files are never taken.
ENDINGS: Final = (WEIGHTS, ".json", ".txt", ".model", ".jinja", ".tiktoken")
LENGTH_BYTES: Final = 8
HEADER_BYTES_MAX: Final = 100 * 10**6
_DIMENSIONS_MAX: Final = 16
_DTYPE_BYTES: Final = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2,
    "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """One file of a checkpoint, by its name within the folder."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What the safetensors files of a checkpoint hold: elements by type, and all their bytes."""

    elements: Mapping[str, int]
    size_bytes: int

    @property
    def parameters(self) -> int:
        """Return the number of elements; tied weights stored twice count twice."""
        return sum(self.elements.values())

    @property
    def precision(self) -> str:
        """Return the type most elements have, empty without any."""
        return max(sorted(self.elements), key=lambda name: self.elements[name], default="")


def is_taken(name: str) -> bool:
    """Return whether a file of a folder belongs to the checkpoint.

    >>> [is_taken(name) for name in ("model.safetensors", "modeling.py", ".git.json")]
    [True, False, False]
    """
    return name.endswith(ENDINGS) and not name.startswith(".")


def chosen_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the files of a repository that make up its checkpoint, by name.

    Some repositories hold the same weights twice, for another program under another name.

    >>> chosen_names(["model.safetensors", "consolidated.safetensors", "config.json", "a/b.json"])
    ('config.json', 'model.safetensors')
    """
    taken = sorted(name for name in names if is_taken(name) and "/" not in name)
    weights = [name for name in taken if name.endswith(WEIGHTS)]
    usual = [name for name in weights if name.startswith("model")] or weights
    return tuple(name for name in taken if name in usual or not name.endswith(WEIGHTS))


def manifest_digest(files: Sequence[FileDigest]) -> str:
    """Return the one digest of several files: that of their list as `sha256sum` writes it.

    Order:  by name, in code points, as `LC_ALL=C sha256sum * | sha256sum` has it.
    """
    lines = (f"{file.sha256}  {file.name}\n" for file in sorted(files, key=lambda f: f.name))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def header_bytes(start: bytes, size_bytes: int) -> int:
    """Return how long the header of a safetensors file is, from its first eight bytes.

    Raises `SourceError` when the file is too short for it.
    """
    length = struct.unpack("<Q", start)[0] if len(start) == LENGTH_BYTES else 0
    if not 2 <= length <= min(HEADER_BYTES_MAX, size_bytes - LENGTH_BYTES):
        raise SourceError("read safetensors: it is damaged or no such file")
    return int(length)


def read_weights(header: bytes, size_bytes: int) -> Weights:
    """Return what a safetensors file of `size_bytes` holds, by its header.

    Raises `SourceError` for a header that is none, and for a file that is cut off.
    """
    end = 0
    elements: dict[str, int] = {}
    for name, tensor in _object(header, "a safetensors header").items():
        if name == "__metadata__":
            continue
        dtype, count, last = _tensor(name, tensor)
        elements[dtype] = elements.get(dtype, 0) + count
        end = max(end, last)
    whole = LENGTH_BYTES + len(header) + end
    if whole != size_bytes:
        raise SourceError(
            f"read safetensors: the file has {size_bytes} bytes, its header speaks of {whole}",
            hint="it is cut off or damaged; copy it again",
        )
    return Weights(elements=elements, size_bytes=size_bytes)


def read_index(index: bytes) -> tuple[str, ...]:
    """Return the files that the list of a model in pieces names, by name.

    Raises `SourceError` for a list that is none, and for a name that is no plain file's.
    """
    named = _object(index, "the list of pieces").get("weight_map")
    names = set(named.values()) if isinstance(named, dict) else set()
    if not names or not all(isinstance(n, str) and "/" not in n and is_taken(n) for n in names):
        raise SourceError("read the list of pieces: it does not name safetensors files")
    return tuple(sorted(names))


def joined(pieces: Sequence[Weights]) -> Weights:
    """Return the sum of several files."""
    elements: dict[str, int] = {}
    for piece in pieces:
        for dtype, count in piece.elements.items():
            elements[dtype] = elements.get(dtype, 0) + count
    return Weights(elements=elements, size_bytes=sum(piece.size_bytes for piece in pieces))


def architecture_of_config(config: bytes, parameters: int = 0) -> Architecture:
    """Return the figures of `config.json`; of a model with several parts, those of its text part.

    Raises `SourceError` when it states no shape of a text generator.
    """
    whole = _object(config, CONFIG)
    inner = whole.get("text_config")
    text: dict[str, Any] = {**whole, **inner} if isinstance(inner, dict) else whole
    heads = _integer(text, "num_attention_heads")
    embedding = _integer(text, "hidden_size")
    found = Architecture(
        family=str(whole.get("model_type", "")),
        parameters=parameters,
        layers=_integer(text, "num_hidden_layers"),
        kv_heads=_integer(text, "num_key_value_heads") or heads,
        head_dim=_integer(text, "head_dim") or (embedding // heads if heads else 0),
        embedding=embedding,
        feed_forward=_integer(text, "intermediate_size") or 4 * embedding,
        vocabulary=_integer(text, "vocab_size"),
        context_max_tokens=_integer(text, "max_position_embeddings"),
    )
    sizes = (found.layers, found.kv_heads, found.head_dim, found.vocabulary)
    if not all((*sizes, found.context_max_tokens)):
        raise SourceError(
            f"read {CONFIG}: it states no layers, heads, vocabulary and context",
            hint="a text generator in the form of the model hub is wanted",
        )
    return found


def class_of_config(config: bytes) -> str:
    """Return the name of the model's class, or of its family.

    >>> class_of_config(b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    'LlamaForCausalLM'
    """
    found = _object(config, CONFIG)
    classes = found.get("architectures")
    first = classes[0] if isinstance(classes, list) and classes else found.get("model_type", "")
    return str(first)[:80]


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as cause:
        raise SourceError(f"read {what}: it is no JSON") from cause
    if not isinstance(found, dict):
        raise SourceError(f"read {what}: it is no JSON object")
    return found


def _integer(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53
    return value if is_count and isinstance(value, int) else 0


def _tensor(name: str, tensor: object) -> tuple[str, int, int]:
    """Return type, elements and end of one tensor."""
    found = tensor if isinstance(tensor, dict) else {}
    dtype, shape, span = found.get("dtype"), found.get("shape"), found.get("data_offsets")
    if not isinstance(dtype, str) or not _are_counts(shape) or not _are_counts(span, 2):
        raise SourceError(f"read safetensors: tensor {name[:80]!r} is not described")
    count, (first, last) = math.prod(shape), span
    # Of a type this reader does not know, the size is not checked.
    wanted_bytes = count * _DTYPE_BYTES[dtype] if dtype in _DTYPE_BYTES else last - first
    if last - first != wanted_bytes:
        raise SourceError(f"read safetensors: tensor {name[:80]!r} has another size than its shape")
    return dtype, count, last


def _are_counts(values: object, length: int | None = None) -> TypeGuard[list[int]]:
    # Bounded, because the product of what a stranger wrote is taken.
    return (
        isinstance(values, list)
        and len(values) <= _DIMENSIONS_MAX
        and all(type(value) is int and 0 <= value < 1 << 63 for value in values)
        and length in (None, len(values))
    )

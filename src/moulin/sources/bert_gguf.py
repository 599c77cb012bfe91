"""Writes a BERT encoder as a GGUF file in half precision, the form llama.cpp reads.

Written here and not by a library because the digest of the result is pinned: another version of a
writer could order or pad otherwise. Matrices become f16 (rounded to nearest even), vectors and
position tables stay f32; the pooler is left out, since llama.cpp pools by itself.

Source: GGUF specification version 3; llama.cpp's conversion of `BertModel`.
"""

import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moulin.domain.errors import SourceError

ALIGNMENT: Final = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_F32, _F16 = 0, 1
_NORMAL_TOKEN: Final = 1
_MEAN_POOLING: Final = 1
_FILE_TYPE_F16: Final = 1

_TABLES: Final = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
}
_LAYER: Final = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_KEPT_WHOLE: Final = frozenset({"position_embd.weight", "token_types.weight"})


def write_bert_gguf(files: Mapping[str, bytes], target: Path) -> None:
    """Write `config.json`, `vocab.txt` and `model.safetensors` as one GGUF file.

    Raises `SourceError` when they are not those of a BERT encoder.
    """
    try:
        config = json.loads(files["config.json"])
        words = files["vocab.txt"].decode("utf-8").split("\n")
        tensors = read_safetensors(files["model.safetensors"])
        header = _header(config, words[:-1] if not words[-1] else words)
        named = [(name, _stored(name, tensors[old])) for old, name in _names(config)]
    except (KeyError, ValueError, struct.error) as cause:
        raise SourceError(f"convert a BERT encoder: {cause!r}") from cause
    with target.open("wb") as file:
        file.write(_head(header, named))
        for _, tensor in named:
            file.write(bytes(-file.tell() % ALIGNMENT))
            file.write(tensor.tobytes())
        file.write(bytes(-file.tell() % ALIGNMENT))
        file.flush()
        os.fsync(file.fileno())


def read_safetensors(data: bytes) -> dict[str, NDArray[Any]]:
    """Return the f32 tensors of a safetensors file by name, as views of its bytes.

    Raises ValueError or `struct.error` for what is none.
    """
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    found: dict[str, NDArray[Any]] = {}
    for name, about in header.items():
        if name != "__metadata__" and about["dtype"] == "F32":
            start, end = about["data_offsets"]
            raw = np.frombuffer(data, "<f4", (end - start) // 4, 8 + length + start)
            found[name] = raw.reshape(about["shape"])
    return found


def _names(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    layers = [
        (f"encoder.layer.{layer}.{old}.{kind}", f"blk.{layer}.{new}.{kind}")
        for layer in range(config["num_hidden_layers"])
        for old, new in _LAYER.items()
        for kind in ("weight", "bias")
    ]
    return [*_TABLES.items(), *layers]


def _stored(name: str, tensor: NDArray[Any]) -> NDArray[Any]:
    is_halved = tensor.ndim == 2 and name not in _KEPT_WHOLE
    return tensor.astype("<f2" if is_halved else "<f4")


def _header(config: Mapping[str, Any], words: Sequence[str]) -> list[tuple[str, int, Any]]:
    ids = {word: index for index, word in enumerate(words)}
    return [
        ("general.architecture", _STRING, "bert"),
        ("general.file_type", _UINT32, _FILE_TYPE_F16),
        ("bert.block_count", _UINT32, config["num_hidden_layers"]),
        ("bert.context_length", _UINT32, config["max_position_embeddings"]),
        ("bert.embedding_length", _UINT32, config["hidden_size"]),
        ("bert.feed_forward_length", _UINT32, config["intermediate_size"]),
        ("bert.attention.head_count", _UINT32, config["num_attention_heads"]),
        ("bert.attention.layer_norm_epsilon", _FLOAT32, config["layer_norm_eps"]),
        ("bert.attention.causal", _BOOL, False),
        ("bert.pooling_type", _UINT32, _MEAN_POOLING),
        ("tokenizer.ggml.model", _STRING, "bert"),
        ("tokenizer.ggml.pre", _STRING, "default"),
        ("tokenizer.ggml.token_type_count", _UINT32, config["type_vocab_size"]),
        ("tokenizer.ggml.tokens", _STRING, [_token(word) for word in words]),
        ("tokenizer.ggml.token_type", _INT32, [_NORMAL_TOKEN] * len(words)),
        ("tokenizer.ggml.unknown_token_id", _UINT32, ids["[UNK]"]),
        ("tokenizer.ggml.seperator_token_id", _UINT32, ids["[SEP]"]),
        ("tokenizer.ggml.padding_token_id", _UINT32, ids["[PAD]"]),
        ("tokenizer.ggml.cls_token_id", _UINT32, ids["[CLS]"]),
        ("tokenizer.ggml.mask_token_id", _UINT32, ids["[MASK]"]),
    ]


def _token(word: str) -> str:
    """Return a word piece as llama.cpp spells it: beginnings of words are marked, not their rest."""
    if word.startswith("[") and word.endswith("]"):
        return word
    return word[2:] if word.startswith("##") else f"\u2581{word}"


def _head(
    header: Sequence[tuple[str, int, Any]], tensors: Sequence[tuple[str, NDArray[Any]]]
) -> bytes:
    parts = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(header))]
    for key, kind, value in header:
        parts += [_text(key), _value(kind, value)]
    offset = 0
    for name, tensor in tensors:
        lengths = tensor.shape[::-1]
        parts += [_text(name), struct.pack(f"<I{len(lengths)}Q", len(lengths), *lengths)]
        parts.append(struct.pack("<IQ", _F16 if tensor.dtype.itemsize == 2 else _F32, offset))
        offset += tensor.nbytes + -tensor.nbytes % ALIGNMENT
    head = b"".join(parts)
    return head + bytes(-len(head) % ALIGNMENT)


def _value(kind: int, value: Any) -> bytes:
    if isinstance(value, list):
        items = b"".join(_scalar(kind, item) for item in value)
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + items
    return struct.pack("<I", kind) + _scalar(kind, value)


def _scalar(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return _text(value)
    return struct.pack({_UINT32: "<I", _INT32: "<i", _FLOAT32: "<f", _BOOL: "<?"}[kind], value)


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return struct.pack("<Q", len(data)) + data

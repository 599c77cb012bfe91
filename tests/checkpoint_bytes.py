"""Small, valid checkpoints in the form of the model hub: real headers, weights of zeros."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

CONFIG: dict[str, object] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 256,
    "vocab_size": 300,
    "max_position_embeddings": 128,
}
TENSORS = {"embed": ("BF16", [300, 64]), "norm": ("F32", [64])}
WIDTH = {"BF16": 2, "F32": 4}


def safetensors(tensors: Mapping[str, tuple[str, list[int]]] | None = None) -> bytes:
    """Return a whole file with tensors of zeros."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in (TENSORS if tensors is None else tensors).items():
        size = WIDTH[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return framed(json.dumps(header).encode()) + bytes(end)


def framed(header: bytes) -> bytes:
    """Return a header with its length before it."""
    return struct.pack("<Q", len(header)) + header


def write_checkpoint(folder: Path) -> Path:
    """Make a folder with a checkpoint, and with files that do not belong to it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors())
    (folder / "modeling_own.py").write_text("raise SystemExit('run')")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    return folder

"""Small, valid GGUF files made in memory: a header as real models have it, weights of zeros."""

import struct

STRING, ARRAY, UINT32 = 8, 9, 4
F32, Q4_K = 0, 12


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key: str, value: "Value") -> bytes:
    if isinstance(value, int):
        return text(key) + struct.pack("<II", UINT32, value)
    if isinstance(value, str):
        return text(key) + struct.pack("<I", STRING) + text(value)
    head = struct.pack("<IIQ", ARRAY, STRING, len(value))
    return text(key) + head + b"".join(text(item) for item in value)


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    dimensions = struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


Value = int | str | list[str]

TINY: dict[str, Value] = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "general.license": "apache-2.0",
    "general.file_type": 15,
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 256,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
}
TINY_TENSORS = (("token_embd.weight", (64, 3), F32), ("blk.0.ffn_down.weight", (256, 2), Q4_K))
TINY_BYTES = {"token_embd.weight": 64 * 3 * 4, "blk.0.ffn_down.weight": 2 * 144}


def gguf(values: dict[str, Value] | None = None, version: int = 3, padding: int = 0) -> bytes:
    """Return a whole file; `padding` adds weights that no tensor names."""
    values = TINY if values is None else values
    head = b"GGUF" + struct.pack("<IQQ", version, len(TINY_TENSORS), len(values))
    head += b"".join(entry(key, value) for key, value in values.items())
    offset = 0
    for name, shape, kind in TINY_TENSORS:
        head += tensor(name, shape, kind, offset)
        offset += -(-TINY_BYTES[name] // 32) * 32
    start = -(-len(head) // 32) * 32
    return head.ljust(start, b"\0") + bytes(offset + padding)

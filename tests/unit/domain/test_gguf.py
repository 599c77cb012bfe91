"""The GGUF header reader: figures of a real shape, and every way a file can be damaged."""

import struct

import pytest

from moulin.domain.errors import SourceError
from moulin.domain.gguf import check_whole, read_header
from moulin.domain.model import architecture_of, repacked_bytes
from tests.gguf_bytes import TINY, gguf


def test_figures_of_a_model_come_from_its_header() -> None:
    architecture = architecture_of(read_header(gguf()))
    assert architecture.family == "llama"
    assert (architecture.layers, architecture.kv_heads, architecture.head_dim) == (2, 2, 16)
    assert (architecture.embedding, architecture.feed_forward) == (64, 256)
    assert (architecture.vocabulary, architecture.context_max_tokens) == (3, 128)
    assert architecture.parameters == 64 * 3 + 256 * 2


def test_stated_key_length_wins_over_the_quotient() -> None:
    header = read_header(gguf(TINY | {"llama.attention.key_length": 32}))
    assert architecture_of(header).head_dim == 32


def test_one_key_head_per_head_when_not_stated() -> None:
    values = {k: v for k, v in TINY.items() if not k.endswith("head_count_kv")}
    assert architecture_of(read_header(gguf(values))).kv_heads == 4


def test_only_tensors_of_repacked_types_count_twice() -> None:
    assert repacked_bytes(read_header(gguf())) == 2 * 144


def test_a_whole_file_ends_where_its_last_tensor_does() -> None:
    data = gguf()
    header = read_header(data)
    assert header.end <= len(data) < header.end + 32
    check_whole(header, header.end)
    with pytest.raises(SourceError, match=f"{header.end - 1} bytes of at least {header.end}"):
        check_whole(header, header.end - 1)


def test_header_alone_is_enough_to_read_it() -> None:
    data = gguf()
    start = read_header(data).data_start
    assert read_header(data[:start]).tensors == read_header(data).tensors


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "does not begin with GGUF"),
        (b"PK\x03\x04" + bytes(100), "does not begin with GGUF"),
        (b"GGUF", "end in the middle"),
        (gguf(version=1), "version 1"),
        (gguf()[:60], "end in the middle"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1 << 60), "metadata values"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "bytes in one text"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 99), "type 99"),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 60),
            "array elements",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 1),
            "array of type 9",
        ),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<I", 9), "9 dimensions"),
        (gguf(TINY | {"general.alignment": 0}), "alignment"),
    ],
)
def test_damage_is_named(data: bytes, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        read_header(data)


def test_a_tensor_of_an_unknown_type_has_no_checked_end() -> None:
    data = gguf()
    at = data.index(b"blk.0.ffn_down.weight") + len("blk.0.ffn_down.weight") + 4 + 16
    changed = data[:at] + struct.pack("<I", 250) + data[at + 4 :]
    assert read_header(changed).tensors[1].size_bytes == 0

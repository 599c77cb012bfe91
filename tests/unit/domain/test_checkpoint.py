"""Checkpoints: figures of a configuration, headers of weights, and what is refused."""

import hashlib
import json

import pytest

from moulin.domain.checkpoint import (
    FileDigest,
    architecture_of_config,
    class_of_config,
    header_bytes,
    joined,
    manifest_digest,
    read_index,
    read_weights,
)
from moulin.domain.errors import SourceError
from tests.checkpoint_bytes import CONFIG, framed, safetensors


def config(**fields: object) -> bytes:
    return json.dumps({**CONFIG, **fields}).encode()


def read(data: bytes):
    length = header_bytes(data[:8], len(data))
    return read_weights(data[8 : 8 + length], len(data))


def test_the_figures_of_a_configuration() -> None:
    found = architecture_of_config(config(), 7)
    assert (found.family, found.parameters, found.layers) == ("llama", 7, 2)
    assert (found.kv_heads, found.head_dim, found.embedding) == (2, 16, 64)
    assert (found.feed_forward, found.vocabulary, found.context_max_tokens) == (256, 300, 128)


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"num_key_value_heads": None}, "kv_heads", 4),
        ({"head_dim": 32}, "head_dim", 32),
        ({"intermediate_size": None}, "feed_forward", 256),
        # The part of a model with eyes that writes text.
        ({"text_config": {"num_hidden_layers": 9}}, "layers", 9),
    ],
)
def test_what_a_configuration_leaves_out_or_nests(fields, name, value) -> None:
    assert getattr(architecture_of_config(config(**fields)), name) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[1]",
        b"\xff",
        config(num_hidden_layers=None),
        config(vocab_size=True),
        config(max_position_embeddings=-4),
        config(num_attention_heads=0, num_key_value_heads=0),
        b'{"a":' + b"[" * 100_000,
    ],
)
def test_what_is_no_text_generator_is_refused(data) -> None:
    with pytest.raises(SourceError, match=r"read config\.json"):
        architecture_of_config(data)


def test_a_model_is_called_by_its_class_else_its_family() -> None:
    assert class_of_config(config()) == "LlamaForCausalLM"
    assert class_of_config(config(architectures=[])) == "llama"


def test_the_elements_of_weights_by_type() -> None:
    data = safetensors()
    found = read(data)
    assert found.elements == {"BF16": 300 * 64, "F32": 64}
    assert (found.parameters, found.precision) == (300 * 64 + 64, "BF16")
    both = joined([found, read(safetensors({"more": ("F32", [3, 2])}))])
    assert both.elements == {"BF16": 19_200, "F32": 70}
    assert both.size_bytes > len(data)


@pytest.mark.parametrize("data", [b"", b"\x05\x00\x00", b"\xff" * 8 + b"{}", safetensors()[:40]])
def test_what_is_no_safetensors_file_is_refused(data) -> None:
    with pytest.raises(SourceError, match="read safetensors"):
        read(data)


def described(**fields: object) -> bytes:
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **fields}
    return framed(json.dumps({"it": tensor}).encode()) + bytes(8)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (safetensors()[:-1], "its header speaks of"),
        (safetensors() + b"0", "its header speaks of"),
        (framed(b"[]"), "no JSON object"),
        (framed(b"{{"), "no JSON"),
        (framed(b'{"it": 3}'), "not described"),
        (described(shape=[3]), "another size"),
        (described(shape=[2.0]), "not described"),
        (described(shape=[-2]), "not described"),
        (described(shape=[2] * 17), "not described"),
        (described(shape=[1 << 63]), "not described"),
        (described(dtype=4), "not described"),
        (described(data_offsets=[8]), "not described"),
        (described(data_offsets=[8, 0]), "another size"),
    ],
)
def test_damaged_weights_are_refused(data, words) -> None:
    with pytest.raises(SourceError, match=words):
        read(data)


def test_a_type_that_is_not_known_is_counted_and_not_measured() -> None:
    assert read(described(dtype="F4_SOON")).elements == {"F4_SOON": 2}


def test_the_digest_is_that_of_sha256sums_list_by_name() -> None:
    files = [
        FileDigest(name="b.json", size_bytes=1, sha256="22"),
        FileDigest(name="A.json", size_bytes=1, sha256="11"),
    ]
    wanted = hashlib.sha256(b"11  A.json\n22  b.json\n").hexdigest()
    assert manifest_digest(files) == manifest_digest(files[::-1]) == wanted


def test_the_pieces_of_a_model_are_named_once() -> None:
    index = {"weight_map": {"a": "two.safetensors", "b": "one.safetensors", "c": "two.safetensors"}}
    assert read_index(json.dumps(index).encode()) == ("one.safetensors", "two.safetensors")


@pytest.mark.parametrize(
    "found", [{}, {"weight_map": {}}, {"weight_map": {"a": "../x.safetensors"}}, {"weight_map": 1}]
)
def test_a_list_that_names_no_pieces_is_refused(found) -> None:
    with pytest.raises(SourceError, match="list of pieces"):
        read_index(json.dumps(found).encode())

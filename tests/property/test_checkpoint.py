"""Checkpoints of strangers: whatever the bytes are, they are read or refused, and nothing else."""

import contextlib
import json

from hypothesis import given
from hypothesis import strategies as st

from moulin.domain.checkpoint import (
    LENGTH_BYTES,
    architecture_of_config,
    header_bytes,
    read_index,
    read_weights,
)
from moulin.domain.errors import SourceError
from tests.checkpoint_bytes import CONFIG, framed

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
TENSORS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F4"]) | VALUES,
        "shape": VALUES,
        "data_offsets": VALUES,
    }
)


def refused_or_read(read, data: bytes) -> None:
    with contextlib.suppress(SourceError):
        read(data)


def read_file(data: bytes) -> None:
    length = header_bytes(data[:LENGTH_BYTES], len(data))
    found = read_weights(data[LENGTH_BYTES : LENGTH_BYTES + length], len(data))
    assert found.size_bytes == len(data)
    assert all(count >= 0 for count in found.elements.values())


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (read_file, architecture_of_config, read_index):
        refused_or_read(read, data)


@given(st.dictionaries(st.text(max_size=5), TENSORS | VALUES, max_size=3), st.binary(max_size=40))
def test_any_header_is_read_or_refused(header, weights: bytes) -> None:
    refused_or_read(read_file, framed(json.dumps(header).encode()) + weights)


@given(st.dictionaries(st.sampled_from(sorted(CONFIG)), VALUES))
def test_any_configuration_is_read_or_refused(changes) -> None:
    refused_or_read(architecture_of_config, json.dumps({**CONFIG, **changes}).encode())

"""No bytes, however damaged, get more than a `SourceError` out of the header reader."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from moulin.domain.errors import SourceError
from moulin.domain.gguf import read_header
from moulin.domain.model import architecture_of, serving_memory
from tests.gguf_bytes import gguf

WHOLE = gguf()
HEADER_BYTES = read_header(WHOLE).data_start


@given(st.integers(0, HEADER_BYTES - 40))
def test_every_cut_header_is_refused(length: int) -> None:
    try:
        read_header(WHOLE[:length])
    except SourceError:
        return
    raise AssertionError(f"a header cut at {length} was accepted")


@given(st.lists(st.tuples(st.integers(4, HEADER_BYTES - 1), st.integers(0, 255)), min_size=1))
def test_flipped_bytes_are_read_or_refused(flips: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for at, value in flips:
        data[at] = value
    with contextlib.suppress(SourceError):
        architecture_of(read_header(bytes(data)))


@given(st.binary(max_size=300))
def test_noise_after_the_magic_is_read_or_refused(noise: bytes) -> None:
    with contextlib.suppress(SourceError):
        read_header(b"GGUF\x03\0\0\0" + noise)


@given(st.integers(1, 128), st.integers(1, 128), st.integers(1, 64), st.integers(1, 64))
def test_more_context_or_more_requests_never_need_less(
    context: int, more_context: int, parallel: int, more_parallel: int
) -> None:
    architecture = architecture_of(read_header(WHOLE))
    small, large = (
        serving_memory(architecture, 1000, context_tokens=c, parallel=p).total_bytes
        for c, p in sorted(
            [(context, parallel), (context + more_context, parallel + more_parallel)]
        )
    )
    assert small < large

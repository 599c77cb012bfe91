"""Reads the header of a GGUF model file from bytes handed in: figures, names and tensor extents.

It decides whether the file is whole and what memory its shape asks for. It never touches a disk
and never believes a length: every read is checked against the bytes there are, so that a file
from a stranger can be looked at safely.

Reference: the GGUF specification, versions 2 and 3 (little endian).
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from moulin.domain.errors import SourceError

MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_COUNT_MAX: Final = 1 << 20
_STRING_BYTES_MAX: Final = 1 << 24
_DIMENSIONS_MAX: Final = 4
_ALIGNMENT_MAX: Final = 1 << 20

# Value types of the metadata section; 8 is a string, 9 an array.
_SCALARS: Final = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING: Final = 8
_ARRAY: Final = 9

# Tensor type: (elements per block, bytes per block), from ggml's type table.
_BLOCKS: Final = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 36),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
}

Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor; `offset` and `size_bytes` count within the data section.

    `size_bytes` is 0 for a type this reader does not know, so its end is then not checked.
    """

    name: str
    shape: tuple[int, ...]
    type_number: int
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """All of a GGUF file but its weights; `data_start` is where the weights begin.

    `scalars` holds single metadata values by key, `array_lengths` how long the arrays are (their
    elements, mostly the vocabulary, are skipped).
    """

    scalars: Mapping[str, Scalar]
    array_lengths: Mapping[str, int]
    tensors: tuple[Tensor, ...]
    data_start: int

    @property
    def end(self) -> int:
        """Return the least size in bytes that a whole file with this header has."""
        ends = [self.data_start + t.offset + t.size_bytes for t in self.tensors]
        return max(ends, default=self.data_start)

    def integer(self, key: str, default: int = 0) -> int:
        """Return a whole number of the metadata, or `default` where there is none."""
        value = self.scalars.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    def text(self, key: str) -> str:
        """Return a text of the metadata, or the empty text."""
        value = self.scalars.get(key)
        return value if isinstance(value, str) else ""


def read_header(data: "bytes | memoryview") -> Header:
    """Read a header from the start of a file; `data` may be the whole file, mapped.

    Cost: O(metadata); the weights are not read.
    Raises `SourceError` when the bytes are no GGUF, another version, or end too soon.
    """
    cursor = _Cursor(memoryview(data))
    if bytes(cursor.data[:4]) != MAGIC:
        raise SourceError(
            "read a model file: it does not begin with GGUF",
            hint="give a GGUF file; other formats have to be converted first",
        )
    cursor.at = 4
    version = cursor.whole("<I")
    if version not in _VERSIONS:
        raise SourceError(f"read a model file: GGUF version {version} is not one of {_VERSIONS}")
    tensor_count = cursor.count("tensors")
    value_count = cursor.count("metadata values")
    scalars, array_lengths = _metadata(cursor, value_count)
    tensors = tuple(_tensor(cursor) for _ in range(tensor_count))
    alignment = scalars.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= _ALIGNMENT_MAX:
        raise _damaged(f"an alignment of {alignment!r}")
    return Header(
        scalars=scalars,
        array_lengths=array_lengths,
        tensors=tensors,
        data_start=-(-cursor.at // alignment) * alignment,
    )


def check_whole(header: Header, size_bytes: int) -> None:
    """Check that a file of `size_bytes` holds every tensor its header promises.

    Raises `SourceError` with both numbers when it is too short.
    """
    if header.end > size_bytes:
        raise SourceError(
            f"read a model file: it is cut off, {size_bytes} bytes of at least {header.end}",
            hint="fetch the file again",
            details={"size_bytes": size_bytes, "size_bytes_min": header.end},
        )


class _Cursor:
    """A position in bytes that may not be believed."""

    __slots__ = ("at", "data")

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    def scalar(self, form: str) -> int | float | bool:
        try:
            (value,) = struct.unpack_from(form, self.data, self.at)
        except struct.error as cause:
            raise _damaged("an end in the middle of its header") from cause
        self.at += struct.calcsize(form)
        if not isinstance(value, int | float | bool):
            raise _damaged("a value that is no number")
        return value

    def whole(self, form: str) -> int:
        return int(self.scalar(form))

    def count(self, what: str, maximum: int = _COUNT_MAX) -> int:
        value = self.whole("<Q")
        if value > maximum:
            raise _damaged(f"{value} {what}")
        return value

    def skip(self, size_bytes: int) -> None:
        if size_bytes > len(self.data) - self.at:
            raise _damaged("an end in the middle of its header")
        self.at += size_bytes

    def text(self) -> str:
        length = self.count("bytes in one text", _STRING_BYTES_MAX)
        start = self.at
        self.skip(length)
        return bytes(self.data[start : self.at]).decode("utf-8", errors="replace")


def _metadata(cursor: _Cursor, count: int) -> tuple[dict[str, Scalar], dict[str, int]]:
    scalars: dict[str, Scalar] = {}
    array_lengths: dict[str, int] = {}
    for _ in range(count):
        key = cursor.text()
        kind = cursor.whole("<I")
        if kind == _STRING:
            scalars[key] = cursor.text()
        elif kind == _ARRAY:
            array_lengths[key] = _skip_array(cursor)
        elif kind in _SCALARS:
            scalars[key] = cursor.scalar(_SCALARS[kind])
        else:
            raise _damaged(f"a metadata value of type {kind}")
    return scalars, array_lengths


def _skip_array(cursor: _Cursor) -> int:
    kind = cursor.whole("<I")
    if kind == _STRING:
        length = cursor.count("array elements", 1 << 24)
        for _ in range(length):
            cursor.skip(cursor.whole("<Q"))
        return length
    if kind not in _SCALARS:
        raise _damaged(f"an array of type {kind}")
    length = cursor.count("array elements", 1 << 32)
    cursor.skip(length * struct.calcsize(_SCALARS[kind]))
    return length


def _tensor(cursor: _Cursor) -> Tensor:
    name = cursor.text()
    dimensions = cursor.whole("<I")
    if not 0 < dimensions <= _DIMENSIONS_MAX:
        raise _damaged(f"a tensor of {dimensions} dimensions")
    shape = tuple(cursor.whole("<Q") for _ in range(dimensions))
    type_number = cursor.whole("<I")
    offset = cursor.whole("<Q")
    elements = 1
    for length in shape:
        elements *= length
    block, block_bytes = _BLOCKS.get(type_number, (1, 0))
    return Tensor(
        name=name,
        shape=shape,
        type_number=type_number,
        offset=offset,
        size_bytes=elements // block * block_bytes,
    )


def _damaged(found: str) -> SourceError:
    return SourceError(
        f"read a model file: its header is damaged ({found})", hint="fetch the file again"
    )

"""Reads a multipart/form-data body that is in memory as a whole: the form audio is sent in.

It is strict where laxness would let two readers see two different forms: one boundary, taken from
the body's first line, CRLF alone, no nested or encoded parts. Nothing is copied but names and
small values; what is refused is named, never quoted.

Source: RFC 7578 and RFC 2046, section 5.1.1.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from moulin.domain.errors import InvalidRequest

PARTS_MAX: Final = 64
HEAD_BYTES_MAX: Final = 4096
FIELD_BYTES_MAX: Final = 64 * 1024
_BOUNDARY: Final = re.compile(rb"--([0-9A-Za-z'()+_,\-./:=?]{1,70})\r\n")
_DISPOSITION: Final = re.compile(
    rb'form-data((?:; *[a-z*]+=(?:"(?:[^"\\\r\n]|\\.)*"|[^;"\r\n]*))*)', re.IGNORECASE
)
_PARAMETER: Final = re.compile(
    rb'; *([a-z*]+)=(?:"((?:[^"\\\r\n]|\\.)*)"|([^;"\r\n]*))', re.IGNORECASE
)


class Part(NamedTuple):
    """One part; `file_name` is None for a plain field."""

    name: str
    file_name: str | None
    data: memoryview


class Form(NamedTuple):
    """A form's fields in order and its files; `boundary` is how its sender divided it."""

    boundary: str
    fields: tuple[tuple[str, str], ...]
    files: tuple[Part, ...]

    def values(self, name: str) -> tuple[str, ...]:
        """Return all values of a field, in order."""
        return tuple(value for found, value in self.fields if found == name)


def read_form(body: bytes) -> Form:
    """Read a whole body.

    Raises `InvalidRequest` for anything that is not a well-formed form within bounds.

    Cost: O(body), one pass of `bytes.find` for each part.
    """
    fields: list[tuple[str, str]] = []
    files: list[Part] = []
    match = _BOUNDARY.match(body)
    if match is None:
        raise _bad("it does not begin with a boundary")
    for part in _parts(body, match.group(1), match.end()):
        if part.file_name is None:
            if len(part.data) > FIELD_BYTES_MAX:
                raise _bad(f"a field has more than {FIELD_BYTES_MAX} bytes")
            try:
                fields.append((part.name, str(part.data, "utf-8")))
            except UnicodeDecodeError:
                raise _bad("a field is not UTF-8") from None
        else:
            files.append(part)
    return Form(match.group(1).decode("ascii"), tuple(fields), tuple(files))


def _parts(body: bytes, boundary: bytes, start: int) -> Iterator[Part]:
    view = memoryview(body)
    delimiter = b"\r\n--" + boundary
    for _ in range(PARTS_MAX):
        # A part without any header is not a form's; with one, its head ends at an empty line.
        head_end = body.find(b"\r\n\r\n", start, start + HEAD_BYTES_MAX)
        if head_end < 0:
            raise _bad("a part has no head, or one that is too long")
        end = body.find(delimiter, head_end + 2)
        if end < 0 or end < head_end + 2:
            raise _bad("its last boundary is missing")
        yield _part(body[start:head_end], view[min(head_end + 4, end) : end])
        start = end + len(delimiter)
        if body[start : start + 2] == b"--":
            if body[start + 2 :].strip(b"\r\n"):
                raise _bad("something follows its last boundary")
            return
        if body[start : start + 2] != b"\r\n":
            raise _bad("a boundary is followed by something else")
        start += 2
    raise _bad(f"it has more than {PARTS_MAX} parts")


def _part(head: bytes, data: memoryview) -> Part:
    name: str | None = None
    file_name: str | None = None
    for line in head.split(b"\r\n"):
        field, colon, value = line.partition(b":")
        if not colon or b"\n" in line or b"\r" in line:
            raise _bad("a part's head is malformed")
        field = field.strip().lower()
        if field == b"content-disposition":
            if name is not None:
                raise _bad("a part has two dispositions")
            name, file_name = _names(value.strip())
        elif field == b"content-transfer-encoding" and value.strip().lower() not in {
            b"binary",
            b"8bit",
            b"7bit",
        }:
            raise _bad("a part is transfer-encoded")
    if not name:
        raise _bad("a part has no name")
    return Part(name, file_name, data)


def _names(value: bytes) -> tuple[str, str | None]:
    match = _DISPOSITION.fullmatch(value)
    if match is None:
        raise _bad("a part's disposition is malformed")
    found: dict[bytes, str] = {}
    for key, quoted, plain in _PARAMETER.findall(match.group(1)):
        if key.lower() in found:
            raise _bad("a part has two names")
        found[key.lower()] = (quoted or plain).decode("utf-8", "replace")
    file_name = found.get(b"filename", found.get(b"filename*"))
    return found.get(b"name", ""), file_name


def _bad(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"read the body as multipart/form-data: {what}", hint="send the file as the field `file`"
    )

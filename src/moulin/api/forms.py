"""Uploads as forms (RFC 7578), taken piece by piece: small fields into memory, the file to its writer.

It bounds everything and holds at most one piece of a file. It never looks at what a file says.
"""

from collections.abc import Callable
from typing import Any, Final

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from moulin.domain.errors import InvalidRequest

FIELD_BYTES_MAX: Final = 4096
FIELDS_MAX: Final = 32
FILE: Final = "file"


class Form:
    """A form being read. `fields` are its texts; `file_name` is set once its file has begun."""

    def __init__(self, content_type: str, take: Callable[[bytes], None]) -> None:
        kind, options = parse_options_header(content_type.encode("latin-1"))
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 0 < len(boundary) <= 200:
            raise InvalidRequest(
                "read the upload: it is no form",
                hint="send multipart/form-data with the fields file and purpose",
            )
        self.fields: dict[str, str] = {}
        self.file_name: str | None = None
        self.is_done = False
        self._take = take
        self._header = [b"", b""]
        self._headers: dict[bytes, bytes] = {}
        self._field: str | None = None
        self._parts = 0
        self._value = b""
        callbacks: Any = {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._add(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._name,
            "on_part_data": lambda data, start, end: self._data(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }
        self._parser = MultipartParser(boundary, callbacks)

    def feed(self, data: bytes) -> None:
        """Read on. Raises `InvalidRequest`, and whatever `take` raises."""
        try:
            self._parser.write(data)
        except MultipartParseError:
            raise InvalidRequest("read the upload: the form is not well-formed") from None

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > FIELDS_MAX:
            raise InvalidRequest(f"read the upload: it has more than {FIELDS_MAX} fields")
        self._headers, self._header, self._value, self._field = {}, [b"", b""], b"", None

    def _add(self, place: int, data: bytes) -> None:
        self._header[place] += data

    def _end_header(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = [b"", b""]

    def _name(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode(errors="replace")
        if name != FILE:
            self._field = name
        elif self.file_name is not None:
            raise InvalidRequest("read the upload: it has two files", hint="send one at a time")
        else:
            self.file_name = options.get(b"filename", b"").decode(errors="replace")

    def _data(self, data: bytes) -> None:
        if self._field is None:
            self._take(data)
            return
        self._value += data
        if len(self._value) > FIELD_BYTES_MAX:
            raise InvalidRequest(f"read the upload: field {self._field[:60]!r} is too long")

    def _end(self) -> None:
        if self._field is not None:
            self.fields[self._field] = self._value.decode(errors="replace")

    def _finish(self) -> None:
        self.is_done = True

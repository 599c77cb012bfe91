"""Forms that are read, and forms that two readers could read differently."""

import pytest

from moulin.domain.errors import InvalidRequest
from moulin.domain.multipart import FIELD_BYTES_MAX, PARTS_MAX, read_form


def field(name: str, value: bytes, *, more: bytes = b"") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"'.encode()
    return b"--b\r\n" + head + more + b"\r\n\r\n" + value + b"\r\n"


END = b"--b--\r\n"
FILE = field(
    "file", b"\x00\r\n--c\r\n\xff", more=b'; filename="a b.wav"\r\nContent-Type: audio/wav'
)


def test_fields_and_a_file_are_read() -> None:
    form = read_form(
        field("model", b"m") + FILE + field("x[]", "é".encode()) + field("x[]", b"") + END
    )
    assert form.boundary == "b"
    assert form.fields == (("model", "m"), ("x[]", "é"), ("x[]", ""))
    assert form.values("x[]") == ("é", "")
    assert [(f.name, f.file_name, bytes(f.data)) for f in form.files] == [
        ("file", "a b.wav", b"\x00\r\n--c\r\n\xff")
    ]


def test_a_file_is_not_copied() -> None:
    body = FILE + END
    assert read_form(body).files[0].data.obj is body


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "boundary"),
        (b"preamble\r\n" + FILE + END, "boundary"),
        (b"--" + b"b" * 71 + b"\r\n", "boundary"),
        (b'--b"x\r\n', "boundary"),
        (field("a", b"1"), "boundary is missing"),
        (FILE + b"--b\r\n\r\nx\r\n--b--", "no head"),
        (FILE + END + b"GET /", "follows"),
        (FILE + b"--bc\r\n" + END, "something else"),
        (b"--b\r\nX: 1\r\n\r\nv\r\n" + END, "no name"),
        (b"--b\r\nContent-Disposition: inline; name=a\r\n\r\nv\r\n" + END, "disposition"),
        (field("a", b"1", more=b'; name="b"') + END, "two names"),
        (field("a", b"1", more=b"\r\nContent-Disposition: form-data; name=b") + END, "two disp"),
        (field("a", b"1", more=b"\r\nContent-Transfer-Encoding: base64") + END, "encoded"),
        (field("a", b"1", more=b"\r\nno colon") + END, "malformed"),
        (field("a", b"1", more=b"\nX: 1") + END, "malformed"),
        (field("a", b"\xff") + END, "UTF-8"),
        (field("a", b"1" * (FIELD_BYTES_MAX + 1)) + END, "bytes"),
        (field("a", b"1") * (PARTS_MAX + 1) + END, "parts"),
        (b"--b\r\n" + b"X: " + b"1" * 5000 + b"\r\n\r\nv\r\n" + END, "too long"),
    ],
)
def test_what_is_ambiguous_or_too_large_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        read_form(body)

"""Lines of a batch: what is asked in one, what its answer becomes, and the files they make up.

Pure: it reads and writes lines as bytes. It decides which input is refused as a whole, what counts
as done, and the form of output and error files, which is OpenAI's. It never carries a line out.

Source: OpenAI API reference, "Batch", the request input and the output object.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from moulin.domain.objects import BATCH_LINES_MAX, BatchJob, LineError

CUSTOM_ID_CHARACTERS_MAX: Final = 512
LINE_BYTES_MAX: Final = 4 * 1024 * 1024
ERRORS_MAX: Final = 50
EXPIRED: Final = "batch_expired"
# An answer that says nothing of the line: it may be asked again.
RETRIED_STATUSES: Final = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One request: its place from 0, the caller's own name for it, and the body to send."""

    index: int
    custom_id: str
    body: bytes


class BadLine(Exception):
    """A line cannot be read: `error` says why."""

    def __init__(self, error: LineError) -> None:
        super().__init__(error.message)
        self.error = error


def line_id(batch: str, index: int) -> str:
    """Return the name under which a line is charged, however often it is carried out."""
    return f"{batch}.{index}"


def read_lines(batch: BatchJob, raw: Iterable[bytes]) -> Iterator[Line]:
    """Yield the requests of input lines; empty lines are left out and have no place.

    Raises `BadLine` for the first that is none.
    """
    index = 0
    for number, text in enumerate(raw, 1):
        if text.strip():
            yield _read_line(batch, index, number, text)
            index += 1


def check_lines(batch: BatchJob, raw: Iterable[bytes]) -> tuple[int, tuple[LineError, ...]]:
    """Return how many requests there are and what is wrong with them; nothing is right otherwise.

    Cost:   O(bytes); the custom ids are kept.
    """
    errors: list[LineError] = []
    seen: set[str] = set()
    count = 0
    for number, text in enumerate(raw, 1):
        if not text.strip():
            continue
        try:
            line = _read_line(batch, count, number, text)
            if line.custom_id in seen:
                raise _bad(number, "duplicate_custom_id", "its custom_id was there before")
            seen.add(line.custom_id)
        except BadLine as bad:
            errors.append(bad.error)
        count += 1
        if count > BATCH_LINES_MAX or len(errors) >= ERRORS_MAX:
            break
    if count > BATCH_LINES_MAX:
        said = f"it has more than {BATCH_LINES_MAX} lines"
        errors.append(LineError(line=0, code="too_many_lines", message=said))
    if not count:
        errors.append(LineError(line=0, code="empty_file", message="it has no line"))
    return count, tuple(errors)


def answered(line: Line, name: str, status: int, request: str, body: bytes) -> bytes:
    """Return the line of an output or error file for an answer."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        said = {}
    response = {"status_code": status, "request_id": request, "body": said}
    return _written(name, line.custom_id, response, None)


def not_answered(custom_id: str, name: str, code: str, message: str) -> bytes:
    """Return the line of an error file for a request that was not carried out."""
    return _written(name, custom_id, None, {"code": code, "message": message})


def _written(
    name: str, custom_id: str, response: Mapping[str, Any] | None, error: Mapping[str, str] | None
) -> bytes:
    found = {"id": name, "custom_id": custom_id, "response": response, "error": error}
    return orjson.dumps(found) + b"\n"


def _read_line(batch: BatchJob, index: int, number: int, text: bytes) -> Line:
    if len(text) > LINE_BYTES_MAX:
        raise _bad(number, "line_too_long", f"it has more than {LINE_BYTES_MAX} bytes")
    try:
        asked = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise _bad(number, "invalid_json_line", "it is not JSON") from None
    if not isinstance(asked, dict):
        raise _bad(number, "invalid_json_line", "it is not a JSON object")
    custom_id = asked.get("custom_id", str(index))
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= CUSTOM_ID_CHARACTERS_MAX:
        raise _bad(number, "invalid_custom_id", "custom_id must be a text that is not empty")
    if asked.get("method", "POST") != "POST":
        raise _bad(number, "invalid_method", "method must be POST")
    if asked.get("url", batch.endpoint) != batch.endpoint:
        raise _bad(number, "mismatched_endpoint", f"url must be {batch.endpoint}")
    body = asked.get("body")
    if not isinstance(body, dict):
        raise _bad(number, "invalid_body", "body must be an object")
    if body.get("stream"):
        raise _bad(number, "invalid_body", "an answer in a file is never a stream")
    if batch.model and "model" not in body:
        body["model"] = batch.model
    return Line(index=index, custom_id=custom_id, body=orjson.dumps(body))


def _bad(number: int, code: str, what: str) -> BadLine:
    return BadLine(LineError(line=number, code=code, message=f"line {number}: {what}"))

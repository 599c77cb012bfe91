"""Requests and answers of the control API as values: what to send, and how to read what came.

It never opens a connection: the shells do, with the rules that are here (what may be repeated, after
how long, which error an answer is).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, Generic, TypeVar

from moulin.domain.errors import InvalidSpec, MoulinError, Unavailable, error_by_code
from moulin.domain.wire import decode, encode_public
from moulin.sdk._tolerance import known_part

T = TypeVar("T")
Parameters = Mapping[str, str | int | bool | tuple[str, ...]]

PREFIX: Final = "/api/v1"
ATTEMPTS_MAX: Final = 6
# Together longer than a killed control process takes to come back.
BACKOFF_S: Final = (0.1, 0.4, 1.0, 2.0, 3.0)
RETRIED_STATUSES: Final = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A file to send as a form, read as it goes; `fields` are the form's other fields."""

    name: str
    content: bytes | BinaryIO
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One request with the decoder of its answer.

    `is_repeatable` means that sending it twice does no more than once. With an `upload` there is no
    other body.
    """

    method: str
    path: str
    read: Callable[["Answer"], T]
    parameters: Parameters = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_repeatable: bool = True
    upload: Upload | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def reading(kind: type[T]) -> Callable[[Answer], T]:
    """Return the decoder of a JSON answer that is a value of `kind`.

    What a newer server adds is passed over; anything else that does not fit is `InvalidSpec`.
    """

    def read(answer: Answer) -> T:
        data = parse_json(answer.body)
        try:
            return decode(kind, data)
        except InvalidSpec:
            # The plain way first: it is several times faster, and right between equal versions.
            return decode(kind, known_part(kind, data))

    return read


def body_of(value: object) -> bytes:
    """Return a value of the domain as the body of a request."""
    return json.dumps(encode_public(value), separators=(",", ":"), ensure_ascii=False).encode()


def finish(call: Call[T], answer: Answer) -> T:
    """Return the decoded answer, or raise the error it is."""
    if 200 <= answer.status < 300:
        return call.read(answer)
    raise error_of(answer)


def error_of(answer: Answer) -> MoulinError:
    """Rebuild the error a problem document describes; another body gives a plain one."""
    try:
        problem = parse_json(answer.body)
    except InvalidSpec:
        problem = {}
    if not isinstance(problem, dict) or not isinstance(problem.get("code"), str):
        return _bare(answer.status)
    details = problem.get("details")
    return error_by_code(problem["code"])(
        str(problem.get("detail", "")),
        hint=str(problem.get("hint", "")),
        details={
            **(details if isinstance(details, dict) else {}),
            "request_id": str(problem.get("request_id", "")),
        },
    )


def wait_before_repeat(call: Call[Any], attempt: int, answer: Answer | None) -> float | None:
    """Return how many seconds to wait before sending again, or None when it must not be.

    `attempt` counts from 1; `answer` is None when the connection failed. Only what is repeatable
    and what the server calls retryable is sent again.
    """
    if not call.is_repeatable or attempt >= ATTEMPTS_MAX:
        return None
    wait_s = BACKOFF_S[attempt - 1]
    if answer is None:
        return wait_s
    if answer.status not in RETRIED_STATUSES or not _is_retryable(answer):
        return None
    asked = answer.headers.get("retry-after", "")
    return max(wait_s, min(float(asked), 30.0)) if asked.isdigit() else wait_s


def unreachable(url: str, cause: str) -> MoulinError:
    """Return the error of a connection that failed for good."""
    return Unavailable(
        f"reach the control plane at {url}: {cause}",
        hint="is it running? `moulin up` starts one here; MOULIN_URL names another",
    )


def parse_json(body: bytes) -> Any:
    """Return the JSON value of a body; raises `InvalidSpec` for none."""
    try:
        return json.loads(body)
    except ValueError as error:
        raise InvalidSpec(
            "read the answer: it is no JSON",
            hint="is this address really a control plane's?",
        ) from error


def _is_retryable(answer: Answer) -> bool:
    return error_of(answer).retryable


def _bare(status: int) -> MoulinError:
    return MoulinError(
        f"read the answer: status {status} without a problem document",
        hint="is this address really a control plane's?",
        details={"status": status},
    )

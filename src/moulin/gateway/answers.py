"""Bytes of the gateway's own answers: OpenAI-shaped errors, heads of JSON and streamed answers.

It never quotes a prompt, a completion or a key: an error names fields and numbers only.
"""

from typing import Any, Final

import orjson

from moulin.domain.errors import MoulinError
from moulin.domain.reasons import Reason

JSON: Final = b"application/json"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
COMPLETION: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b%b\r\n%b"
)
"""A good answer: length of the body, two groups of finished header lines, the body."""
_PHRASE: Final = {
    200: b"OK", 400: b"Bad Request", 401: b"Unauthorized", 402: b"Payment Required",
    403: b"Forbidden", 404: b"Not Found", 405: b"Method Not Allowed", 408: b"Request Timeout",
    413: b"Content Too Large", 429: b"Too Many Requests",
    431: b"Request Header Fields Too Large", 500: b"Internal Server Error",
    501: b"Not Implemented", 502: b"Bad Gateway", 503: b"Service Unavailable",
    504: b"Gateway Timeout", 505: b"HTTP Version Not Supported", 507: b"Insufficient Storage",
}  # fmt: skip
_TYPE_BY_STATUS: Final = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}


def status_line(status: int) -> bytes:
    """Return `HTTP/1.1 status phrase` with its line end."""
    return b"HTTP/1.1 %d %s\r\n" % (status, _PHRASE.get(status, b"Status"))


def whole(
    status: int,
    body: bytes,
    *,
    headers: bytes = b"",
    content_type: bytes = JSON,
    is_last: bool = False,
) -> bytes:
    """Return a complete answer; `headers` are finished lines."""
    return b"%scontent-type: %s\r\ncontent-length: %d\r\n%s%s\r\n%s" % (
        status_line(status),
        content_type,
        len(body),
        headers,
        b"connection: close\r\n" if is_last else b"",
        body,
    )


def error_body(error: MoulinError, status: int = 0, reason: Reason | None = None) -> bytes:
    """Return `{"error": {...}}` as OpenAI clients read it, with the reason's numbers beside."""
    status = status or error.http_status
    kind = _TYPE_BY_STATUS.get(status, "invalid_request_error" if status < 500 else "server_error")
    fields: dict[str, Any] = {
        "message": f"{error.message} ({error.hint})" if error.hint else error.message,
        "type": kind,
        "param": error.details.get("param"),
        "code": error.code,
    }
    if reason is not None:
        fields["reason"] = {"code": reason.code.value, "parameters": dict(reason.parameters)}
    return orjson.dumps({"error": fields})


def failure(
    error: MoulinError,
    *,
    status: int = 0,
    request: bytes = b"",
    reason: Reason | None = None,
    is_last: bool = False,
    headers: bytes = b"",
) -> bytes:
    """Return a complete error answer; `status` 0 means the error's own, `headers` are added."""
    status = status or error.http_status
    if request:
        headers += b"x-request-id: req_%s\r\n" % request
    retry_after_s = error.details.get("retry_after_s")
    if retry_after_s is not None:
        headers += b"retry-after: %d\r\n" % int(str(retry_after_s))
    if status == 401:
        headers += b'www-authenticate: Bearer realm="moulin"\r\n'
    body = error_body(error, status, reason)
    return whole(status, body, headers=headers, is_last=is_last)

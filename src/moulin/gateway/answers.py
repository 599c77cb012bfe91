"""Bytes of the gateway's own answers: errors as OpenAI's and Mistral's clients read them, heads.

It never quotes a prompt, a completion or a key: an error names fields and numbers only.
"""

from typing import Any, Final

import orjson

from moulin.domain.errors import MoulinError
from moulin.domain.reasons import Reason

JSON: Final = b"application/json"
EVENTS: Final = b"text/event-stream"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
COMPLETION: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b%b\r\n%b"
)
"""A good answer: length of the body, two groups of finished header lines, the body."""
_PHRASE: Final = {
    200: b"OK", 400: b"Bad Request", 401: b"Unauthorized", 402: b"Payment Required",
    403: b"Forbidden", 404: b"Not Found", 405: b"Method Not Allowed", 408: b"Request Timeout",
    413: b"Content Too Large", 422: b"Unprocessable Content", 429: b"Too Many Requests",
    431: b"Request Header Fields Too Large", 500: b"Internal Server Error",
    501: b"Not Implemented", 502: b"Bad Gateway", 503: b"Service Unavailable",
    504: b"Gateway Timeout", 505: b"HTTP Version Not Supported", 507: b"Insufficient Storage",
}  # fmt: skip
_TYPE_BY_STATUS: Final = {
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}
_CODE_BY_STATUS: Final = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
_ANSWERED_WELL: Final = b"HTTP/1.1 200 "
_HEAD_END: Final = b"\r\n\r\n"


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
    """Return `{"error": {...}}` as OpenAI clients read it, with the reason's numbers beside.

    `code` is the word OpenAI's service has for it, where it has one, else the error's own.
    """
    status = status or error.http_status
    kind = _TYPE_BY_STATUS.get(status, "invalid_request_error" if status < 500 else "server_error")
    fields: dict[str, Any] = {
        "message": f"{error.message} ({error.hint})" if error.hint else error.message,
        "type": kind,
        "param": error.details.get("param"),
        "code": error.details.get("code", _CODE_BY_STATUS.get(status, error.code)),
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


def refused_by_replica(status: int, body: bytes) -> bytes:
    """Return a replica's refusal with the fields clients expect; engines leave some out.

    llama.cpp has the status as code and no `param`, vLLM has no `error` around it.
    """
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        told = {}
    inner = told.get("error", told) if type(told) is dict else {}
    fields = inner if type(inner) is dict else {}
    kind, code = fields.get("type"), fields.get("code")
    if kind == "exceed_context_size_error":
        kind, code = "invalid_request_error", "context_length_exceeded"
    return orjson.dumps(
        {
            "error": {
                "message": str(fields.get("message", "the model server refused this request")),
                "type": kind if type(kind) is str and kind else "invalid_request_error",
                "param": fields.get("param"),
                "code": code if type(code) is str else None,
            }
        }
    )


def as_mistral(answer: bytes) -> bytes:
    """Return a complete answer as Mistral's clients expect it: errors are flat there.

    A field that is not taken is a 422 with `detail`, which their client reads as a list of faults.
    """
    if answer.startswith(_ANSWERED_WELL):
        return answer
    head, _, body = answer.partition(_HEAD_END)
    try:
        error = orjson.loads(body)["error"]
        message, param = error["message"], error["param"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return answer
    status = int(head[9:12])
    fields = {"object": "error", **error}
    if status == 400 and param is not None:
        status = 422
        fields["detail"] = [{"type": error["code"], "loc": ["body", param], "msg": message}]
    lines = [
        line
        for line in head.split(b"\r\n")[1:]
        if not line.startswith((b"content-type:", b"content-length:"))
    ]
    return whole(status, orjson.dumps(fields), headers=b"".join(b"%b\r\n" % each for each in lines))

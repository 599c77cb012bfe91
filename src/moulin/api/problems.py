"""Every error as a problem document (RFC 9457), and nothing else: no stack, no body, no key.

The status lives on the error's class, so that the gateway answers alike.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from moulin.api.messages import choose_language, title
from moulin.domain.errors import InvalidRequest, MoulinError, NotFound, Unauthenticated

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:moulin:error:"
PROBLEM_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "description": "An error, as RFC 9457 has it, with a stable code and what to do next.",
    "required": ["type", "title", "status", "detail", "code", "hint", "retryable", "details"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was attempted and what stopped it."},
        "instance": {"type": "string"},
        "code": {"type": "string", "description": "Stable; the class of the SDK's error."},
        "hint": {"type": "string"},
        "retryable": {"type": "boolean"},
        "details": {"type": "object"},
        "request_id": {"type": "string"},
    },
}


def document(
    error: MoulinError, *, status: int, language: str, instance: str = "", request_id: str = ""
) -> dict[str, Any]:
    """Return the problem document of an error."""
    return {
        "type": TYPE_PREFIX + error.code,
        "title": title(error.code, language),
        "status": status,
        "detail": error.message,
        "instance": instance,
        "code": error.code,
        "hint": error.hint,
        "retryable": error.retryable,
        "details": dict(error.details),
        "request_id": request_id,
    }


def problem_response(
    error: MoulinError,
    *,
    status: int = 0,
    language: str = "en",
    instance: str = "",
    request_id: str = "",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the answer to an error; `status` 0 is the status of its class."""
    status = status or error.http_status
    sent = {"content-language": language, "cache-control": "no-store", **(headers or {})}
    if isinstance(error, Unauthenticated):
        sent["www-authenticate"] = 'Bearer realm="moulin"'
    if error.retryable:
        sent.setdefault("retry-after", "1")
    body = document(
        error, status=status, language=language, instance=instance, request_id=request_id
    )
    return Response(
        orjson.dumps(body, default=str, option=orjson.OPT_NON_STR_KEYS),
        status_code=status,
        headers=sent,
        media_type=MEDIA_TYPE,
    )


def install(app: FastAPI) -> None:
    """Let the application answer errors of routes with problem documents."""
    app.add_exception_handler(MoulinError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)


def answer_error(request: Request, error: MoulinError, **more: Any) -> Response:
    """Return the answer to an error met while serving a request; raises nothing."""
    return problem_response(
        error,
        language=choose_language(request.headers.get("accept-language", "")),
        instance=request.url.path,
        request_id=str(request.scope.get("moulin.request_id", "")),
        **more,
    )


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MoulinError)
    return answer_error(request, error)


async def _answer_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Only where and what, never the value: it may be a secret put in the wrong place.
    places = [
        {"where": ".".join(str(part) for part in found["loc"]), "problem": str(found["msg"])}
        for found in error.errors()
    ]
    said = "; ".join(f"{place['where']}: {place['problem']}" for place in places)
    return answer_error(
        request,
        InvalidRequest(
            f"read the request: {said}",
            hint="see the parameters of this route in /api/v1/openapi.json",
            details={"places": places},
        ),
    )


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        found: MoulinError = NotFound(
            f"{what}: there is no such route", hint="see /api/v1/openapi.json"
        )
    else:
        found = InvalidRequest(f"{what}: {error.detail}", hint="see /api/v1/openapi.json")
    return answer_error(request, found, status=error.status_code, headers=error.headers)

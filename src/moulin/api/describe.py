"""Turns the routes into one OpenAPI document: FastAPI's for paths and parameters, ours for bodies.

A route says what it reads and answers with `described`; the document is made once, when first
asked for.
"""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from moulin.api.problems import MEDIA_TYPE, PROBLEM_SCHEMA
from moulin.api.schema import REFERENCE, Schemas

PREFIX: Final = "/api/v1"
EVENT_STREAM: Final = "text/event-stream"
_FRAME: Final[Mapping[str, Any]] = {
    "type": "object",
    "description": "One server-sent event; `data` is an event of the log as JSON text.",
    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
}
_BODY: Final = "x-moulin-body"
_ANSWER: Final = "x-moulin-answer"
# Types by the name a route mentions; entered by `described` while the route modules are imported.
_TYPES: Final[dict[str, type]] = {}
DESCRIPTION: Final = (
    "The control API of a factory. Amounts that can pass 2^53 are decimal strings, times are "
    "RFC 3339 in UTC (null: not yet). Errors are problem documents with a stable `code`, a `hint` "
    "and whether trying again can help. Within v1, answers may gain fields and never lose any."
)


def described(answer: type | str, *, body: type | None = None, status: int = 200) -> dict[str, Any]:
    """Return the keyword arguments of a route that answers `answer`: a type or a media type."""
    said: dict[str, Any] = {_ANSWER: answer if isinstance(answer, str) else _name(answer)}
    if body is not None:
        said[_BODY] = _name(body)
    return {"status_code": status, "response_model": None, "openapi_extra": said}


def document(app: FastAPI, version: str) -> dict[str, Any]:
    """Return the OpenAPI document of every route of the application."""
    schemas = Schemas()
    found = get_openapi(title="Moulin", version=version, description=DESCRIPTION, routes=app.routes)
    for path, item in found["paths"].items():
        for operation in item.values():
            _complete(operation, schemas, is_open=not path.startswith(PREFIX))
    components = found.setdefault("components", {})
    # What FastAPI adds for its own validation errors is not what is answered.
    components["schemas"] = {"Problem": dict(PROBLEM_SCHEMA), **schemas.components}
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    found["security"] = [{"key": []}]
    return found


def _name(kind: type) -> str:
    _TYPES[kind.__name__] = kind
    return kind.__name__


def _complete(operation: dict[str, Any], schemas: Schemas, *, is_open: bool) -> None:
    body = operation.pop(_BODY, None)
    if body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schemas.reference(_TYPES[body])}},
        }
    answer = operation.pop(_ANSWER, None)
    for status, response in list(operation["responses"].items()):
        if status == "422":
            del operation["responses"][status]
        elif answer is not None:
            response["content"] = _content(answer, schemas)
    operation["responses"]["default"] = {
        "description": "An error",
        "content": {MEDIA_TYPE: {"schema": {"$ref": REFERENCE + "Problem"}}},
    }
    if is_open:
        operation["security"] = []


def _content(answer: str, schemas: Schemas) -> Mapping[str, Any]:
    kind = _TYPES.get(answer)
    if kind is None:
        return {answer: {"schema": _FRAME if answer == EVENT_STREAM else {"type": "string"}}}
    if kind is dict:
        return {"application/json": {"schema": {"type": "object"}}}
    return {"application/json": {"schema": schemas.reference(kind)}}

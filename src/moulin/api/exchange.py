"""Bodies in and out: bytes to a checked value of the domain, a value to JSON.

It decides how much is read and what is refused before a command exists. Answers are encoded
straight from the domain's values; nothing validates them again.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

import orjson
from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from moulin.api.bounds import check_bounds
from moulin.api.edge import UNREAD
from moulin.api.state import state_of
from moulin.domain.errors import BodyTooLarge, InvalidRequest
from moulin.domain.wire import decode, encode_public

T = TypeVar("T")
in_thread = run_in_threadpool


async def read_bytes(request: Request) -> bytes:
    """Return the request's body.

    Raises `BodyTooLarge` as soon as it passes the limit, `InvalidRequest` when it does not come.
    """
    limits = state_of(request).services.limits
    body = b""
    request.scope[UNREAD] = True
    try:
        async with asyncio.timeout(limits.body_wait_s):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise InvalidRequest("read the body: the connection ended before it did")
                chunk: bytes = message.get("body", b"")
                body += chunk
                if len(body) > limits.body_bytes_max:
                    raise BodyTooLarge(
                        f"read the body: it is larger than {limits.body_bytes_max} bytes",
                        hint="send less at once",
                    )
                if not message.get("more_body", False):
                    del request.scope[UNREAD]
                    return body
    except TimeoutError:
        raise InvalidRequest(
            f"read the body: it did not come within {limits.body_wait_s:g} s",
            hint="send the whole body at once",
        ) from None


def parse(kind: type[T], body: bytes) -> T:
    """Return the body as a checked value of `kind`.

    Raises `InvalidRequest` for what is no JSON, `InvalidSpec` for unknown keys and bad values.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # The message of the parser has a place; its document is the caller's and stays out.
        raise InvalidRequest(
            f"read the body as JSON: {error.msg}, line {error.lineno} column {error.colno}",
            hint="send UTF-8 JSON, nested less than 1000 deep",
        ) from None
    return checked(kind, data)


def checked(kind: type[T], data: object) -> T:
    """Return JSON data as a checked value of `kind`; raises `InvalidSpec`."""
    value = decode(kind, data)
    check_bounds(value)
    return value


async def read_value(request: Request, kind: type[T]) -> T:
    """Read and parse the request's body; raises as `read_bytes` and `parse` do."""
    return parse(kind, await read_bytes(request))


def respond(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a value of the domain as the JSON answer."""
    return json_response(encode_public(value), status, headers)


def json_response(
    data: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return JSON-able data as the answer."""
    return Response(
        orjson.dumps(data), status_code=status, headers=headers, media_type="application/json"
    )

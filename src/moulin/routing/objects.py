"""Files, batches and stored responses in the words of OpenAI and Mistral.

Pure: it decides which call of the control API a client's call means and how its answer reads to
that client. It never looks into a file.

Source: OpenAI API reference (files, batch, responses), Mistral API reference (files, batch).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, urlencode

from moulin.domain.errors import InvalidRequest, NotFound
from moulin.domain.objects import (
    BATCH_WINDOW_S,
    BatchJob,
    BatchPage,
    BatchState,
    StoredObject,
    StoredPage,
)
from moulin.domain.units import NS_PER_S
from moulin.domain.wire import decode, encode

API: Final = "/api/v1"
FILES: Final = "/v1/files"
_PAGE_MAX: Final = 1000
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")
_STATUS: Final[Mapping[BatchState, str]] = {
    BatchState.RUNNING: "in_progress",
    BatchState.CANCELLING: "cancelling",
    BatchState.COMPLETED: "completed",
    BatchState.FAILED: "failed",
    BatchState.CANCELLED: "cancelled",
    BatchState.EXPIRED: "expired",
}
_MISTRAL_STATUS: Final[Mapping[BatchState, str]] = {
    BatchState.RUNNING: "RUNNING",
    BatchState.CANCELLING: "CANCELLATION_REQUESTED",
    BatchState.COMPLETED: "SUCCESS",
    BatchState.FAILED: "FAILED",
    BatchState.CANCELLED: "CANCELLED",
    BatchState.EXPIRED: "TIMEOUT_EXCEEDED",
}
_PURPOSES: Final[Mapping[str, str]] = {"batch_output": "batch"}
Reader = Callable[[Any], Any]


class Asked(NamedTuple):
    """A client's call: `target` is path and query, `body` its parsed JSON or None."""

    method: str
    target: str
    body: Any
    is_mistral: bool


class Call(NamedTuple):
    """The control API's call; `read` turns its JSON into the client's, None passes bytes on."""

    method: str
    target: str
    read: Reader | None
    body: Any = None
    is_upload: bool = False


def find_call(asked: Asked) -> Call | None:
    """Return what a call on these objects means, None when the path is none of theirs.

    Raises `InvalidRequest` and `NotFound`.
    """
    path, _, query = asked.target.partition("?")
    values = {name: given[-1] for name, given in parse_qs(query[:4096]).items()}
    for prefix, find in _PLACES:
        if path == prefix or path.startswith(prefix + "/"):
            rest = [part for part in path.removeprefix(prefix).split("/") if part]
            if rest and not _ID.fullmatch(rest[0]):
                raise NotFound("find this object: its id is none")
            call = find(asked, rest, values)
            if call is None:
                raise NotFound("serve this path", hint="see /v1/files and /v1/batches")
            return call
    return None


def _find_file(asked: Asked, rest: list[str], values: Mapping[str, str]) -> Call | None:
    shown = _mistral_file if asked.is_mistral else _openai_file
    match (asked.method, *rest):
        case ("POST",):
            return Call("POST", f"{API}/files", lambda data: shown(_file(data)), is_upload=True)
        case ("GET",):
            return _list_files(asked, values)
        case ("GET", name):
            return Call("GET", f"{API}/files/{name}", lambda data: shown(_file(data)))
        case ("GET", name, "content"):
            return Call("GET", f"{API}/files/{name}/content", None)
        case ("DELETE", name):
            return Call("DELETE", f"{API}/files/{name}", _gone("file"))
        case _:
            return None


def _find_batch(asked: Asked, rest: list[str], values: Mapping[str, str]) -> Call | None:
    match (asked.method, *rest):
        case ("POST",):
            return Call("POST", f"{API}/batches", _read_openai, _openai_wanted(asked.body))
        case ("GET",):
            return Call("GET", f"{API}/batches?{_page_query(values, {})}", _openai_batches)
        case ("GET", name):
            return Call("GET", f"{API}/batches/{name}", _read_openai)
        case ("POST", name, "cancel"):
            return Call("POST", f"{API}/batches/{name}/cancel", _read_openai)
        case _:
            return None


def _find_job(asked: Asked, rest: list[str], values: Mapping[str, str]) -> Call | None:
    match (asked.method, *rest):
        case ("POST",):
            return Call("POST", f"{API}/batches", _read_mistral, _mistral_wanted(asked.body))
        case ("GET",):
            start, size = _mistral_page(values)
            target = f"{API}/batches?limit={min(_PAGE_MAX, start + size)}"
            return Call("GET", target, lambda data: _mistral_jobs(data, start, size))
        case ("GET", name):
            return Call("GET", f"{API}/batches/{name}", _read_mistral)
        case ("POST", name, "cancel"):
            return Call("POST", f"{API}/batches/{name}/cancel", _read_mistral)
        case ("DELETE", name):
            return Call("DELETE", f"{API}/batches/{name}", _gone("batch"))
        case _:
            return None


def _find_response(asked: Asked, rest: list[str], values: Mapping[str, str]) -> Call | None:
    match (asked.method, *rest):
        case ("GET", name):
            return Call("GET", f"{API}/responses/{name}", lambda data: data["response"])
        case ("GET", name, "input_items"):
            return Call("GET", f"{API}/responses/{name}", _input_items)
        case ("DELETE", name):
            return Call("DELETE", f"{API}/responses/{name}", _gone("response"))
        case _:
            return None


_Find = Callable[[Asked, list[str], Mapping[str, str]], Call | None]
_PLACES: Final[tuple[tuple[str, _Find], ...]] = (
    (FILES, _find_file),
    ("/v1/batches", _find_batch),
    ("/v1/batch/jobs", _find_job),
    ("/v1/responses", _find_response),
)


# -- files ----------------------------------------------------------------------------------------


def _file(data: Any) -> StoredObject:
    return decode(StoredObject, data)


def _openai_file(stored: StoredObject) -> dict[str, Any]:
    return {
        "id": stored.id,
        "object": "file",
        "bytes": stored.size_bytes,
        "created_at": stored.created_at_ns // NS_PER_S,
        "expires_at": stored.expires_at_ns // NS_PER_S,
        "filename": stored.name,
        "purpose": stored.purpose,
        "status": "processed",
    }


def _mistral_file(stored: StoredObject) -> dict[str, Any]:
    is_output = stored.purpose == "batch_output"
    return {
        **_openai_file(stored),
        "purpose": _PURPOSES.get(stored.purpose, stored.purpose),
        "sample_type": "batch_result" if is_output else "batch_request",
        "source": "mistral" if is_output else "upload",
        "deleted": False,
    }


def _list_files(asked: Asked, values: Mapping[str, str]) -> Call:
    purpose = {"purpose": values["purpose"]} if values.get("purpose") else {}
    if not asked.is_mistral:
        return Call("GET", f"{API}/files?{_page_query(values, purpose)}", _openai_files)
    start, size = _mistral_page(values)
    query = urlencode({**purpose, "limit": min(_PAGE_MAX, start + size)})
    return Call("GET", f"{API}/files?{query}", lambda data: _mistral_files(data, start, size))


def _openai_files(data: Any) -> dict[str, Any]:
    page = decode(StoredPage, data)
    return _openai_page([_openai_file(each) for each in page.items], page.next)


def _mistral_files(data: Any, start: int, size: int) -> dict[str, Any]:
    items = decode(StoredPage, data).items
    found = [_mistral_file(each) for each in items[start : start + size]]
    return {"object": "list", "data": found, "total": len(items)}


def _gone(kind: str) -> Reader:
    return lambda data: {"id": data["id"], "object": kind, "deleted": True}


# -- batches --------------------------------------------------------------------------------------


def _openai_wanted(body: Any) -> dict[str, Any]:
    fields = _object(body)
    if fields.get("completion_window", "24h") != "24h":
        raise _bad("completion_window", "24h")
    file = fields.get("input_file_id")
    if not isinstance(file, str) or not _ID.fullmatch(file):
        raise _bad("input_file_id", "the id of an uploaded file")
    return {
        "endpoint": _endpoint(fields),
        "input_files": [file],
        "window_s": BATCH_WINDOW_S,
        "metadata": _metadata(fields),
    }


def _mistral_wanted(body: Any) -> dict[str, Any]:
    fields = _object(body)
    hours = fields.get("timeout_hours")
    hours = 24 if hours is None else hours
    if type(hours) is not int or not 1 <= hours <= 168:
        raise _bad("timeout_hours", "a whole number from 1 to 168")
    if fields.get("agent_id"):
        raise _bad("agent_id", "left out: agents are not served here")
    return {
        "endpoint": _endpoint(fields),
        "input_files": fields.get("input_files") or [],
        "requests": fields.get("requests") or [],
        "model": fields.get("model") or "",
        "window_s": hours * 3600,
        "metadata": _metadata(fields),
    }


def _endpoint(fields: Mapping[str, Any]) -> str:
    endpoint = fields.get("endpoint")
    if not isinstance(endpoint, str):
        raise _bad("endpoint", "the path that the requests are for, such as /v1/chat/completions")
    return endpoint


def _metadata(fields: Mapping[str, Any]) -> dict[str, str]:
    metadata = fields.get("metadata")
    if metadata is None:
        return {}
    if type(metadata) is not dict:
        raise _bad("metadata", "an object of texts")
    return {str(name): str(value) for name, value in metadata.items()}


def _read_openai(data: Any) -> dict[str, Any]:
    return openai_batch(decode(BatchJob, data))


def openai_batch(batch: BatchJob) -> dict[str, Any]:
    """Return a batch as OpenAI's clients read it."""
    created_s = batch.created_at_ns // NS_PER_S
    ended_s = batch.ended_at_ns // NS_PER_S or None
    ends = {
        f"{each}_at": ended_s if _STATUS[batch.state] == each else None
        for each in ("completed", "failed", "expired", "cancelled")
    }
    errors = [
        {"code": each.code, "line": each.line or None, "message": each.message, "param": None}
        for each in batch.errors
    ]
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.input_files[0] if batch.input_files else "",
        "completion_window": "24h",
        "status": _STATUS[batch.state],
        "output_file_id": batch.output_file or None,
        "error_file_id": batch.error_file or None,
        "created_at": created_s,
        "in_progress_at": created_s,
        "expires_at": batch.deadline_at_ns // NS_PER_S,
        "finalizing_at": ends["completed_at"],
        "cancelling_at": batch.cancelled_at_ns // NS_PER_S or None,
        **ends,
        "request_counts": {
            "total": batch.lines,
            "completed": batch.completed,
            "failed": batch.failed,
        },
        "metadata": encode(batch.metadata) or None,
    }


def _openai_batches(data: Any) -> dict[str, Any]:
    page = decode(BatchPage, data)
    return _openai_page([openai_batch(each) for each in page.items], page.next)


def _read_mistral(data: Any) -> dict[str, Any]:
    return mistral_job(decode(BatchJob, data))


def mistral_job(batch: BatchJob) -> dict[str, Any]:
    """Return a batch as Mistral's clients read it."""
    created_s = batch.created_at_ns // NS_PER_S
    return {
        "id": batch.id,
        "object": "batch",
        "input_files": list(batch.input_files),
        "endpoint": batch.endpoint,
        "model": batch.model or None,
        "metadata": encode(batch.metadata),
        "errors": [{"message": each.message, "count": 1} for each in batch.errors],
        "status": _MISTRAL_STATUS[batch.state],
        "created_at": created_s,
        "started_at": created_s,
        "completed_at": batch.ended_at_ns // NS_PER_S or None,
        "output_file": batch.output_file or None,
        "error_file": batch.error_file or None,
        "total_requests": batch.lines,
        "completed_requests": batch.completed + batch.failed,
        "succeeded_requests": batch.completed,
        "failed_requests": batch.failed,
    }


def _mistral_jobs(data: Any, start: int, size: int) -> dict[str, Any]:
    items = decode(BatchPage, data).items
    found = [mistral_job(each) for each in items[start : start + size]]
    return {"object": "list", "data": found, "total": len(items)}


def _input_items(data: Any) -> dict[str, Any]:
    return _openai_page(list(data["input"]), "")


# -- pages ----------------------------------------------------------------------------------------


def _openai_page(items: list[dict[str, Any]], following: str) -> dict[str, Any]:
    return {
        "object": "list",
        "data": items,
        "first_id": items[0].get("id") if items else None,
        "last_id": items[-1].get("id") if items else None,
        "has_more": bool(following),
    }


def _page_query(values: Mapping[str, str], more: Mapping[str, str]) -> str:
    asked: dict[str, str | int] = {**more, "limit": _number(values, "limit", 100)}
    if values.get("after"):
        asked["cursor"] = values["after"]
    return urlencode(asked)


def _mistral_page(values: Mapping[str, str]) -> tuple[int, int]:
    size = _number(values, "page_size", 100)
    return size * _number(values, "page", 0), max(1, size)


def _number(values: Mapping[str, str], name: str, default: int) -> int:
    text = values.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise _bad(name, "a whole number")
    return min(int(text), _PAGE_MAX)


def _object(body: Any) -> Mapping[str, Any]:
    if type(body) is not dict:
        raise InvalidRequest("the body must be a JSON object")
    return body


def _bad(field: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"{field!r} must be {expected}", details={"param": field})

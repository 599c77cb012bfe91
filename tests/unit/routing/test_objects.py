"""Clients' calls on files, batches and responses, and what the answers read like to them."""

from dataclasses import replace
from typing import Any

import pytest

from moulin.domain.errors import InvalidRequest, NotFound
from moulin.domain.objects import BatchPage, BatchState, LineError, StoredPage
from moulin.domain.wire import encode_public
from moulin.routing.objects import Asked, find_call, mistral_job, openai_batch
from tests.golden.objects_story import CREATED_NS, ENDED, INPUT, batch, stored

CREATED_S = CREATED_NS // 10**9
FILE = stored(INPUT, "q.jsonl", "batch", 12)


def call(method: str, target: str, body: Any = None, *, is_mistral: bool = False) -> Any:
    return find_call(Asked(method, target, body, is_mistral))


@pytest.mark.parametrize(
    ("method", "target", "wanted"),
    [
        ("POST", "/v1/files", "POST /api/v1/files"),
        ("GET", "/v1/files?limit=5&after=file_1&purpose=batch", "GET /api/v1/files?purpose=batch&limit=5&cursor=file_1"),
        ("GET", "/v1/files/file_1", "GET /api/v1/files/file_1"),
        ("GET", "/v1/files/file_1/content", "GET /api/v1/files/file_1/content"),
        ("DELETE", "/v1/files/file_1", "DELETE /api/v1/files/file_1"),
        ("GET", "/v1/batches", "GET /api/v1/batches?limit=100"),
        ("GET", "/v1/batches/batch_1", "GET /api/v1/batches/batch_1"),
        ("POST", "/v1/batches/batch_1/cancel", "POST /api/v1/batches/batch_1/cancel"),
        ("GET", "/v1/batch/jobs?page=2&page_size=10", "GET /api/v1/batches?limit=30"),
        ("POST", "/v1/batch/jobs/batch_1/cancel", "POST /api/v1/batches/batch_1/cancel"),
        ("DELETE", "/v1/batch/jobs/batch_1", "DELETE /api/v1/batches/batch_1"),
        ("GET", "/v1/responses/resp_1", "GET /api/v1/responses/resp_1"),
        ("DELETE", "/v1/responses/resp_1", "DELETE /api/v1/responses/resp_1"),
    ],
)  # fmt: skip
def test_each_call_has_its_own_at_the_control_api(method: str, target: str, wanted: str) -> None:
    found = call(method, target)
    assert f"{found.method} {found.target}" == wanted


@pytest.mark.parametrize("target", ["/v1/models", "/v1/filesystem", "/v1/batch", "/healthz"])
def test_other_paths_are_anothers(target: str) -> None:
    assert call("GET", target) is None


@pytest.mark.parametrize(
    ("method", "target"),
    [("PUT", "/v1/files"), ("GET", "/v1/files/a%2Fb"), ("GET", "/v1/files/a/b"), ("POST", "/v1/batches/b/pause")],
)  # fmt: skip
def test_what_is_under_them_and_nothing_is_not_found(method: str, target: str) -> None:
    with pytest.raises(NotFound):
        call(method, target)


@pytest.mark.parametrize(
    ("target", "body", "field"),
    [
        ("/v1/batches", {"endpoint": "/v1/chat/completions"}, "input_file_id"),
        ("/v1/batches", {"input_file_id": "file_1"}, "endpoint"),
        ("/v1/batches", {"input_file_id": "file_1", "completion_window": "1h"}, "completion_window"),
        ("/v1/batches", {"input_file_id": "f", "endpoint": "/v1/x", "metadata": []}, "metadata"),
        ("/v1/batch/jobs", {"endpoint": "/v1/x", "timeout_hours": 0}, "timeout_hours"),
        ("/v1/batch/jobs", {"endpoint": "/v1/x", "agent_id": "a"}, "agent_id"),
    ],
)  # fmt: skip
def test_a_field_that_is_wrong_is_named(target: str, body: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        call("POST", target, body)
    assert refused.value.details["param"] == field


def test_a_file_reads_as_each_client_expects() -> None:
    data = encode_public(FILE)
    openai = call("GET", f"/v1/files/{INPUT}").read(data)
    assert (openai["object"], openai["bytes"], openai["created_at"]) == ("file", 12, CREATED_S)
    output = encode_public(replace(FILE, purpose="batch_output"))
    mistral = call("GET", f"/v1/files/{INPUT}", is_mistral=True).read(output)
    assert (mistral["purpose"], mistral["sample_type"]) == ("batch", "batch_result")
    page = encode_public(StoredPage(items=(FILE, FILE), next="x"))
    listed = call("GET", "/v1/files").read(page)
    assert (listed["has_more"], listed["last_id"], len(listed["data"])) == (True, INPUT, 2)
    second = call("GET", "/v1/files?page=1&page_size=1", is_mistral=True).read(page)
    assert (len(second["data"]), second["total"]) == (1, 2)
    gone = call("DELETE", f"/v1/files/{INPUT}").read(data)
    assert gone == {"id": INPUT, "object": "file", "deleted": True}


@pytest.mark.parametrize(
    ("state", "openai", "mistral"),
    [
        (BatchState.RUNNING, "in_progress", "RUNNING"),
        (BatchState.CANCELLING, "cancelling", "CANCELLATION_REQUESTED"),
        (BatchState.COMPLETED, "completed", "SUCCESS"),
        (BatchState.FAILED, "failed", "FAILED"),
        (BatchState.CANCELLED, "cancelled", "CANCELLED"),
        (BatchState.EXPIRED, "expired", "TIMEOUT_EXCEEDED"),
    ],
)
def test_every_state_has_a_word(state: BatchState, openai: str, mistral: str) -> None:
    job = replace(
        batch(ENDED, state=state, lines=3, completed=2),
        failed=1,
        ended_at_ns=CREATED_NS + 10**9,
        errors=(LineError(line=0, code="empty_file", message="it has no line"),),
    )
    shown = openai_batch(job)
    assert shown["status"] == openai
    assert shown["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert shown["errors"]["data"][0]["line"] is None
    ends = [shown[f"{name}_at"] for name in ("completed", "failed", "expired", "cancelled")]
    is_final = state not in (BatchState.RUNNING, BatchState.CANCELLING)
    assert sum(each is not None for each in ends) == is_final
    told = mistral_job(job)
    assert (told["status"], told["completed_requests"]) == (mistral, 3)


def test_pages_of_batches_and_a_response_with_its_input() -> None:
    page = encode_public(BatchPage(items=(batch(ENDED),)))
    assert call("GET", "/v1/batches").read(page)["data"][0]["id"] == ENDED
    assert call("GET", "/v1/batch/jobs").read(page)["total"] == 1
    kept = {"response": {"id": "resp_1"}, "input": [{"id": "m1"}]}
    assert call("GET", "/v1/responses/resp_1").read(kept) == {"id": "resp_1"}
    assert call("GET", "/v1/responses/resp_1/input_items").read(kept)["first_id"] == "m1"

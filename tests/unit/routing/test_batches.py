"""Lines of a batch: what is read, what is refused, and what is written."""

import json
from typing import Any

import pytest

from moulin.domain.ids import KeyId, OrganisationId, ProjectId
from moulin.domain.objects import BATCH_LINES_MAX, BatchJob
from moulin.routing.batches import (
    BadLine,
    answered,
    check_lines,
    line_id,
    not_answered,
    read_lines,
)

BATCH = BatchJob(
    id="batch_1",
    organisation=OrganisationId("uni"),
    project=ProjectId("lab"),
    key=KeyId("key_1"),
    endpoint="/v1/chat/completions",
    input_files=("file_1",),
    created_at_ns=1,
    deadline_at_ns=2,
    model="smol",
)


def line(**fields: Any) -> bytes:
    return json.dumps({"custom_id": "a", "body": {}, **fields}).encode() + b"\n"


def test_lines_have_places_names_and_the_model_of_the_batch() -> None:
    raw = [line(), b"\n", line(custom_id="b", body={"model": "own"}), line(custom_id="c")]
    found = list(read_lines(BATCH, raw))
    assert [(each.index, each.custom_id) for each in found] == [(0, "a"), (1, "b"), (2, "c")]
    assert [json.loads(each.body)["model"] for each in found] == ["smol", "own", "smol"]
    assert line_id("batch_1", 2) == "batch_1.2"
    assert check_lines(BATCH, raw) == (3, ())


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"nonsense\n", "invalid_json_line"),
        (b"[1]\n", "invalid_json_line"),
        (line(custom_id=""), "invalid_custom_id"),
        (line(custom_id=7), "invalid_custom_id"),
        (line(method="GET"), "invalid_method"),
        (line(url="/v1/embeddings"), "mismatched_endpoint"),
        (line(body="x"), "invalid_body"),
        (line(body={"stream": True}), "invalid_body"),
        (line(body={"x": "y" * 5_000_000}), "line_too_long"),
    ],
)
def test_a_bad_line_is_named(text: bytes, code: str) -> None:
    count, errors = check_lines(BATCH, [line(), text])
    assert (count, [(each.line, each.code) for each in errors]) == (2, [(2, code)])
    with pytest.raises(BadLine):
        list(read_lines(BATCH, [text]))


def test_a_batch_as_a_whole_is_refused() -> None:
    assert [each.code for each in check_lines(BATCH, [line(), line()])[1]] == [
        "duplicate_custom_id"
    ]
    assert [each.code for each in check_lines(BATCH, [b"\n"])[1]] == ["empty_file"]
    many = (line(custom_id=str(n)) for n in range(BATCH_LINES_MAX + 5))
    assert [each.code for each in check_lines(BATCH, many)[1]] == ["too_many_lines"]


def test_what_is_written_has_openais_form() -> None:
    (found,) = read_lines(BATCH, [line()])
    good = json.loads(answered(found, "batch_1.0", 200, "req_1", b'{"a": 1}'))
    assert good == {
        "id": "batch_1.0",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "req_1", "body": {"a": 1}},
        "error": None,
    }
    assert json.loads(answered(found, "n", 502, "", b"<html>"))["response"]["body"] == {}
    late = json.loads(not_answered("a", "batch_1.0", "batch_expired", "too late"))
    assert (late["response"], late["error"]["code"]) == (None, "batch_expired")

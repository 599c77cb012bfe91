"""The SDK's core: what is sent, what may be sent again, what an answer means."""

import json

import pytest

from moulin.domain.control import KeyWanted
from moulin.domain.errors import (
    InvalidRequest,
    InvalidSpec,
    MoulinError,
    QuotaExceeded,
    StoreUnavailable,
    all_errors,
)
from moulin.domain.factory import PriceBook, Site
from moulin.domain.workload import TaskTemplate, WorkloadKind, WorkloadSpec
from moulin.sdk import _requests as requests
from moulin.sdk._core import (
    ATTEMPTS_MAX,
    Answer,
    error_of,
    finish,
    parse_json,
    wait_before_repeat,
)
from moulin.sdk._transport import arguments, query
from moulin.sdk.credentials import Credentials

SPEC = WorkloadSpec(kind=WorkloadKind.JOB, name="j", task=TaskTemplate(command=("é",)))


def problem(error: type[MoulinError], status: int = 0, **more) -> Answer:
    body = {
        "code": error.code,
        "detail": "what",
        "hint": "do",
        "details": {"n": "1"},
        "retryable": error.retryable,
        "request_id": "req_1",
    }
    return Answer(status=status or error.http_status, headers=more, body=json.dumps(body).encode())


@pytest.mark.parametrize(
    "error",
    [each for each in all_errors() if each.__module__ == "moulin.domain.errors"],
    ids=lambda error: error.code,
)
def test_every_error_comes_back_as_its_class(error):
    found = error_of(problem(error))
    assert type(found) is error
    assert (found.message, found.hint) == ("what", "do")
    assert found.details == {"n": "1", "request_id": "req_1"}


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"code": 3}', b'{"detail": "x"}'])
def test_what_is_no_problem_document_is_a_plain_error(body):
    found = error_of(Answer(status=502, headers={}, body=body))
    assert type(found) is MoulinError
    assert found.details == {"status": 502}


def test_submissions_always_have_a_key_of_their_own():
    first, second = requests.submit("p", SPEC, ""), requests.submit("p", SPEC, "")
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]
    assert requests.submit("p", SPEC, "mine").headers["idempotency-key"] == "mine"
    assert first.is_repeatable
    assert json.loads(first.body)["task"]["command"] == ["é"]


def test_issuing_a_key_is_never_repeated():
    call = requests.create_key("p", KeyWanted(name="k"))
    assert wait_before_repeat(call, 1, None) is None
    assert wait_before_repeat(call, 1, problem(StoreUnavailable)) is None


@pytest.mark.parametrize(
    ("answer", "is_repeated"),
    [
        (None, True),
        (problem(StoreUnavailable), True),
        (problem(QuotaExceeded), True),
        (problem(InvalidSpec), False),
        (problem(MoulinError), False),
        (Answer(status=503, headers={}, body=b"a proxy"), False),
        (Answer(status=200, headers={}, body=b"{}"), False),
    ],
)
def test_only_what_can_help_is_sent_again(answer, is_repeated):
    waits = [
        wait_before_repeat(requests.status(), attempt, answer)
        for attempt in range(1, ATTEMPTS_MAX + 1)
    ]
    assert waits[-1] is None
    assert [wait is not None for wait in waits[:-1]] == [is_repeated] * (ATTEMPTS_MAX - 1)
    if is_repeated:
        assert waits[:-1] == sorted(wait for wait in waits if wait is not None)


@pytest.mark.parametrize(
    ("asked", "wait_s"), [("3", 3.0), ("999", 30.0), ("soon", 0.1), ("0", 0.1)]
)
def test_the_servers_wait_is_kept_within_reason(asked, wait_s):
    answer = problem(QuotaExceeded, **{"retry-after": asked})
    assert wait_before_repeat(requests.status(), 1, answer) == wait_s


def test_what_a_newer_server_adds_is_passed_over():
    key = {"id": "key_1", "name": "k", "role": "viewer", "organisation": "o", "project": "p"}
    body = {"items": [{**key, "colour": {"a": 1}}], "total": 1}
    answer = Answer(status=200, headers={}, body=json.dumps(body).encode())
    (found,) = finish(requests.keys("p"), answer).items
    assert found.id == "key_1"
    del key["role"]
    body = {"items": [{**key, "colour": 1}]}
    with pytest.raises(InvalidSpec, match="missing role"):
        finish(requests.keys("p"), Answer(status=200, headers={}, body=json.dumps(body).encode()))


def test_answers_are_decoded_strictly():
    with pytest.raises(InvalidSpec):
        finish(requests.status(), Answer(status=200, headers={}, body=b"{}"))
    with pytest.raises(InvalidSpec, match="no JSON"):
        parse_json(b"\xff")


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_names_that_name_nothing_never_become_paths(name):
    with pytest.raises(InvalidRequest):
        requests.workload(name)


def test_names_are_one_segment_whatever_is_in_them():
    assert requests.workload("../status?x#y").path == "/api/v1/workloads/..%2Fstatus%3Fx%23y"
    assert requests.keys("é").path == "/api/v1/projects/%C3%A9/keys"


def test_empty_filters_are_not_sent_and_lists_are_repeated():
    call = requests.workloads("", "", ("running", "failed"), ("team", "a"), ("", 5))
    assert str(query(call)) == "state=running&state=failed&label=team%3Da&limit=5"


def test_declared_objects_go_with_their_kind_and_public_form():
    objects = (Site(name="s", country="FR"), PriceBook(name="b", effective_from_ns=10**9))
    body = json.loads(requests.apply("f.yaml", objects, is_dry_run=True).body)
    assert [each["kind"] for each in body["objects"]] == ["site", "price_book"]
    assert body["objects"][1]["body"]["effective_from"] == "1970-01-01T00:00:01.000000000Z"


def test_loopback_ignores_proxies_of_the_environment():
    assert arguments(Credentials(control_url="http://127.0.0.1:1"))["trust_env"] is False
    assert arguments(Credentials(control_url="https://moulin.example"))["trust_env"] is True
    assert "authorization" not in arguments(Credentials())["headers"]

"""What comes over the wire and is not a request: refused plainly, nothing lost, nothing leaked."""

import logging
import socket
import threading
import time

import httpx
import pytest

from moulin.api import server
from moulin.api.services import ApiLimits
from moulin.domain.principal import Role
from tests.integration.api.world import running_world

SUBMIT = "/api/v1/projects/alpha/workloads"


def exchange(world, sent: bytes, *, wait_s: float = 10.0) -> bytes:
    """Send bytes and return everything that comes until the server closes or `wait_s` is over."""
    host, port = world.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=wait_s) as connection:
        connection.sendall(sent)
        received = b""
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except (TimeoutError, ConnectionResetError):
            pass
        return received


def head(world, *lines: str, path: str = SUBMIT) -> bytes:
    key = world.secret(Role.MEMBER)
    wanted = (f"POST {path} HTTP/1.1", "host: x", f"authorization: Bearer {key}", *lines)
    return "\r\n".join((*wanted, "", "")).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"name": NaN}',
        b'\xff\xfe{"name"',
        b'{"name": "\xc3\x28"}',
        b'{"name": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
    ],
)
def test_what_is_no_json_is_400_and_never_repeated_back(world, body):
    with world.client() as client:
        answer = client.post(SUBMIT, content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert "nonsense" not in answer.text


@pytest.mark.parametrize("body", [b"null", b"[]", b'"text"', b"3", b"{}"])
def test_json_of_another_shape_is_400(world, body):
    with world.client() as client:
        answer = client.post(SUBMIT, content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_spec")


def test_a_gigabyte_is_refused_before_it_is_sent(world):
    answer = exchange(world, head(world, f"content-length: {10**9}"))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert b'"code":"body_too_large"' in answer


def test_a_client_that_sends_too_much_all_the_same_sees_the_answer(world):
    with world.client() as client:
        answer = client.post(SUBMIT, content=b" " * 5_000_000)
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
        assert client.get("/api/v1/status").is_success


def test_an_endless_chunked_body_is_refused_on_the_way(world):
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    answer = exchange(world, head(world, "transfer-encoding: chunked") + chunk * 20)
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "lines",
    [
        ("content-length: 2", "transfer-encoding: chunked"),
        ("content-length: 2", "content-length: 3"),
        ("content-length: -1",),
        ("content-length: two",),
        ("bad header: x\x00y",),
    ],
)
def test_conflicting_or_broken_framing_is_refused(world, lines):
    answer = exchange(world, head(world, *lines) + b"{}", wait_s=3)
    assert answer.startswith(b"HTTP/1.1 400 ") or answer == b""


def test_a_flood_of_headers_is_cut(world):
    lines = [f"x-{number}: {'y' * 1000}" for number in range(100)]
    answer = exchange(world, head(world, *lines, "content-length: 0"))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in answer
    assert b"32768 bytes" in answer


def test_half_open_connections_are_closed(world, monkeypatch):
    monkeypatch.setattr(server, "HEADER_WAIT_S", 0.2)
    begun = time.monotonic()
    assert exchange(world, b"POST /api/v1/st", wait_s=20) == b""
    assert exchange(world, b"", wait_s=20) == b""
    assert time.monotonic() - begun < 19


def test_a_body_that_never_comes_is_answered():
    with running_world(ApiLimits(body_wait_s=0.2)) as world:
        answer = exchange(world, head(world, "content-length: 10") + b"{", wait_s=20)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"did not come" in answer


@pytest.mark.parametrize(
    "credential",
    ["", "Bearer", "Basic abc", "Bearer mk_short", "Bearer " + "x" * 5000, "mk_\u00e9"],
)
def test_every_wrong_credential_has_one_answer(world, credential):
    headers = {"authorization": credential.encode("latin-1")}
    answer = httpx.get(f"{world.url}/api/v1/status", headers=headers, trust_env=False)
    assert answer.status_code == 401
    problem = answer.json()
    assert problem["details"] == {}
    assert problem["detail"] == "identify the caller: no valid API key was shown"


def test_expired_and_revoked_keys_answer_like_unknown_ones_and_are_counted(world):
    expired = world.issue(Role.MEMBER, "alpha", expires_at_ns=1)
    revoked = world.issue(Role.MEMBER, "alpha", revoked_at_ns=1)
    answers = []
    for secret in (expired, revoked):
        bearer = {"authorization": f"Bearer {secret}"}
        found = httpx.get(f"{world.url}/api/v1/status", headers=bearer, trust_env=False).json()
        del found["request_id"]
        answers.append(found)
    assert answers[0] == answers[1]
    page = httpx.get(f"{world.url}/metrics", trust_env=False).text
    assert 'moulin_api_rejected_keys_total{cause="expired"} 1' in page
    assert 'moulin_api_rejected_keys_total{cause="revoked"} 1' in page


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/nothing", 404),
        ("GET", "/api/v2/status", 404),
        ("PUT", "/api/v1/status", 405),
        ("GET", "/api/v1/workloads?limit=0", 400),
        ("GET", "/api/v1/workloads?limit=1e3", 400),
        ("GET", "/api/v1/workloads?state=dead", 400),
        ("GET", "/api/v1/workloads/..%2f..%2fetc", 404),
        ("GET", "/api/v1/workloads/job_1", 400),
        ("GET", "/api/v1/events?after=-1", 400),
        ("GET", "/api/v1/receipts?cursor=%00", 400),
        ("GET", "/api/v1/models/giant", 400),
    ],
)
def test_routes_and_parameters_that_are_none(world, method, path, status):
    with world.client() as client:
        answer = client.request(method, path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json()) >= {"type", "title", "status", "detail", "code", "hint"}


def test_a_bug_is_told_without_its_contents_and_logged_without_the_body(world, monkeypatch, caplog):
    def broken(wanted):
        raise RuntimeError(f"no row for {wanted.name}")

    monkeypatch.setattr(world.standin.store, "workloads", broken)
    with caplog.at_level(logging.DEBUG), world.client() as client:
        answer = client.get("/api/v1/workloads", params={"name": "hush"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "hush" not in answer.text
    logged = "\n".join(
        record.getMessage()
        for record in caplog.records
        if record.name.startswith(("moulin", "uvicorn"))
    )
    assert answer.json()["request_id"] in logged
    assert "RuntimeError" in logged
    assert "hush" not in logged
    assert world.secret(Role.ADMIN) not in logged


def test_request_ids_are_kept_or_drawn(world):
    given = httpx.get(
        f"{world.url}/healthz", headers={"x-request-id": "mine-1"}, trust_env=False
    ).headers["x-request-id"]
    drawn = {
        httpx.get(
            f"{world.url}/healthz", headers={"x-request-id": "no good"}, trust_env=False
        ).headers["x-request-id"]
        for _ in range(2)
    }
    assert given == "mine-1"
    assert len(drawn) == 2
    assert all(each.startswith("req_") for each in drawn)


def test_problems_say_their_language(world):
    answer = httpx.get(
        f"{world.url}/api/v1/status", headers={"accept-language": "fr, en;q=0.5"}, trust_env=False
    )
    assert answer.headers["content-language"] == "en"


def test_too_many_event_streams_are_refused():
    with (
        running_world(ApiLimits(streams_max=1)) as world,
        world.client() as client,
        client.stream("GET", "/api/v1/events") as first,
    ):
        lines = first.iter_lines()
        assert next(lines).startswith("id:")
        second = client.get("/api/v1/events")
    assert (second.status_code, second.json()["retryable"]) == (429, True)
    assert second.headers["retry-after"] == "1"


def test_a_control_plane_that_does_not_answer_is_a_timeout_that_may_be_repeated():
    with running_world(ApiLimits(answer_wait_s=0.2)) as world:
        world.standin.is_stopping = True
        time.sleep(0.2)
        with world.client() as client:
            answer = client.get("/api/v1/status")
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert answer.json()["retryable"] is True


def test_callers_are_told_when_the_control_plane_ends_before_it_answers():
    with running_world() as world, world.client() as client:
        world.standin.is_stopping = True
        time.sleep(0.2)
        threading.Timer(0.3, world.server.stop).start()
        answer = client.get("/api/v1/status")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.json()["retryable"] is True


def test_a_full_inbox_is_503_and_may_be_repeated():
    with running_world() as world:
        world.standin.inbox.close()
        with world.client() as client:
            answer = client.get("/api/v1/status")
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")

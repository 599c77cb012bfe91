"""Replicas that say where they serve: each for itself, while it lives, and for half a minute."""

import time

import httpx
import pytest

from moulin.app.registrations import RegistrationBook
from moulin.domain.ids import AttemptId
from moulin.domain.principal import Role
from moulin.domain.registration import TTL_S, Registration, RegistrationPage
from moulin.domain.wire import decode
from moulin.identity.registrations import registration_key
from tests.integration.api.world import PEPPER

# In these tests first generations have ended, later ones live.
LIVE, ENDED = AttemptId("end_1.u0.g2"), AttemptId("end_1.u0.g1")
WORD = {"model": "tiny", "address": "gpu-7:41000", "started_at_ns": "1790000000000000000"}


def book(world) -> RegistrationBook:
    return world.app.state.moulin.services.registrations


def say(world, attempt, key, *, method="PUT", body=WORD) -> httpx.Response:
    url = f"{world.url}/api/v1/registrations/{attempt}"
    headers = {"authorization": f"Bearer {key}"} if key else {}
    sent = body if method == "PUT" else None
    return httpx.request(method, url, headers=headers, json=sent, trust_env=False)


def test_a_replica_is_believed_for_half_a_minute_each_time(world):
    key = registration_key(PEPPER, LIVE)
    before_ns = time.time_ns()
    answers = [say(world, LIVE, key) for _ in range(2)]
    first, second = (decode(Registration, answer.json()) for answer in answers)
    assert first.address == "gpu-7:41000"
    assert before_ns < first.expires_at_ns - TTL_S * 10**9 < second.expires_at_ns - TTL_S * 10**9
    assert first.heartbeat_s * 2 < TTL_S
    assert book(world).of(LIVE) == second
    assert say(world, LIVE, key, method="DELETE").is_success
    gone = book(world).of(LIVE)
    assert gone is not None
    assert gone.expires_at_ns <= time.time_ns()


def test_an_operator_sees_them_and_no_key(world):
    key = registration_key(PEPPER, LIVE)
    say(world, LIVE, key)
    with world.client(Role.OPERATOR) as client:
        answer = client.get("/api/v1/registrations")
    page = decode(RegistrationPage, answer.json())
    assert [(each.attempt, each.model) for each in page.items] == [(LIVE, "tiny")]
    assert key not in answer.text


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_no_other_key_will_do(world, method):
    others = [
        "",
        registration_key(PEPPER, AttemptId("end_1.u0.g3")),
        registration_key(b"another factory", LIVE),
        "x",
        *(world.secret(role) for role in Role),
    ]
    for key in others:
        answer = say(world, LIVE, key, method=method)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_an_attempt_that_ended_is_not_heard(world):
    answer = say(world, ENDED, registration_key(PEPPER, ENDED))
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert book(world).of(ENDED) is None


@pytest.mark.parametrize("address", ["", "gpu-7", "gpu-7:0", "gpu-7:99999", "a b:80", "x:80\r\n"])
def test_what_is_no_address_is_refused(world, address):
    key = registration_key(PEPPER, LIVE)
    assert say(world, LIVE, key, body={**WORD, "address": address}).status_code == 400


@pytest.mark.parametrize("body", [{}, [], {**WORD, "more": 1}, {**WORD, "address": 3}])
def test_what_is_no_registration_is_refused(world, body):
    answer = say(world, LIVE, registration_key(PEPPER, LIVE), body=body)
    assert answer.status_code == 400

"""Issuing, listing and revoking keys over HTTP."""

import httpx
import pytest

from moulin.domain.control import KeyIssued
from moulin.domain.principal import Role
from moulin.domain.wire import decode
from moulin.identity import is_well_formed

KEYS = "/api/v1/projects/alpha/keys"


def test_a_new_key_works_at_once_and_no_longer_when_revoked(world):
    with world.client(Role.ADMIN) as client:
        answer = client.post(KEYS, json={"name": "robot", "role": "viewer"})
        assert answer.status_code == 201
        assert answer.headers["cache-control"] == "no-store"
        issued = decode(KeyIssued, answer.json())
        bearer = {"authorization": f"Bearer {issued.secret}"}
        before = httpx.get(f"{world.url}/api/v1/status", headers=bearer, trust_env=False)
        revoked = client.delete(f"/api/v1/keys/{issued.key.id}").json()
        after = httpx.get(f"{world.url}/api/v1/status", headers=bearer, trust_env=False)
    assert is_well_formed(issued.secret)
    assert (issued.key.role, issued.key.project, issued.key.organisation) == (
        Role.VIEWER,
        "alpha",
        "acme",
    )
    assert (before.status_code, after.status_code) == (200, 401)
    assert revoked["revoked_at"] is not None


def test_neither_secret_nor_digest_is_ever_shown_again(world):
    with world.client(Role.ADMIN) as client:
        issued = decode(KeyIssued, client.post(KEYS, json={"name": "robot"}).json())
        listed = client.get(KEYS).text
        events = client.get("/api/v1/events", params={"follow": "false"}).text
    digests = list(world.standin.keyring.by_digest)
    assert issued.key.id in listed
    assert issued.key.id in events
    for text in (listed, events):
        assert issued.secret not in text
        assert not any(digest in text for digest in digests)


@pytest.mark.parametrize("role", ["operator", "gateway"])
def test_a_project_issues_no_key_of_the_factory(world, role):
    for caller in (Role.ADMIN, Role.OPERATOR):
        with world.client(caller) as client:
            answer = client.post(KEYS, json={"name": "k", "role": role})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def test_an_operator_issues_keys_in_any_project_there_is(world):
    with world.client(Role.OPERATOR) as client:
        issued = client.post("/api/v1/projects/beta/keys", json={"name": "k"}).json()
        missing = client.post("/api/v1/projects/gamma/keys", json={"name": "k"})
    assert issued["key"]["organisation"] == "biota"
    assert missing.status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"name": ""},
        {"name": "k", "role": "king"},
        {"name": "k", "countries": ["fr"]},
        {"name": "k", "expires_at": "soon"},
        {"name": "k", "expires_at": "9" * 40},
        {"name": "k", "expires_at": None, "expires_at_ns": "0"},
        {"name": "k", "secret": "mine"},
    ],
)
def test_keys_that_cannot_be(world, body):
    with world.client(Role.ADMIN) as client:
        answer = client.post(KEYS, json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_spec")


def test_a_key_is_limited_changed_and_read(world):
    wanted = {
        "name": "course",
        "role": "inference",
        "labels": {"team": "biology"},
        "rate": {"requests_per_minute": 60},
        "allowance": {"amount_neur": "20000000000", "period": "month", "alerts_ppm": [800000]},
    }
    with world.client(Role.ADMIN) as client:
        issued = client.post(KEYS, json=wanted).json()["key"]
        change = {"models": ["tiny"], "rate": {"tokens_per_minute": 5000}}
        changed = client.patch(f"/api/v1/keys/{issued['id']}", json=change).json()
        read = client.get(f"/api/v1/keys/{issued['id']}").json()
        ending = client.patch(
            f"/api/v1/keys/{issued['id']}", json={"expires_at": "2030-01-01T00:00:00Z"}
        )
        unending = client.patch(f"/api/v1/keys/{issued['id']}", json={"never_expires": True})
    assert issued["rate"]["requests_per_minute"] == 60
    assert issued["allowance"]["period"] == "month"
    assert ending.json()["expires_at"].startswith("2030-01-01")
    assert unending.json()["expires_at"] is None
    assert changed == read
    assert (read["models"], read["rate"]["tokens_per_minute"]) == (["tiny"], 5000)
    assert read["rate"]["requests_per_minute"] == 0
    assert (read["labels"], read["allowance"]) == ({"team": "biology"}, issued["allowance"])


def test_a_rotation_gives_another_secret_of_the_same_line(world):
    with world.client(Role.ADMIN) as client:
        old = decode(KeyIssued, client.post(KEYS, json={"name": "robot"}).json())
        answer = client.post(
            f"/api/v1/keys/{old.key.id}/rotate", json={"old_until_at": "2030-01-01T00:00:00Z"}
        )
        new = decode(KeyIssued, answer.json())
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    assert new.secret != old.secret
    assert (new.key.origin, new.key.name) == (old.key.id, "robot")
    bearer = {"authorization": f"Bearer {new.secret}"}
    status = httpx.get(f"{world.url}/api/v1/status", headers=bearer, trust_env=False)
    assert status.status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"rate": {"requests_per_minute": -1}},
        {"allowance": {"alerts_ppm": [0]}},
        {"allowance": {"period": "year"}},
        {"expires_at": "never"},
    ],
)
def test_changes_that_cannot_be(world, body):
    with world.client(Role.ADMIN) as client:
        key = client.post(KEYS, json={"name": "robot"}).json()["key"]["id"]
        assert client.patch(f"/api/v1/keys/{key}", json=body).status_code == 400


def test_nobody_is_told_of_alerts_where_no_operator_said_so(world):
    with world.client(Role.ADMIN) as client:
        webhook = client.get("/api/v1/projects/alpha/webhook").json()
        allowances = client.get("/api/v1/projects/alpha/allowances").json()["items"]
    assert webhook == {"url": "", "secret": ""}
    assert allowances[0]["scope"] == "project"

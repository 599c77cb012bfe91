"""Submitting and the rest of a workload's routes over HTTP."""

import base64

import orjson
import pytest

from moulin.domain.control import Explanation, Trial, WorkloadPage
from moulin.domain.principal import Role
from moulin.domain.views import WorkloadView
from moulin.domain.wire import decode, encode_public
from moulin.domain.workload import EndpointSpec, Resources, TaskTemplate, WorkloadKind
from tests.integration.api.world import job_spec

SUBMIT = "/api/v1/projects/alpha/workloads"


def test_submit_records_owner_actor_and_a_sortable_id(world):
    spec = job_spec("first", resources=Resources(memory_bytes=10**17 + 1))
    with world.client(Role.MEMBER) as client:
        answer = client.post(SUBMIT, json=encode_public(spec))
        assert answer.status_code == 201
        view = decode(WorkloadView, answer.json())
        assert client.get(answer.headers["location"]).json() == answer.json()
    assert (view.project, view.organisation, view.spec) == ("alpha", "acme", spec)
    assert view.id.startswith("job_")
    command = world.standin.submitted[-1]
    assert (command.id, command.principal.role) == (view.id, Role.MEMBER)


def test_amounts_are_text_and_times_rfc3339(world):
    with world.client() as client:
        body = client.get(f"/api/v1/workloads/{world.workloads['alpha']}").json()
    assert body["reserved_neur"] == str(2**60)
    assert body["submitted_at"] == "2026-09-21T14:13:20.000000000Z"
    assert body["ended_at"] is None
    assert "submitted_at_ns" not in body


def test_a_repeated_key_gives_the_first_answer_and_another_body_a_conflict(world):
    with world.client() as client:
        first = client.post(
            SUBMIT, json=encode_public(job_spec()), headers={"idempotency-key": "k1"}
        )
        again = client.post(
            SUBMIT, json=encode_public(job_spec()), headers={"idempotency-key": "k1"}
        )
        other = client.post(
            SUBMIT, json=encode_public(job_spec("other")), headers={"idempotency-key": "k1"}
        )
    assert first.json() == again.json()
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_mismatch")


def test_the_same_key_in_another_project_is_another_request(world):
    with world.client(Role.OPERATOR) as client:
        ids = {
            client.post(
                f"/api/v1/projects/{project}/workloads",
                json=encode_public(job_spec()),
                headers={"idempotency-key": "shared"},
            ).json()["id"]
            for project in ("alpha", "beta")
        }
    assert len(ids) == 2


def test_a_refusal_comes_back_with_its_numbers(world):
    with world.client() as client:
        answer = client.post(SUBMIT, json=encode_public(job_spec(labels={"test": "poor"})))
    assert (answer.status_code, answer.headers["content-type"]) == (402, "application/problem+json")
    problem = answer.json()
    assert problem["code"] == "budget_exceeded"
    assert problem["hint"] == "earn some"
    assert problem["details"] == {"left_eur": "0"}
    assert problem["retryable"] is False
    assert problem["request_id"] == answer.headers["x-request-id"]


def test_try_says_where_and_records_nothing(world):
    before = world.standin.store.last_sequence()
    with world.client(Role.VIEWER) as client:
        trial = decode(Trial, client.post(f"{SUBMIT}/try", json=encode_public(job_spec())).json())
    assert trial.nodes == ("n0",)
    assert trial.reserved_neur == 2**60
    assert world.standin.store.last_sequence() == before


def test_pages_hold_each_workload_once(world):
    with world.client() as client:
        for number in range(5):
            client.post(SUBMIT, json=encode_public(job_spec(f"page-{number}")))
        whole = decode(WorkloadPage, client.get("/api/v1/workloads", params={"limit": 1000}).json())
        seen, cursor = [], ""
        while True:
            page = decode(
                WorkloadPage,
                client.get("/api/v1/workloads", params={"limit": 2, "cursor": cursor}).json(),
            )
            seen += [view.id for view in page.items]
            cursor = page.next
            if not cursor:
                break
    assert seen == [view.id for view in whole.items]
    assert len(set(seen)) == len(seen) >= 5


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"name": "wanted"}, 1),
        ({"label": "team=a"}, 1),
        ({"label": "team=b"}, 0),
        ({"kind": "endpoint", "name": "wanted"}, 0),
        ({"state": ["running", "failed"], "name": "wanted"}, 1),
        ({"state": "failed", "name": "wanted"}, 0),
    ],
)
def test_filters(world, parameters, expected):
    with world.client() as client:
        client.post(
            SUBMIT,
            json=encode_public(job_spec("wanted", labels={"team": "a"})),
            headers={"idempotency-key": "wanted"},
        )
        found = client.get("/api/v1/workloads", params=parameters).json()["items"]
    assert len(found) == expected


def test_stop_why_and_logs(world):
    with world.client() as client:
        made = client.post(SUBMIT, json=encode_public(job_spec())).json()["id"]
        why = decode(Explanation, client.get(f"/api/v1/workloads/{made}/why").json())
        assert why.reasons[0].parameters == {"count": "3"}
        first = client.get(f"/api/v1/workloads/{made}/logs", params={"limit": 6}).json()
        rest = client.get(
            f"/api/v1/workloads/{made}/logs", params={"cursor": first["next_cursor"]}
        ).json()
        stopped = client.post(f"/api/v1/workloads/{made}/stop").json()
        none = client.get(f"/api/v1/workloads/{made}/logs", params={"rank": 1})
    data = base64.b64decode(first["data"]) + base64.b64decode(rest["data"])
    assert data == b"hello \xff world\n"
    assert (first["is_end"], rest["is_end"]) == (False, True)
    assert stopped["state"] == "cancelled"
    assert none.status_code == 404


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"nodes": 0}, "nodes"),
        ({"nodes": 10**9}, "nodes"),
        ({"priority": 101}, "priority"),
        ({"priority": "high"}, "priority"),
        ({"nodes": True}, "nodes"),
        ({"nodes": 1.5}, "nodes"),
        ({"resources": {"memory_bytes": "1" + "0" * 30}}, "resources.memory_bytes"),
        ({"resources": {"cpu_milli": -1}}, "resources.cpu_milli"),
        ({"resources": {"gpus": 1}}, "resources"),
        ({"where": {"countries": ["France"]}}, "where.countries.0"),
        ({"labels": {"a": "b\u0000"}}, "labels.a"),
        ({"labels": {"a": "b\n"}}, "labels.a"),
        ({"labels": {str(n): "x" for n in range(65)}}, "labels"),
        ({"task": {"command": []}}, "task.command"),
        ({"task": {"command": ["a\u0000"]}}, "task.command.0"),
        ({"task": {"command": ["a"], "env": {"A=B": "c"}}}, "task.env: a key"),
        ({"task": None}, "task"),
        ({"endpoint": {"model": "m"}}, "endpoint"),
        ({"kind": "quantum"}, "kind"),
        ({"time_limit_s": 10**12}, "time_limit_s"),
    ],
)
def test_what_no_factory_could_mean_is_refused_with_its_place(world, changes, path):
    body = {**encode_public(job_spec()), **changes}
    before = len(world.standin.submitted)
    with world.client() as client:
        answer = client.post(SUBMIT, content=orjson.dumps(body))
    assert answer.status_code == 400, answer.text
    problem = answer.json()
    assert problem["code"] == "invalid_spec"
    assert problem["details"]["path"] == path
    assert problem["hint"] or "expected" in problem["detail"]
    assert len(world.standin.submitted) == before


def test_an_unknown_key_is_answered_with_the_nearest(world):
    body = {**encode_public(job_spec()), "priorty": 3}
    with world.client() as client:
        problem = client.post(SUBMIT, json=body).json()
    assert problem["hint"] == "did you mean priority?"


@pytest.mark.parametrize(
    ("kind", "parts", "is_right"),
    [
        (WorkloadKind.ENDPOINT, {"task": None, "endpoint": EndpointSpec(model="m")}, True),
        (WorkloadKind.ENDPOINT, {"task": None}, False),
        (WorkloadKind.LEASE, {"task": None}, True),
        (WorkloadKind.LEASE, {}, True),
        (WorkloadKind.SESSION, {"task": None, "endpoint": EndpointSpec(model="m")}, False),
        (WorkloadKind.JOB, {"task": TaskTemplate(command=("x" * 1000,))}, True),
    ],
)
def test_each_kind_has_its_part(world, kind, parts, is_right):
    with world.client() as client:
        answer = client.post(SUBMIT, json=encode_public(job_spec(kind=kind, **parts)))
    assert answer.status_code == (201 if is_right else 400), answer.text

"""Leases over HTTP: how they are shown, and orders that are none."""

import pytest

from moulin.domain.lease import LeaseWanted
from moulin.domain.wire import encode_public
from moulin.domain.workload import LeaseSpec, WorkloadKind
from moulin.sdk import Credentials, Moulin
from tests.integration.api.lease_world import KEY
from tests.integration.api.world import job_spec

ORDER = {"offer": "z/m", "time_limit_s": 60, "ssh_keys": [KEY]}


def test_a_lease_says_where_one_logs_in_and_until_when(world):
    lease = world.objects["alpha"]["lease"]
    with world.client() as client:
        found = client.get(f"/api/v1/leases/{lease}").json()
        listed = client.get("/api/v1/leases").json()["items"]
    assert found in listed
    assert found["nodes"][0]["login"] == {
        "host": "127.0.0.1",
        "port": 4022,
        "user": "mill",
        "host_key": KEY,
    }
    assert found["ends_at"].startswith("2026-09-21T15:13:20")


def test_a_job_is_no_lease(world):
    with world.client() as client:
        answer = client.get(f"/api/v1/leases/{world.workloads['alpha']}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "changes",
    [
        {"time_limit_s": 0},
        {"nodes": -1},
        {"name": "a b"},
        {"ssh_keys": ["x" * 9000]},
        {"warn_s": -1},
        {"offer": ""},
        {"hours": 3},
    ],
)
def test_what_makes_no_order(world, changes):
    with world.client() as client:
        answer = client.post("/api/v1/projects/alpha/leases", json={**ORDER, **changes})
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize(
    ("parts", "is_right"),
    [
        ({"kind": WorkloadKind.LEASE, "task": None}, True),
        ({"kind": WorkloadKind.LEASE}, False),
        ({"kind": WorkloadKind.JOB}, False),
    ],
)
def test_people_log_in_where_no_task_runs(world, parts, is_right):
    spec = job_spec(lease=LeaseSpec(ssh_keys=(KEY,)), **parts)
    with world.client() as client:
        answer = client.post("/api/v1/projects/alpha/workloads", json=encode_public(spec))
    assert answer.status_code == (201 if is_right else 400), answer.text


def test_leases_by_the_sdk(world):
    credentials = Credentials(
        control_url=world.url, api_key=world.secrets["admin", "beta"], project="beta"
    )
    with Moulin(credentials=credentials) as client:
        (offer,) = client.leases.offers()
        assert (offer.name, offer.free, offer.node_hour_neur) == ("z/m", 1, 2**60)
        made = client.leases.order(LeaseWanted(offer=offer.name, time_limit_s=60, ssh_keys=(KEY,)))
        assert made.state == "ordered"
        lease = client.leases.get(world.objects["beta"]["lease"])
        assert lease in client.leases.every()
        assert client.leases.wait(lease.id).id == lease.id
        assert client.leases.extend(lease.id, 60).time_limit_s == 3660
        assert client.leases.release(lease.id).state == "released"

"""Every route × every role × own and another's object: who gets what.

The routes come from the application, the expectations from the table below: a route without a row
fails. Statuses: 2xx is `ok`; another tenant's object answers as one that does not exist.
"""

import secrets
from dataclasses import dataclass
from typing import Any, Final

import httpx
import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute

from moulin.api import status
from moulin.api.access import Allow
from moulin.api.app import ROUTERS
from moulin.api.describe import PREFIX
from moulin.domain.ids import make_id
from moulin.domain.principal import Role
from moulin.domain.snapshot import SyncRequest
from moulin.domain.wire import encode_public
from moulin.identity import PERMISSIONS, Action, Reach
from tests.integration.api.lease_world import KEY
from tests.integration.api.objects_world import CONTENT
from tests.integration.api.world import START_NS, World, job_spec

OPERATOR: Final = frozenset({Role.OPERATOR})
GATEWAY: Final = frozenset({Role.GATEWAY})
ADMINS: Final = OPERATOR | {Role.ADMIN}
MEMBERS: Final = ADMINS | {Role.MEMBER}
VIEWERS: Final = MEMBERS | {Role.VIEWER}
# What tenants keep is theirs: whoever may ask a model, not the operator.
# Whoever may run a job in a project, where its secrets can be read, and not the operator.
HOLDERS: Final = frozenset({Role.ADMIN, Role.MEMBER})
KEEPERS: Final = frozenset({Role.ADMIN, Role.MEMBER, Role.INFERENCE})

SPEC: Final = encode_public(job_spec())
LEASE: Final = {"offer": "z/m", "time_limit_s": 60, "ssh_keys": [KEY]}
SYNC: Final = encode_public(SyncRequest(gateway="g", epoch=1, records_epoch=1))
ACCEPT: Final = {"model": "gated", "licence": "gated-terms"}
BATCH: Final = {"endpoint": "/v1/chat/completions", "requests": [{"body": {}}]}
APPLY: Final = {"managed_by": "f", "objects": [], "is_dry_run": True}


@dataclass(frozen=True)
class Row:
    """Who may use a route at all, and whether it names an object that somebody owns."""

    roles: frozenset[Role]
    owned: bool = False
    body: Any = None
    form: Any = None


OPEN: Final = {("GET", "/healthz"), ("GET", "/metrics")}
# For replicas alone, each with the key of its own attempt: test_registrations.py.
OF_REPLICAS: Final = {
    ("PUT", "/registrations/{attempt}"),
    ("DELETE", "/registrations/{attempt}"),
}
MATRIX: Final = {
    ("GET", "/openapi.json"): Row(VIEWERS),
    ("GET", "/status"): Row(VIEWERS),
    ("GET", "/nodes"): Row(VIEWERS),
    ("POST", "/nodes/{node}/quarantine"): Row(OPERATOR, body={}),
    ("POST", "/nodes/{node}/release"): Row(OPERATOR, body={}),
    ("POST", "/nodes/{node}/check"): Row(OPERATOR),
    ("POST", "/projects/{project}/workloads"): Row(MEMBERS, owned=True, body=SPEC),
    ("POST", "/projects/{project}/workloads/try"): Row(VIEWERS, owned=True, body=SPEC),
    ("GET", "/workloads"): Row(VIEWERS),
    ("GET", "/workloads/{workload}"): Row(VIEWERS, owned=True),
    ("POST", "/workloads/{workload}/stop"): Row(MEMBERS, owned=True),
    ("POST", "/projects/{project}/workloads/stop"): Row(MEMBERS, owned=True, body={"name": "x"}),
    ("POST", "/workloads/{workload}/adjust"): Row(MEMBERS, owned=True, body={}),
    ("GET", "/workloads/{workload}/elements"): Row(VIEWERS, owned=True),
    ("POST", "/workloads/{workload}/elements/stop"): Row(MEMBERS, owned=True, body={"indices": []}),
    ("POST", "/workloads/{workload}/scale"): Row(MEMBERS, owned=True, body={"replicas": 1}),
    ("POST", "/workloads/{workload}/rollout"): Row(MEMBERS, owned=True, body={}),
    ("GET", "/workloads/{workload}/why"): Row(VIEWERS, owned=True),
    ("GET", "/workloads/{workload}/logs"): Row(VIEWERS, owned=True),
    ("GET", "/projects/{project}/leases/offers"): Row(VIEWERS, owned=True),
    ("POST", "/projects/{project}/leases"): Row(MEMBERS, owned=True, body=LEASE),
    ("GET", "/leases"): Row(VIEWERS),
    ("GET", "/leases/{lease}"): Row(VIEWERS, owned=True),
    ("POST", "/leases/{lease}/extend"): Row(MEMBERS, owned=True, body={"by_s": 60}),
    ("POST", "/leases/{lease}/release"): Row(MEMBERS, owned=True),
    ("GET", "/events"): Row(VIEWERS),
    ("GET", "/factory"): Row(VIEWERS),
    ("POST", "/factory/apply"): Row(OPERATOR, body=APPLY),
    ("POST", "/projects/{project}/keys"): Row(ADMINS, owned=True, body={"name": "k"}),
    ("GET", "/projects/{project}/keys"): Row(ADMINS, owned=True),
    ("DELETE", "/keys/{key}"): Row(ADMINS, owned=True),
    ("GET", "/keys/{key}"): Row(ADMINS, owned=True),
    ("PATCH", "/keys/{key}"): Row(ADMINS, owned=True, body={}),
    ("POST", "/keys/{key}/rotate"): Row(ADMINS, owned=True, body={}),
    ("GET", "/registrations"): Row(OPERATOR),
    ("GET", "/projects/{project}/allowances"): Row(VIEWERS, owned=True),
    ("GET", "/projects/{project}/webhook"): Row(ADMINS, owned=True),
    ("GET", "/receipts"): Row(VIEWERS),
    ("GET", "/receipts/{receipt}"): Row(VIEWERS, owned=True),
    ("GET", "/receipts/{receipt}/file"): Row(VIEWERS, owned=True),
    ("GET", "/usage"): Row(VIEWERS),
    ("GET", "/spend"): Row(VIEWERS),
    ("GET", "/intervals"): Row(OPERATOR),
    ("GET", "/evidence/checkpoint"): Row(VIEWERS),
    ("GET", "/evidence/public-key"): Row(VIEWERS),
    ("GET", "/models"): Row(VIEWERS),
    ("GET", "/models/{model}"): Row(VIEWERS),
    ("POST", "/models/{model}/fetch"): Row(MEMBERS, body={}),
    ("GET", "/models/{model}/fit"): Row(VIEWERS),
    ("GET", "/models/{model}/price"): Row(VIEWERS),
    ("POST", "/projects/{project}/licences"): Row(ADMINS, owned=True, body=ACCEPT),
    ("POST", "/files"): Row(KEEPERS, form={"file": ("a.jsonl", b"{}"), "purpose": (None, "batch")}),
    ("GET", "/files"): Row(KEEPERS),
    ("GET", "/files/{file}"): Row(KEEPERS, owned=True),
    ("GET", "/files/{file}/content"): Row(KEEPERS, owned=True),
    ("DELETE", "/files/{file}"): Row(KEEPERS, owned=True),
    ("POST", "/responses"): Row(KEEPERS, body={"id": "x"}),
    ("GET", "/responses/{response}"): Row(KEEPERS, owned=True),
    ("DELETE", "/responses/{response}"): Row(KEEPERS, owned=True),
    ("POST", "/batches"): Row(KEEPERS, body=BATCH),
    ("GET", "/batches"): Row(KEEPERS),
    ("GET", "/batches/{batch}"): Row(KEEPERS, owned=True),
    ("POST", "/batches/{batch}/cancel"): Row(KEEPERS, owned=True),
    ("DELETE", "/batches/{batch}"): Row(KEEPERS, owned=True),
    ("GET", "/projects/{project}/bundles"): Row(VIEWERS, owned=True),
    ("GET", "/projects/{project}/bundles/{digest}"): Row(VIEWERS, owned=True),
    ("PUT", "/projects/{project}/bundles/{digest}"): Row(
        MEMBERS, owned=True, form={"file": ("bundle", CONTENT)}
    ),
    ("DELETE", "/projects/{project}/bundles/{digest}"): Row(MEMBERS, owned=True),
    ("GET", "/projects/{project}/secrets"): Row(HOLDERS, owned=True),
    ("PUT", "/projects/{project}/secrets/{name}"): Row(HOLDERS, owned=True, body={"value": "x"}),
    ("DELETE", "/projects/{project}/secrets/{name}"): Row(HOLDERS, owned=True),
    ("POST", "/secrets/rotate"): Row(OPERATOR),
    ("POST", "/gateway/sync"): Row(GATEWAY, body=SYNC),
}
# Routes whose lists can be asked for a project by name.
FILTERED: Final = ("/workloads", "/leases", "/receipts", "/usage", "/spend", "/events")
CASES: Final = sorted(MATRIX)


def routes() -> dict[tuple[str, str], APIRoute]:
    found = {}
    for router in (status.open_router, *ROUTERS):
        for route in router.routes:
            if isinstance(route, APIWebSocketRoute):
                continue  # one, held to the same in test_sessions.py
            assert isinstance(route, APIRoute)
            for method in route.methods or ():
                found[method, route.path] = route
    return found


def guard_of(route: APIRoute) -> Allow | None:
    guards = [each.call for each in route.dependant.dependencies if isinstance(each.call, Allow)]
    assert len(guards) <= 1
    return guards[0] if guards else None


def ask(world: World, case: tuple[str, str], role: Role, owner: str) -> httpx.Response:
    method, path = case
    names = {
        "project": owner,
        "workload": world.workloads[owner],
        "receipt": world.receipts[owner],
        "key": world.keys[owner],
        "model": "tiny",
        "node": "n0",
        **world.objects[owner],
    }
    parameters = {"follow": "false"} if path == "/events" else {}
    if case == ("POST", "/responses"):
        parameters = {"id": make_id("resp", START_NS, secrets.randbits(80))}
    row = MATRIX[case]
    with world.client(role) as client:
        return client.request(
            method,
            PREFIX + path.format(**names),
            json=row.body,
            files=row.form,
            params=parameters,
        )


def test_every_route_has_a_row_and_one_guard():
    found = routes()
    assert set(found) == OPEN | OF_REPLICAS | set(MATRIX)
    for case, route in found.items():
        assert (guard_of(route) is None) == (case in OPEN | OF_REPLICAS), case


def test_the_document_knows_the_same_routes(world):
    with world.client() as client:
        paths = client.get(f"{PREFIX}/openapi.json").json()["paths"]
    known = {
        (method.upper(), path.removeprefix(PREFIX))
        for path, item in paths.items()
        for method in item
    }
    assert known == OPEN | OF_REPLICAS | set(MATRIX)


def test_every_action_guards_a_route_or_belongs_to_the_gateway():
    guards = [guard_of(route) for route in routes().values()]
    others = {Action.INFER, Action.WORKLOAD_ENTER}
    assert {guard.action for guard in guards if guard} == set(Action) - others


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_table_of_permissions_agrees_with_the_matrix(case):
    guard = guard_of(routes()[case])
    assert guard is not None
    allowed = {role for role in Role if PERMISSIONS[role].get(guard.action, Reach.NONE)}
    assert allowed == MATRIX[case].roles


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_own_objects(world, case, role):
    answer = ask(world, case, role, "alpha")
    if role in MATRIX[case].roles:
        assert answer.is_success, answer.text
    else:
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("case", [case for case in CASES if MATRIX[case].owned], ids=" ".join)
def test_objects_of_another_project(world, case, role):
    answer = ask(world, case, role, "beta")
    if role not in MATRIX[case].roles:
        assert answer.status_code == 403
    elif role is Role.OPERATOR:
        assert answer.is_success, answer.text
    else:
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_without_a_key(world, case):
    method, path = case
    filled = path.format(
        project="alpha",
        workload=world.workloads["alpha"],
        receipt=world.receipts["alpha"],
        key=world.keys["alpha"],
        model="tiny",
        node="n0",
        **world.objects["alpha"],
    )
    answer = httpx.request(method, world.url + PREFIX + filled, trust_env=False)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("path", FILTERED)
@pytest.mark.parametrize("role", [Role.ADMIN, Role.MEMBER, Role.VIEWER])
def test_lists_never_hold_what_is_anothers(world, path, role):
    parameters = {"follow": "false"} if path == "/events" else {}
    with world.client(role) as client:
        own = client.get(PREFIX + path, params=parameters)
        others = client.get(PREFIX + path, params={**parameters, "project": "beta"})
    assert own.is_success
    assert "alpha" in own.text
    assert "beta" not in own.text
    assert "biota" not in own.text
    assert others.status_code == 404


@pytest.mark.parametrize("path", ["/status", "/factory", "/nodes"])
def test_what_all_share_names_no_other_tenant(world, path):
    with world.client(Role.MEMBER) as client:
        assert "beta" not in client.get(PREFIX + path).text
    with world.client(Role.OPERATOR) as client:
        assert ("beta" in client.get(PREFIX + path).text) == (path != "/nodes")


def test_what_is_anothers_answers_as_what_does_not_exist(world):
    missing = world.workloads["beta"][:-1] + "Z"
    with world.client() as client:
        others = client.get(f"{PREFIX}/workloads/{world.workloads['beta']}").json()
        nothing = client.get(f"{PREFIX}/workloads/{missing}").json()
    for answer, name in ((others, world.workloads["beta"]), (nothing, missing)):
        answer["detail"] = answer["detail"].replace(name, "X")
        answer["instance"] = answer["instance"].replace(name, "X")
        answer["details"]["name"] = answer["details"]["name"].replace(name, "X")
        del answer["request_id"]
    assert others == nothing


def test_every_change_records_the_key_that_asked(world):
    key = next(
        key.id
        for key in world.standin.keyring.by_id.values()
        if key.project == "alpha" and key.role is Role.ADMIN
    )
    changing = [case for case in CASES if case[0] != "GET" and Role.ADMIN in MATRIX[case].roles]
    for case in changing:
        if case[1].endswith(("/try", "/fetch")):
            continue
        before = len(world.standin.actors)
        assert ask(world, case, Role.ADMIN, "alpha").is_success
        assert set(world.standin.actors[before:]) == {key}, case

"""Requests made up from the OpenAPI document, good and bad: never a 5xx, always the stated form.

The generator is Schemathesis; its pytest plugin is not used, as it lags behind pytest.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from moulin.api import status
from moulin.api.app import ROUTERS
from moulin.api.describe import PREFIX, document
from moulin.domain.ids import AttemptId
from moulin.domain.principal import Role
from moulin.identity.registrations import registration_key
from tests.integration.api.world import PEPPER, World, running_world

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]


def described() -> schemathesis.BaseSchema:
    app = FastAPI()
    app.include_router(status.open_router)
    for router in ROUTERS:
        app.include_router(router, prefix=PREFIX)
    return schemathesis.openapi.from_dict(document(app, "9.9"))


REPLICA = AttemptId("end_1.u0.g2")
OPERATIONS: dict[str, Any] = {}
for result in described().get_all_operations():
    assert isinstance(result, Ok)
    OPERATIONS[result.ok().label] = result.ok()
# Nothing can be wrong with a request that takes nothing.
CASES = [(label, GenerationMode.POSITIVE) for label in sorted(OPERATIONS)] + [
    (label, GenerationMode.NEGATIVE) for label in sorted(OPERATIONS) if "/api/" in label
]


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[World]:
    with running_world() as running:
        yield running


@pytest.mark.parametrize(("label", "mode"), CASES)
def test_every_operation_keeps_its_word(fuzzed, label, mode):
    operation = OPERATIONS[label]
    role = Role.GATEWAY if "/gateway/" in label else Role.OPERATOR
    if operation.definition.raw["tags"][0] in {"objects", "batches"}:
        role = Role.ADMIN
    known = {
        "project": "alpha",
        "workload": fuzzed.workloads["alpha"],
        "receipt": fuzzed.receipts["alpha"],
        "key": fuzzed.keys["alpha"],
        "model": "tiny",
        "node": "n0",
        "attempt": REPLICA,
        **fuzzed.objects["alpha"],
    }
    secret = fuzzed.secret(role)
    if label.endswith("{attempt}") and mode is GenerationMode.POSITIVE:
        secret = registration_key(PEPPER, REPLICA)
    headers = {"authorization": f"Bearer {secret}"}

    @settings(
        max_examples=40,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def try_one(case):
        if label.endswith("/events"):
            case.query = {**(case.query or {}), "follow": "false"}
        if isinstance(case.body, dict) and "wait_s" in case.body:
            case.body["wait_s"] = 0
        if mode is GenerationMode.POSITIVE and case.path_parameters:
            # Made-up names find nothing; good requests shall get further than that.
            case.path_parameters = {name: known[name] for name in case.path_parameters}
        case.call_and_validate(base_url=fuzzed.url, headers=headers, checks=CHECKS)

    try_one()

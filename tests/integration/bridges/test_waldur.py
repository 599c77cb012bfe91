"""Waldur's site agent, its own code, sells a real Moulin; Waldur itself is a stand-in of its REST API."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from moulin.domain.errors import MoulinError
from moulin.domain.workload import Resources, TaskTemplate, WorkloadKind, WorkloadSpec
from moulin.sdk import Credentials, Moulin
from tests.e2e.conftest import Shell
from tests.integration.bridges.waldur_standin import OFFERING, Waldur, serve
from tests.waldur_agent import Agent

# So small a part of a CPU hour that a second of a job is seen in two decimals.
MICRO = 0.000001
pytestmark = pytest.mark.slow
COMPONENTS: dict[str, dict[str, Any]] = {
    "eur": {"measured_unit": "EUR", "accounting_type": "limit"},
    "cpu": {"measured_unit": "cores", "accounting_type": "limit"},
    "cpu_hours": {
        "measured_unit": "µh",
        "accounting_type": "usage",
        "unit_factor_reporting": MICRO,
    },
    "kwh": {"measured_unit": "µkWh", "accounting_type": "usage", "unit_factor_reporting": MICRO},
}


@pytest.fixture
def mill(tmp_path):
    opened = Shell(tmp_path, is_inside=True)
    opened.up("--country", "FR")
    yield opened
    opened.close()


def configure(mill: Shell, port: int) -> Path:
    offering: dict[str, Any] = {
        "name": "moulin",
        "waldur_api_url": f"http://127.0.0.1:{port}/api/",
        "waldur_api_token": "token",
        "waldur_offering_uuid": OFFERING,
        "username_management_backend": "base",
        "backend_type": "moulin",
        **dict.fromkeys(
            ("order_processing_backend", "membership_sync_backend", "reporting_backend"), "moulin"
        ),
        "backend_settings": {
            "control_url": control_url(mill),
            "key_file": str(mill.data / "credentials.json"),
            "organisation": "default",
            "directory": str(mill.folder / "waldur"),
        },
        "backend_components": {
            name: {**found, "label": name} for name, found in COMPONENTS.items()
        },
    }
    path = mill.folder / "agent.yaml"
    path.write_text(yaml.safe_dump({"offerings": [offering]}))
    return path


def control_url(mill: Shell) -> str:
    return str(json.loads((mill.data / "credentials.json").read_text())["control_url"])


def member(mill: Shell, secret: str) -> Moulin:
    return Moulin(
        credentials=Credentials(control_url=control_url(mill), api_key=secret, project="alloc-1")
    )


def run_job(mill: Shell, secret: str) -> str:
    spec = WorkloadSpec(
        kind=WorkloadKind.JOB,
        name="job",
        resources=Resources(cpu_milli=500, memory_bytes=10**8),
        task=TaskTemplate(command=("sleep", "1")),
        time_limit_s=60,
    )
    with member(mill, secret) as client:
        view = client.workloads.submit(spec)
        mill.until(lambda: client.workloads.get(view.id).state == "succeeded")
        mill.until(lambda: client.workloads.get(view.id).reserved_neur == 0)
    return view.id


def declared(mill: Shell) -> list[str]:
    key = json.loads((mill.data / "credentials.json").read_text())["operator_key"]
    with Moulin(credentials=Credentials(control_url=control_url(mill), api_key=key)) as client:
        return [each.name for each in client.factory.get().items if each.kind == "project"]


def project(mill: Shell) -> dict[str, Any] | None:
    balances = mill.json("status")["balances"]
    return next((each for each in balances if each["project"] == "alloc-1"), None)


def test_an_order_becomes_a_project_with_keys_and_its_receipts_the_usage(
    mill: Shell, waldur_agent: Agent
) -> None:
    waldur = Waldur()
    server = serve(waldur)
    configuration = configure(mill, server.server_port)
    try:
        created = waldur.order("Create", {"eur": 50, "cpu": 2})
        said = waldur_agent.run(configuration, "orders")
        assert waldur.orders[created]["state"] == "done", said
        assert waldur.resource["backend_id"] == "alloc-1"
        found = project(mill)
        assert found is not None
        assert int(found["budget_neur"]) == 50 * 10**9
        secret = (mill.folder / "waldur" / "keys" / "alloc-1" / "ada").read_text().strip()
        job = run_job(mill, secret)

        waldur_agent.run(configuration, "usage")
        # Each receipt counts once, however often it is asked.
        waldur_agent.run(configuration, "usage")
        (usage,) = {json.dumps(each["usages"], sort_keys=True) for each in waldur.usages}
        amounts = {each["type"]: float(each["amount"]) for each in json.loads(usage)}
        with member(mill, secret) as client:
            usages = [receipt.usage for receipt in client.receipts.page(workload=job).items]
        held = sum(usage.quantities["cpu_milli_ms"] for usage in usages)
        energy_mj = sum(usage.energy_mj for usage in usages)
        assert amounts["cpu_hours"] == pytest.approx(held / 3.6e9 / MICRO, abs=0.01)
        assert amounts["kwh"] == pytest.approx(energy_mj / 3.6e9 / MICRO, abs=0.01)
        assert amounts["cpu_hours"] > 100

        # Paused, nothing runs; restored, all is as before.
        waldur.resource["paused"] = True
        waldur_agent.run(configuration, "members")
        with pytest.raises(MoulinError):
            run_job(mill, secret)
        waldur.resource["paused"] = False
        waldur_agent.run(configuration, "members")
        run_job(mill, secret)

        # Who leaves the team has no key any more.
        waldur.team.clear()
        waldur_agent.run(configuration, "members")
        with pytest.raises(MoulinError):
            run_job(mill, secret)
        ended = waldur.order("Terminate", {})
        said = waldur_agent.run(configuration, "orders")
        assert waldur.orders[ended]["state"] == "done", said
        assert declared(mill) == ["default"]
    finally:
        server.shutdown()
        server.server_close()

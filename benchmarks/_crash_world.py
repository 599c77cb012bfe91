"""The factory that `crash` kills: two nodes, two projects with budgets, prices, a small model."""

import secrets
from dataclasses import dataclass
from pathlib import Path

from benchmarks._moulin import Running
from moulin.app.down import operator_credentials
from moulin.catalog.entries import SMOLLM2_135M
from moulin.domain.control import KeyWanted
from moulin.domain.principal import Role
from moulin.domain.views import WorkloadView
from moulin.domain.workload import EndpointSpec, Resources, Where
from moulin.sdk import Moulin
from tests.real_model import cache_directory

LAB, SMALL = "lab", "small"
HALL, CLUSTER = "hall", "cluster"
MODEL = SMOLLM2_135M.name
ENDPOINT = "smol"
NEUR_PER_TOKEN_INPUT = 100
NEUR_PER_TOKEN_OUTPUT = 1_000
LAB_BUDGET_NEUR = 50 * 10**9
SMALL_BUDGET_NEUR = 200_000
FACTORY = """
organisations:
  uni: {title: A university, roles: [operator, tenant]}
sites:
  here: {country: FR, operator: uni, pue: {value: 1.2, source: for the run}, carbon: {location: 56.04, source: for the run}}
zones:
  hall: {site: here, state: open}
  cluster: {site: here, state: open}
machine_classes:
  this-cpu: {title: this machine, is_accelerator: false}
pools:
  machine: {zone: hall, engine: local, machine_class: this-cpu, settings: {nodes: 2}}
projects:
  lab: {organisation: uni, budget: 50}
  small: {organisation: uni, budget: 0.0002}
prices:
  list:
    from: 2020-01-01T00:00:00Z
    cpu_hour: 0.05
    million_input_tokens: 0.1
    million_output_tokens: 1
"""


@dataclass(frozen=True)
class World:
    """What the load and the judge need of a running Moulin; jobs go to `zone`."""

    running: Running
    effects: Path
    keys: dict[str, str]
    zone: str = HALL

    def client(self, project: str = "") -> Moulin:
        """Return a connection: a project's own, or the operator's."""
        credentials = operator_credentials(self.running.data, self.running.control_url)
        key = self.keys.get(project, credentials.api_key)
        return Moulin(control_url=credentials.control_url, api_key=key, project=project or LAB)


def write_factory(folder: Path, more_pools: str = "") -> Path:
    """Write the operator file, with lines of further pools, and return its path."""
    path = folder / "factory.yaml"
    path.write_text(FACTORY.replace("projects:\n", f"{more_pools}projects:\n", 1))
    return path


def lend_model(data: Path) -> None:
    """Show the tests' copy of the small model to a data directory that is not started yet."""
    models = cache_directory() / "store" / "models"
    models.mkdir(parents=True, exist_ok=True)
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    (data / "models").symlink_to(models)


def make_world(running: Running, effects: Path, zone: str = HALL) -> World:
    """Issue one key per project and return the world."""
    effects.mkdir()
    world = World(running, effects, {}, zone)
    with world.client() as operator:
        for project in (LAB, SMALL):
            wanted = KeyWanted(name=f"{project}-{secrets.token_hex(2)}", role=Role.ADMIN)
            world.keys[project] = operator.keys.create(wanted, project=project).secret
    return world


def deploy(world: World, timeout_s: float) -> WorkloadView:
    """Serve the small model with one replica and return when it is ready."""
    with world.client(LAB) as client:
        for _ in client.models.fetch(MODEL, timeout_s=timeout_s):
            pass
        view = client.endpoints.deploy(
            ENDPOINT,
            EndpointSpec(model=MODEL, context_tokens=1024, parallel_requests=2, is_public=True),
            resources=Resources(cpu_milli=500),
            where=Where(zones=(HALL,)),
            idempotency_key=ENDPOINT,
        )
        return client.endpoints.wait(view.id, timeout_s=timeout_s)

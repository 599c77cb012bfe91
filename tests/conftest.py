"""Rules for all tests: reproducible examples, and no network where a test claims to be pure."""

import os
import socket
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

from tests.containers import apptainer, podman  # noqa: F401 - fixtures for every folder
from tests.object_server import store  # noqa: F401 - the same
from tests.postgres_server import postgres_server  # noqa: F401 - a fixture for every folder
from tests.ray_cluster import ray_cluster  # noqa: F401 - the same
from tests.slurm_accounting import accounted_cluster  # noqa: F401 - the same
from tests.slurm_cluster import driven_cluster, slurm_cluster, slurm_of  # noqa: F401 - the same
from tests.slurm_rest import rest_cluster  # noqa: F401 - the same
from tests.ssh_server import ssh_server  # noqa: F401 - the same
from tests.waldur_agent import waldur_agent  # noqa: F401 - the same

HERE = Path(__file__).parent
START_S = 600.0
PURE_FOLDERS = (HERE / "unit", HERE / "property")

# `ci` is the default everywhere: the same examples on each machine, or a failure cannot be talked about.
settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("nightly", deadline=None, max_examples=5_000, print_blob=True)
settings.load_profile(os.environ.get("MOULIN_HYPOTHESIS", "ci"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give what a session starts once, and may have to fetch first, the time for it in any test's set-up."""
    for item in items:
        starts = any(item.get_closest_marker(name) for name in ("ray", "slurm", "postgres"))
        if starts and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(START_S))


class SocketUsed(AssertionError):
    """A unit or property test reached for the network."""


def _refuse(*_args: object, **_kwargs: object) -> NoReturn:
    raise SocketUsed(
        "tests under unit/ and property/ may not open sockets; move it to integration/"
    )


@pytest.fixture(autouse=True)
def _no_sockets_in_pure_tests(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if any(request.path.is_relative_to(folder) for folder in PURE_FOLDERS):
        for method in ("connect", "connect_ex", "bind", "listen", "sendto"):
            monkeypatch.setattr(socket.socket, method, _refuse)
        monkeypatch.setattr(socket, "getaddrinfo", _refuse)

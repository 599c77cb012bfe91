"""Rules for all tests: reproducible examples, and no network where a test claims to be pure."""

import os
import socket
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

from tests.containers import apptainer, podman  # noqa: F401 - fixtures for every folder
from tests.postgres_server import postgres_server  # noqa: F401 - a fixture for every folder
from tests.ray_cluster import ray_cluster  # noqa: F401 - the same
from tests.slurm_accounting import accounted_cluster  # noqa: F401 - the same
from tests.slurm_cluster import slurm_cluster  # noqa: F401 - the same
from tests.slurm_rest import rest_cluster  # noqa: F401 - the same
from tests.ssh_server import ssh_server  # noqa: F401 - the same
from tests.waldur_agent import waldur_agent  # noqa: F401 - the same

HERE = Path(__file__).parent
PURE_FOLDERS = (HERE / "unit", HERE / "property")
# Nothing in them needs a machine for itself.
SMALL_FOLDERS = (
    *PURE_FOLDERS,
    *(HERE / name for name in ("golden", "simulation")),
    *(HERE / "integration" / name for name in ("api", "app", "controlplane", "sources", "store")),
    *(HERE / "integration" / "gateway", HERE / "conformance" / "test_store.py"),
)

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


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what stays in one piece and in one process where tests run side by side.

    What starts clusters waits more than it works: it goes beside what starts whole Moulins, each alone
    of its kind. Any other file goes wherever there is room.
    """
    for item in items:
        names = {mark.name for mark in item.iter_markers()}
        place = next((name for name in ("ray", "slurm") if name in names), "")
        group = "clusters" if place else "machine"
        is_small = not place and any(item.path.is_relative_to(each) for each in SMALL_FOLDERS)
        item.add_marker(pytest.mark.xdist_group(str(item.path) if is_small else group))


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

"""Local benches for tests with real processes: with this machine's cgroup if there is one, and without."""

import pytest

from moulin.engines.local.cgroup import find_cgroup_base
from tests.conformance.engine_bench import LocalBench


@pytest.fixture(params=["cgroup", "without-cgroup"])
def bench(request, tmp_path):
    made = LocalBench(tmp_path, find_cgroup_base() if request.param == "cgroup" else None)
    yield made
    made.close()

"""One control plane per test, over a store in memory."""

import pytest

from tests.integration.controlplane.bench import Bench, factory


@pytest.fixture
def bench() -> Bench:
    """An empty factory."""
    return Bench()


@pytest.fixture
def mill(bench: Bench) -> Bench:
    """A factory of two machines with prices and two projects."""
    bench.apply(*factory())
    bench.turn()
    return bench

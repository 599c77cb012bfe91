"""One running API for the tests of a module that only read or add to it."""

from collections.abc import Iterator

import pytest

from tests.integration.api.world import World, running_world


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with running_world() as running:
        yield running

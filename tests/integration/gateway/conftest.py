"""Fixtures: one control plane, one replica and one gateway process per test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.gateway.control_fake import ControlFake
from tests.integration.gateway.plant import Plant, model_view, replica_view, snapshot
from tests.integration.gateway.replica_fake import ReplicaFake


@pytest.fixture
def replica() -> Iterator[ReplicaFake]:
    fake = ReplicaFake()
    fake.start()
    yield fake
    fake.close()


@pytest.fixture
def control(replica: ReplicaFake) -> Iterator[ControlFake]:
    fake = ControlFake(snapshot(model_view(replica_view(replica))), {"lab": 10**12})
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def plant(tmp_path: Path, control: ControlFake) -> Iterator[Plant]:
    built = Plant(tmp_path, control)
    built.start()
    yield built
    built.stop()

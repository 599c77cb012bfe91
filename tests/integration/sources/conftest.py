"""A model server for each test of this folder, and a fast kind of patience."""

from collections.abc import Iterator

import pytest

from moulin.sources.download import Patience
from moulin.sources.fetch import FetchSettings
from tests.integration.sources.model_server import ModelServer, running


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with running() as found:
        yield found


@pytest.fixture
def patience() -> Patience:
    return Patience(connect_s=5, silence_s=5, tries_max=3, backoff_s=0.0)


@pytest.fixture
def settings(server: ModelServer, patience: Patience) -> FetchSettings:
    return FetchSettings(hub_endpoint=server.url, probe_s=5, patience=patience)

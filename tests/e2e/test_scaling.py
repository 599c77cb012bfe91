"""Replicas that come and go under real load: none cut off, none left behind."""

import argparse
import os
import signal

import pytest

from benchmarks import rollout, scale_to_zero
from benchmarks._moulin import wait_for
from benchmarks._serving import MODEL, Streams, model_servers, serving
from moulin.domain.workload import EndpointSpec
from tests.real_model import cache_directory, smollm2

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(600)]
LEFT_S = 120.0


@pytest.fixture(autouse=True)
def _model_of_the_tests(monkeypatch):
    smollm2()
    monkeypatch.setenv("MOULIN_MODELS", str(cache_directory() / "store"))


def test_requests_that_find_no_replica_are_held_until_there_is_one():
    options = argparse.Namespace(rounds=1, requests=3, tokens=4, idle=1)
    result = scale_to_zero.run(options)
    assert result["failures"] == []
    assert (result["cold_requests"], result["failed"]) == (3, 0)
    assert result["cold_request_s_max"] > 0


def test_a_rollout_drops_no_stream():
    options = argparse.Namespace(streams=3, replicas=1, tokens=12, only_there=True)
    result = rollout.run(options)
    assert result["drops"] == []
    assert result["dropped"] == 0
    assert result["streams"] >= 3
    assert result["processes_after"] == 1


def test_no_replica_is_left_behind_when_processes_are_killed_while_one_drains():
    endpoint = EndpointSpec(model=MODEL, replicas=2, context_tokens=1024, drain_s=60)
    with serving(endpoint) as served:
        streams = Streams(served, tokens_max=32)
        streams.start(4)
        try:
            assert wait_for(lambda: len(streams.answers) >= 1, LEFT_S)
            served.client.endpoints.scale(served.endpoint, 1)
            for victim in ("control_pid", "gateway_pid"):
                os.kill(int(served.running.facts[victim]), signal.SIGKILL)
        finally:
            streams.finish()
        assert wait_for(lambda: served.processes() == 1, LEFT_S)
        assert wait_for(lambda: served.replicas("ready") == 1, LEFT_S)
        data = served.running.data
    assert model_servers(data) == []

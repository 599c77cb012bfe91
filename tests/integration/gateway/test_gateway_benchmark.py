"""The gateway's benchmarks run and their results have the promised shape; no figure is judged here."""

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.gateway import SHOWN

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("nginx") is None or shutil.which("wrk") is None, reason="needs nginx and wrk"
    ),
]


def benchmark(name: str, *words: str) -> dict[str, Any]:
    """Run a benchmark and return its result."""
    command = [sys.executable, "-m", "benchmarks", name, "--json", "--no-save", *words]
    finished = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "src"}
    )
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def test_the_benchmark_counts_what_the_control_plane_counts() -> None:
    # Installing the two takes minutes and half a gigabyte; what is absent is said to be.
    peers = ("vllm_router", "litellm")
    result = benchmark("gateway", "--seconds", "1", "--rounds", "1", "--without", *peers)
    assert set(result["cpu_us"]) == set(result["rps"]) == set(SHOWN)
    assert {result["absent"][peer] for peer in peers} == {"left out by request"}
    assert result["rps_ratio_litellm"] is None
    assert result["cpu_ratio_nginx"] > 0
    assert result["errors"] == 0
    assert 0 < result["requests"] <= result["requests_settled_at_control_plane"]


@pytest.mark.model
def test_streams_are_compared_with_nginx_and_with_the_engine_alone() -> None:
    words = ("--seconds", "1", "--rounds", "1", "--pairs", "2", "--tokens", "4")
    result = benchmark("streams", *words, "--concurrency", "1", "2", "--idle", "50")
    assert result["cpu_ratio_nginx_sse"] > 0
    assert set(result["tokens_ratio_engine"]) == {"1", "2"}
    for found in result["tokens_ratio_engine"].values():
        assert 0 < found["low"] <= found["ratio"] <= found["high"]
    assert "idle_1000_streams_rss_mb" in result


def test_a_soak_counts_requests_and_growth() -> None:
    result = benchmark("soak", "--minutes", "0.1")
    assert result["requests"] > 0
    assert result["errors"] == 0
    assert isinstance(result["rss_growth_mb"], float)

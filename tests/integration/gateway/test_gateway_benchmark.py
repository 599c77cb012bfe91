"""The gateway's benchmark runs and its result has the promised shape; no figure is judged here."""

import json
import os
import shutil
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("nginx") is None or shutil.which("wrk") is None, reason="needs nginx and wrk"
)
def test_the_benchmark_counts_what_the_control_plane_counts() -> None:
    command = [
        sys.executable, "-m", "benchmarks", "gateway", "--json", "--no-save",
        "--seconds", "1", "--rounds", "1",
    ]  # fmt: skip
    finished = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "src"}
    )
    result = json.loads(finished.stdout.splitlines()[-1])
    assert set(result["cpu_us"]) == {"moulin", "nginx", "envoy"}
    assert result["errors"] == 0
    assert 0 < result["requests"] <= result["requests_settled_at_control_plane"]

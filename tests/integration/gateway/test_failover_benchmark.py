"""Replicas die under load and no request fails or leaves its country; the long run is a benchmark."""

import json
import os
import subprocess
import sys


def test_no_request_fails_or_leaves_its_country_while_replicas_die() -> None:
    command = [
        sys.executable, "-m", "benchmarks", "failover", "--json", "--no-save", "--seconds", "4",
        "--home", "3", "--elsewhere", "3", "--kill", "3", "--hang", "0", "--clients", "8",
    ]  # fmt: skip
    finished = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "src"}
    )
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result["failures"] == {}
    assert result["requests"] > 50
    keys = ("killed_replicas", "failed_before_first_byte", "wrong_zone")
    assert [result[key] for key in keys] == [3, 0, 0]
    assert result["answered"] == result["settled_at_control_plane"]
    assert {"FR", "SE", "US"} >= set(result["by_country"]) > {"FR"}
    asked = result["asked_without_a_replica_at_home"]
    assert result["refused_without_a_replica_at_home"] == asked > 0

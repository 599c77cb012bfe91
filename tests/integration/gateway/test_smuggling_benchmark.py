"""Moulin and nginx frame odd requests alike; the long run is `python -m benchmarks smuggling`."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from benchmarks._smuggling_cases import case


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
def test_no_request_is_accepted_or_framed_otherwise_than_by_nginx() -> None:
    command = [
        sys.executable, "-m", "benchmarks", "smuggling", "--json", "--no-save", "--cases", "3000",
    ]  # fmt: skip
    finished = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "src"}
    )
    result = json.loads(finished.stdout.splitlines()[-1])
    assert (result["cases"], result["found"]) == (3000, [])
    assert result["divergences"] == 0
    assert result["outcomes"]["both accepted all of it"] > 300
    assert result["outcomes"]["both refused the same"] > 300


def test_a_case_is_known_by_its_seed_and_number() -> None:
    cases = [case(1, number, "mk_x") for number in range(200)]
    assert cases == [case(1, number, "mk_x") for number in range(200)]
    assert len(set(cases)) == 200
    assert cases != [case(2, number, "mk_x") for number in range(200)]

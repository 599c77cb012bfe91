"""Zero retention, small: one of each kind of request, three crashes, nothing found anywhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real_model import smollm2

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 600.0

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(PATIENCE_S)]


def test_nothing_of_what_is_asked_or_answered_is_left():
    smollm2()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "retention"),
            *("--requests", "64", "--json", "--no-save"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["requests"], result["found"], result["places"]) == (64, 0, [])
    assert result["crashes"] == ["gateway", "replica", "control"]
    assert result["answers_with_the_word"] > 0, (
        "no answer held the word: nothing was proved of them"
    )
    assert result["searched"]["database_columns"] > 0
    assert result["searched"]["unreadable"] == []
    assert sum(result["asked"].values()) == 64

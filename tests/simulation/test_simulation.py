"""The simulation itself: 50 seeds hold, every plant is found, a seed is the same in any process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.__main__ import report, wanted_seeds
from tests.simulation.plants import PLANTS, search
from tests.simulation.run import simulate

ROOT = Path(__file__).resolve().parents[2]
SEEDS = wanted_seeds(50)
GROUP = 10


@pytest.mark.parametrize("first", range(0, len(SEEDS), GROUP))
def test_every_invariant_holds(first):
    results = [simulate(seed) for seed in SEEDS[first : first + GROUP]]
    violated = [result for result in results if result.violation]
    assert not violated, "\n".join(map(report, violated))


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant):
    assert search(plant).result is not None, f"nothing noticed: {plant.__doc__}"


def test_a_seed_is_the_same_in_any_process():
    hashes = {_hash(seed="3", hash_seed=hash_seed) for hash_seed in ("0", "1", "4242")}
    assert len(hashes) == 1


def test_another_seed_is_another_history():
    assert simulate(3, steps=20).history != simulate(4, steps=20).history


def _hash(seed, hash_seed):
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", seed, "--json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["seeds"], summary["violations"]) == (1, 0)
    return summary["hash"]

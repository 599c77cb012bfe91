"""Processes of a working Moulin are killed; the whole drill is `python -m benchmarks crash`."""

import argparse
from pathlib import Path

import pytest

from benchmarks import crash
from tests.lacking import lacking
from tests.real_model import smollm2
from tests.slurm_cluster import missing_programs


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_lost_doubled_left_behind_or_charged_wrong(tmp_path: Path) -> None:
    smollm2()
    options = argparse.Namespace(
        engine="local", kills=10, seed=20, pause=1.2, no_model=False, keep=None
    )
    result = crash.drill(tmp_path, options)
    assert result["findings"] == []
    assert result["kills"] == 10
    assert set(result["kills_by_kind"]) >= {"control", "gateway", "shim"}
    assert result["tasks"] > 0
    assert result["calls_answered"] > 0
    assert result["receipts"] > 0


@pytest.mark.own_cluster
@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nor_is_it_where_the_daemons_of_slurm_are_killed_too(tmp_path: Path) -> None:
    if missing := missing_programs():
        lacking(f"no Slurm found: {missing}")
    options = argparse.Namespace(
        engine="slurm", kills=4, seed=3, pause=0.6, no_model=True, keep=None
    )
    result = crash.drill(tmp_path, options)
    assert result["findings"] == []
    assert result["kills"] == 4
    assert result["tasks"] > 0
    assert result["receipts"] > 0

"""What is measured of engines runs small: `python -m benchmarks engines` and `node_failure` are the whole."""

import argparse
import random
import shutil

import pytest

from benchmarks import _node_failure_local, _node_failure_slurm, engines
from benchmarks.node_failure import summary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
FIGURES = ("submit_to_running_p50_s", "submit_to_running_p99_s", "overhead_over_bare")


def options(**more: int) -> argparse.Namespace:
    return argparse.Namespace(samples=1, elements=12, **more)


@pytest.mark.slurm
def test_a_start_on_slurm_is_measured_beside_sbatch(tmp_path, slurm_cluster):
    slurm_cluster.wait_for(lambda: not engines.listed(slurm_cluster), "others' jobs do not end")
    found = engines.on_slurm(tmp_path, slurm_cluster, options(), random.Random(1))
    assert all(found["slurm"][name] > 0 for name in FIGURES)
    assert found["array_12_speedup_over_sbatch"] > 0


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_what_holds_a_broken_device_runs_on_the_spare(tmp_path):
    told = summary(_node_failure_local.cases(tmp_path, 1, ("xid",)))
    assert (told["failures"], told["wrongly_restarted"]) == (1, 0), told["cases"]
    assert told["noticed_s_max"] is not None
    assert told["restarted_s_max"] is not None


@pytest.mark.slurm
def test_a_node_without_power_is_replaced_and_a_silent_one_is_not(tmp_path, slurm_cluster):
    kinds = ("power_off", "controller_silent")
    told = summary(_node_failure_slurm.strike(tmp_path, slurm_cluster, 1, kinds))
    assert (told["failures"], told["silences"]) == (1, 1)
    assert told["silences_noticed"] == 1
    assert told["wrongly_restarted"] == 0, told["cases"]
    assert told["restarted_s_max"] is not None, told["cases"]


@pytest.mark.slurm
def test_a_gang_leaves_the_node_whose_driver_tells_of_an_xid(tmp_path, driven_cluster):
    told = summary(_node_failure_slurm.strike(tmp_path, driven_cluster, 1, ("xid",)))
    assert (told["failures"], told["wrongly_restarted"]) == (1, 0), told["cases"]
    assert told["noticed_s_max"] is not None
    assert told["restarted_s_max"] is not None

"""`moulin demo --slurm` for real: two teams, a gang, a model, a dead node, a killed control plane, the bill."""

import pytest

from moulin.app.demo.cluster.own_slurm import missing_programs
from moulin.app.demo.processes import processes_of
from tests.e2e.test_demo import PATIENCE_S, finish, start, step
from tests.real_model import smollm2

STORY = ["front", "teams", "walltime", "node", "crash", "bill", "stop"]

pytestmark = [
    pytest.mark.model,
    pytest.mark.own_cluster,
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.timeout(PATIENCE_S),
]


def test_every_step_holds_and_nothing_is_left(tmp_path):
    smollm2()
    report, words = finish(start(tmp_path, "--slurm"))
    assert report["ok"], words
    assert [each["name"] for each in report["steps"]] == STORY
    assert step(report, "walltime")["streams"] > 0
    assert step(report, "walltime")["cut"] == 0
    assert step(report, "walltime")["replicas"] > 1
    assert (
        step(report, "crash")["generation"] == 2
    )  # the dead node's; the killed control plane's is none
    assert step(report, "bill")["verdict"].startswith("OK")
    assert step(report, "bill")["forged_verdict"].startswith("FAILED")
    assert processes_of(tmp_path) == ()
    assert list(tmp_path.glob("moulin-*")) == []


def test_without_slurm_it_says_what_to_install(tmp_path):
    assert "slurmctld" in missing_programs(str(tmp_path))

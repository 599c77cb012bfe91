"""Where Slurm tracks processes by cgroup, as most clusters let it: it signals what it started, and kills all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from moulin.domain.observation import TaskPhase
from moulin.domain.workload import TaskTemplate
from tests.conformance.engine_bench import (
    ENDED,
    SlurmBench,
    make_step,
    wait_for,
    wait_until,
)
from tests.integration.engines.test_slurm import gang, jobs_named, log_of
from tests.slurm_cluster import SlurmCluster, running

pytestmark = pytest.mark.slurm
GROUPS = Path("/sys/fs/cgroup")
HEARS = 'trap "echo told; exit 9" TERM; echo ready; while :; do sleep 0.05; done'

USES_ITS_GRACE = 'trap "sleep 3; echo saved; exit 9" TERM; echo ready; while :; do sleep 0.05; done'


class TrackedCluster(SlurmCluster):
    """Four nodes that track by the freezer of cgroup v1; their groups have names of their own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, prefix=f"t{uuid.uuid4().hex[:8]}-")
        text = self.conf.read_text().replace("proctrack/linuxproc", "proctrack/cgroup")
        self.conf.write_text(text)
        (folder / "cgroup.conf").write_text(f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={GROUPS}\n")

    def stop(self) -> None:
        """End everything, then remove the groups that Slurm leaves behind."""
        super().stop()
        for name in self.names:
            self.wait_for(partial(is_gone, GROUPS / "freezer" / f"slurm_{name}"), "a group is left")


def is_gone(folder: Path) -> bool:
    """Remove a group and those in it, which slurmstepd does too; tell whether none is left."""
    for found, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            Path(found).rmdir()
    return not folder.exists()


@pytest.fixture(scope="module")
def tracked_cluster() -> Iterator[TrackedCluster]:
    if os.geteuid() != 0 or not os.access(GROUPS / "freezer", os.W_OK):
        pytest.skip("needs the freezer of cgroup v1, and root")
    with running(TrackedCluster) as cluster:
        yield cluster


@pytest.fixture
def bench(tmp_path, tracked_cluster):
    made = SlurmBench(tmp_path, tracked_cluster)
    yield made
    made.close()


def is_ready(bench, step):
    return log_of(bench, step) == "ready\n"


def test_a_task_hears_that_its_job_is_cancelled(bench, tracked_cluster):
    node = tracked_cluster.names[0]
    step = make_step("a", TaskTemplate(command=("sh", "-c", HEARS)), nodes=(node,), stop_grace_s=30)
    bench.engine.start(step)
    wait_until(partial(is_ready, bench, step))
    tracked_cluster.run("scancel", *jobs_named(tracked_cluster, step.attempt))
    seen = wait_for(bench, step.step, *ENDED)
    assert (seen.phase, seen.exit_code) == (TaskPhase.EXITED, 9)
    assert log_of(bench, step).count("told") == 1


def test_each_task_of_a_gang_has_its_grace_when_its_job_is_cancelled(bench, tracked_cluster):
    nodes = tracked_cluster.names[1:]
    steps = gang("g", USES_ITS_GRACE, nodes=nodes, stop_grace_s=30)
    for step in steps:
        bench.engine.start(step)
    for step in steps:
        wait_until(partial(is_ready, bench, step))
    tracked_cluster.run("scancel", *jobs_named(tracked_cluster, steps[0].attempt))
    seen = [wait_for(bench, step.step, *ENDED) for step in steps]
    assert [(each.phase, each.exit_code) for each in seen] == [(TaskPhase.EXITED, 9)] * len(nodes)
    assert all(log_of(bench, step).endswith("saved\n") for step in steps)


def test_a_stop_is_heard_once_and_what_does_not_listen_is_ended(bench, tracked_cluster):
    first, second = tracked_cluster.names[:2]
    hears = make_step("a", TaskTemplate(command=("sh", "-c", HEARS)), nodes=(first,))
    script = 'trap "" TERM; echo ready; (trap "" TERM; exec setsid sleep 1000) & wait'
    deaf = make_step("b", TaskTemplate(command=("sh", "-c", script)), nodes=(second,))
    for step in (hears, deaf):
        bench.engine.start(step)
        wait_until(partial(is_ready, bench, step))
    bench.engine.stop(hears.step, 30)
    bench.engine.stop(deaf.step, 1)
    assert wait_for(bench, hears.step, TaskPhase.EXITED).exit_code == 9
    assert log_of(bench, hears).count("told") == 1
    assert wait_for(bench, deaf.step, TaskPhase.EXITED).exit_code == 137

"""Step 2: two teams at once, a gang, and a job that Moulin did not start and does not touch."""

import time
from typing import Any, Final

from moulin.app.demo.cluster.stage import BIOLOGY, PHYSICS, ClusterStage
from moulin.app.demo.stage import POLL_S, promise, wait_until
from moulin.domain.views import WorkloadView
from moulin.domain.workload import (
    FINAL_WORKLOAD_STATES,
    JobArray,
    Resources,
    TaskTemplate,
    WorkloadKind,
    WorkloadSpec,
    WorkloadState,
)
from moulin.sdk import Moulin

GANG: Final = 3
ELEMENTS: Final = 6
FOREIGN_S: Final = 600
END_S: Final = 120.0
START_S: Final = 40.0
SMALL: Final = Resources(cpu_milli=1000, memory_bytes=200_000_000)
GANG_SCRIPT: Final = 'echo "rank $RANK of $WORLD_SIZE on $SLURMD_NODENAME"; sleep 4'
ELEMENT_SCRIPT: Final = 'echo "sample $MOULIN_ARRAY_INDEX"; sleep 1'


def work_in_teams(stage: ClusterStage) -> dict[str, Any]:
    """Run a gang of one team and an array of the other beside a job from outside."""
    screen = stage.screen
    foreign = _start_outside(stage)
    gang = stage.as_tenant.workloads.submit(job("lattice", GANG_SCRIPT, nodes=GANG))
    array = stage.as_biologist.workloads.submit(
        job("samples", ELEMENT_SCRIPT, array=JobArray(size=ELEMENTS))
    )
    screen.say(f"{PHYSICS} submits a gang of {GANG} nodes, {BIOLOGY} an array of {ELEMENTS}.")
    wait_until(lambda: _runs(stage, gang) or _is_over(stage, gang), START_S, "the gang runs")
    screen.say("squeue, Slurm's own words:", style="bold")
    screen.table(
        ("job", "state", "nodes", "name"),
        [
            tuple(line.split("|"))
            for line in stage.cluster.run("squeue", "-h", "-o", "%i|%T|%N|%j").splitlines()
        ],
    )
    done = {view.spec.name: finish(stage.as_operator, view) for view in (gang, array)}
    for view in done.values():
        promise(view.state == WorkloadState.SUCCEEDED, f"{view.spec.name} {view.state}")
    for rank in range(GANG):
        said = b"".join(stage.as_tenant.workloads.follow(gang.id, rank=rank)).decode().strip()
        promise(said.startswith(f"rank {rank} of {GANG}"), f"rank {rank} said {said!r}")
        screen.quiet(said)
    screen.good(f"the gang ran as one job of Slurm on {GANG} nodes; the array's elements all ended")
    promise(
        foreign in stage.cluster.run("squeue", "-h", "--states=running", "-o", "%i").split(),
        "the job from outside was touched",
    )
    screen.good(f"job {foreign}, started with sbatch beside Moulin, is counted and left alone")
    stage.cluster.run("scancel", foreign)
    return {"gang": gang.id, "array": array.id, "outside": foreign}


def job(name: str, script: str, **more: Any) -> WorkloadSpec:
    """Return a small job; `more` are further fields of the spec."""
    return WorkloadSpec(
        kind=WorkloadKind.JOB,
        name=name,
        resources=SMALL,
        task=TaskTemplate(command=("sh", "-c", script)),
        **more,
    )


def finish(client: Moulin, view: WorkloadView) -> WorkloadView:
    """Return a workload when it has ended; raises `DeadlineExceeded`."""
    return client.workloads.wait(view.id, timeout_s=END_S)


def _start_outside(stage: ClusterStage) -> str:
    said = stage.cluster.run(
        *("sbatch", "--parsable", "--job-name=from-outside", "--mem=200M", "--output=/dev/null"),
        f"--wrap=sleep {FOREIGN_S}",
    )
    promise(said.isdigit(), "sbatch did not take a job")
    deadline_s = time.monotonic() + START_S
    while said not in stage.cluster.run("squeue", "-h", "--states=running", "-o", "%i").split():
        shown = stage.cluster.run("squeue", "-h", "-o", "%i %T %r")
        promise(time.monotonic() < deadline_s, f"the job from outside does not run: {shown}")
        time.sleep(POLL_S)
    return said


def _runs(stage: ClusterStage, view: WorkloadView) -> bool:
    return view.id in stage.cluster.run("squeue", "-h", "--states=running", "-o", "%j")


def _is_over(stage: ClusterStage, view: WorkloadView) -> bool:
    return stage.as_operator.workloads.get(view.id).state in FINAL_WORKLOAD_STATES

"""Steps 4 and 5: a node loses its power under a gang, and the control plane is killed beside it."""

import time
from pathlib import Path
from typing import Any, Final

from moulin.app.demo.cluster.front import TIMEOUT_S
from moulin.app.demo.cluster.stage import ClusterStage
from moulin.app.demo.cluster.teams import GANG, job
from moulin.app.demo.crash import control_of, kill
from moulin.app.demo.stage import promise, wait_until
from moulin.domain.reasons import sentence
from moulin.domain.workload import Retry

START_S: Final = 60.0
AGAIN_S: Final = 90.0
ATTEMPTS: Final = 3
SCRIPT: Final = (
    'while :; do echo "$MOULIN_GENERATION $RANK $SLURMD_NODENAME" >> {notes}; sleep 0.5; done'
)


def lose_a_node(stage: ClusterStage) -> dict[str, Any]:
    """Cut the power of a node under a gang; judge by the gang's own notes where it goes on."""
    screen = stage.screen
    notes = _notes(stage)
    view = stage.as_tenant.workloads.submit(
        job("weather", SCRIPT.format(notes=notes), nodes=GANG, retry=Retry(attempts_max=ATTEMPTS))
    )
    stage.job = view.id
    wait_until(lambda: len(_of(notes, 1)) == GANG, START_S, "the gang runs")
    busy = {
        task.node
        for unit in stage.as_tenant.workloads.get(stage.endpoint).units
        for task in unit.tasks
    }
    victim = max(node for node in _of(notes, 1) if f"batch-{node}" not in busy)
    screen.say(
        f"The gang runs on {', '.join(sorted(_of(notes, 1)))}. Now {victim} loses its power."
    )
    began_s = time.monotonic()
    stage.cluster.power_off(victim)
    with screen.progress(f"Slurm calls a node down after {TIMEOUT_S} s of silence"):
        wait_until(lambda: len(_of(notes, 2)) == GANG, AGAIN_S, "the gang runs again")
    again_s = time.monotonic() - began_s
    promise(victim not in _of(notes, 2), f"the gang is on {victim} again")
    screen.good(
        f"{again_s:.0f} s later it runs again as a whole, on {', '.join(sorted(_of(notes, 2)))}"
    )
    for node in stage.as_operator.status().nodes:
        if node.node.endswith(victim):
            why = sentence(node.health_reason) if node.health_reason else "Slurm says it is down"
            screen.say(f"{node.node} gets no new work: {why}")
    return {"node": victim, "again_s": round(again_s, 1)}


def kill_control_plane(stage: ClusterStage) -> dict[str, Any]:
    """Kill the control process while the gang runs; it is adopted, not started again."""
    screen = stage.screen
    notes = _notes(stage)
    before = stage.as_tenant.workloads.get(stage.job)
    control = control_of(stage)
    screen.say(f"kill -9 {control.pid}, the control plane, while the gang runs.")
    lines = len(notes.read_text(encoding="utf-8").splitlines())
    kill(stage, control)
    after = stage.as_tenant.workloads.get(stage.job)
    promise(
        after.units[0].attempt == before.units[0].attempt,
        "the gang was started again instead of adopted",
    )
    wait_until(
        lambda: len(notes.read_text(encoding="utf-8").splitlines()) > lines + GANG,
        START_S,
        "the gang goes on",
    )
    promise(not _of(notes, 3), "a third generation of the gang ran")
    screen.good("it is back; the gang went on meanwhile and was adopted: the same attempt")
    stage.as_tenant.workloads.stop(stage.job)
    ended = stage.as_tenant.workloads.wait(stage.job, timeout_s=START_S)
    screen.good(f"then it was stopped: {ended.state}")
    return {"attempt": after.units[0].attempt, "generation": after.units[0].generation}


def _notes(stage: ClusterStage) -> Path:
    return stage.workplace / "weather.notes"


def _of(notes: Path, generation: int) -> set[str]:
    """Return the nodes on which the gang's tasks of one generation say they are."""
    if not notes.exists():
        return set()
    whole, _, _ = notes.read_text(encoding="utf-8").rpartition("\n")
    words = (line.split() for line in whole.splitlines())
    return {each[2] for each in words if len(each) == 3 and each[0] == str(generation)}

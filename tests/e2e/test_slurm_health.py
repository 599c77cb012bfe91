"""A gang on a real Slurm: checked first, and on a spare node soon after Slurm calls one down."""

import json
import time

import pytest

from tests.e2e.conftest import Shell

pytestmark = pytest.mark.slurm

FACTORY = """
organisations: {{lab: {{}}}}
sites: {{here: {{country: FR}}}}
zones: {{hpc: {{site: here}}}}
pools:
  gpu:
    zone: hpc
    engine: slurm
    machine_class: H100
    settings: {{partition: batch, conf: {conf}, poll_ms: 200}}
    preflight: {{size: 1MiB, time_limit: 30s}}
projects: {{default: {{organisation: lab}}}}
"""
# Noticed within 15 s, running on a spare within 60 s after it.
ELSEWHERE_S = 75


@pytest.fixture(scope="module")
def front(tmp_path_factory, slurm_cluster):
    opened = Shell(tmp_path_factory.mktemp("front"), is_inside=True)
    path = opened.folder / "factory.yaml"
    path.write_text(FACTORY.format(conf=slurm_cluster.environment["SLURM_CONF"]))
    opened.up("--factory", str(path))
    opened.until(lambda: len(opened.json("nodes")["items"]) == 4)
    yield opened
    opened.close()


def places(front: Shell, job: str) -> list[str]:
    """Return the nodes of a job's gang when it runs, none before."""
    shown = front.json("show", job)
    [unit] = shown["units"]
    is_running = all(task["phase"] == "running" for task in unit["tasks"])
    is_gang = shown["state"] == "running" and not unit["is_check"]
    return [task["node"] for task in unit["tasks"]] if is_gang and is_running else []


def check(front: Shell, node: str) -> dict:
    """Look at a node on purpose; a status of 1 says that it shows something."""
    return json.loads(front.moulin("nodes", "check", node, "--json").stdout)


def test_a_gang_is_checked_and_moves_to_a_spare_when_slurm_says_down(front, slurm_cluster):
    job = front.json("run", "--nodes", "3", "--", "sleep", "1000")["id"]
    front.until(lambda: places(front, job))
    before = places(front, job)
    assert front.json("show", job)["units"][0]["generation"] == 2  # the first was the check
    name = before[1].removeprefix("gpu-")
    with slurm_cluster.node_down(name, "no power"):
        began_s = time.monotonic()
        front.until(lambda: (now := places(front, job)) and before[1] not in now)
        assert time.monotonic() - began_s < ELSEWHERE_S
        nodes = {node["node"]: node for node in front.json("nodes")["items"]}
        assert nodes[before[1]]["health"] == "quarantined"
        assert "no power" in front.moulin("nodes").stdout
        shown = front.json("show", job)
        # Checks are no restarts, and what was lost with its node is no failure.
        assert shown["units"][0]["restarts"] == 1
    front.until(lambda: not check(front, before[1])["symptoms"])
    assert front.json("nodes", "release", before[1])["health"] == "healthy"
    front.moulin("stop", job)
    front.until(lambda: front.json("show", job)["state"] == "cancelled")


def test_a_drained_node_keeps_its_work_and_gets_no_more(front, slurm_cluster):
    slurm_cluster.run("scontrol", "update", "node=node-0", "state=drain", "reason=a loud fan")
    front.until(
        lambda: (
            "gpu-node-0 is closed by its engine: drain: a loud fan" in front.moulin("nodes").stdout
        )
    )
    assert {node["health"] for node in front.json("nodes")["items"]} == {"healthy"}
    slurm_cluster.run("scontrol", "update", "node=node-0", "state=resume")

"""Nobody has to ask why a job waits: `moulin why` says what a real Slurm holds it for, and for how long."""

import time

import pytest

from tests.e2e.conftest import Shell

pytestmark = pytest.mark.slurm

FACTORY = """
organisations:
  lab: {{roles: [operator, tenant]}}
sites:
  here: {{country: FR}}
zones:
  anywhere: {{site: here}}
pools:
  shared:
    zone: anywhere
    engine: slurm
    machine_class: H100
    mode: delegated
    settings: {{partition: short, conf: {conf}, poll_ms: 200}}
projects:
  default: {{organisation: lab}}
prices:
  list: {{cpu_hour: 0.02}}
"""


@pytest.fixture(scope="module")
def front(tmp_path_factory, slurm_cluster):
    opened = Shell(tmp_path_factory.mktemp("why"), is_inside=True)
    path = opened.folder / "factory.yaml"
    path.write_text(FACTORY.format(conf=slurm_cluster.environment["SLURM_CONF"]))
    opened.up("--factory", str(path))
    opened.until(lambda: len(opened.json("status")["nodes"]) == 4)
    yield opened
    opened.close()


@pytest.fixture
def full(slurm_cluster):
    """Let others have half of each node: no node has room for eight CPUs, though all have that together."""
    words = ("sbatch", "--parsable", "-p", "short", "-c", "4", "--mem=100", "-t", "20")
    jobs = [
        slurm_cluster.run(
            *words, "-w", f"node-{index}", "-o", "/dev/null", "--wrap", "sleep 1000"
        ).strip()
        for index in range(2)
    ]
    named = f"--jobs={','.join(jobs)}"
    slurm_cluster.wait_for(
        lambda: len(slurm_cluster.run("squeue", "-h", "-t", "R", "-o", "%i", named).split()) == 2,
        "jobs of others",
    )
    yield jobs
    set_partition(slurm_cluster, "UP")
    slurm_cluster.run("scancel", *jobs)


def set_partition(slurm_cluster, state: str) -> None:
    slurm_cluster.run("scontrol", "update", "PartitionName=short", f"State={state}")


def held(front: Shell, id: str) -> dict[str, dict]:
    return {each["code"]: each for each in front.json("why", id)["reasons"]}


def word(front: Shell, id: str) -> str:
    reasons = held(front, id)
    found = reasons.get("EngineHolds") or reasons.get("EngineHoldsSome") or {"parameters": {}}
    return found["parameters"].get("word", "")


def test_why_says_what_slurm_waits_for_and_follows_it(front, slurm_cluster, full):
    words = ("--zone", "anywhere", "--cpus", "8", "--time-limit", "5m")
    view = front.json("run", *words, "--", "sh", "-c", "exit 0")
    front.until(lambda: word(front, view["id"]) == "Resources")
    number = slurm_cluster.run("squeue", "-h", "--states=pending", "-o", "%i").strip()
    reason = held(front, view["id"])["EngineHolds"]
    assert reason["parameters"]["job"] == number
    assert f"Slurm holds it: job {number} has waited since 20" in reason["sentence"]
    assert reason["sentence"].endswith("now for Resources: the nodes it needs are busy")
    # `show` has the number while it waits, for people and for programs.
    task = front.json("show", view["id"])["units"][0]["tasks"][0]
    assert (task["job"], task["waits_for"]) == (number, "Resources")
    assert f"{number} (waits: Resources)" in front.moulin("show", view["id"]).stdout

    set_partition(slurm_cluster, "DOWN")
    front.until(lambda: word(front, view["id"]) == "PartitionDown")
    said = front.moulin("why", view["id"]).stdout
    assert "PartitionDown: its partition was taken out of service" in said

    # A controller that hangs is the worst of silences: every command given to it hangs, too.
    slurm_cluster.freeze("slurmctld")
    try:
        front.until(lambda: "EngineSilent" in held(front, view["id"]))
        begun_s = time.monotonic()
        reasons = [held(front, view["id"]) for _ in range(5)][-1]
        assert time.monotonic() < begun_s + 5.0
        assert reasons["EngineHolds"]["parameters"]["word"] == "PartitionDown"
        assert "could not be read again (last read: 20" in reasons["EngineSilent"]["sentence"]
    finally:
        slurm_cluster.thaw("slurmctld")
    front.until(lambda: "EngineSilent" not in held(front, view["id"]))

    set_partition(slurm_cluster, "UP")
    slurm_cluster.run("scancel", *full)
    front.until(lambda: front.json("show", view["id"])["state"] == "succeeded")


def test_an_array_is_one_line_with_a_count(front, slurm_cluster):
    set_partition(slurm_cluster, "DOWN")
    try:
        words = ("--array", "0-3", "--zone", "anywhere", "--time-limit", "5m")
        view = front.json("run", *words, "--", "sh", "-c", "exit 0")
        front.until(lambda: word(front, view["id"]) == "PartitionDown")
        [reason] = front.json("why", view["id"])["reasons"]
        number = slurm_cluster.run("squeue", "-h", "--states=pending", "-o", "%F").strip()
        assert reason["sentence"].startswith(
            f"Slurm holds 4 of its 4 jobs, such as {number}_0, since 20"
        )
    finally:
        set_partition(slurm_cluster, "UP")
    front.until(lambda: front.json("show", view["id"])["state"] == "succeeded")


def test_a_stop_that_slurm_cannot_hear_holds_up_nobody(front, slurm_cluster):
    set_partition(slurm_cluster, "DOWN")
    try:
        words = ("--zone", "anywhere", "--time-limit", "5m")
        view = front.json("run", *words, "--", "sh", "-c", "exit 0")
        front.until(lambda: word(front, view["id"]) == "PartitionDown")
        slurm_cluster.freeze("slurmctld")
        front.until(lambda: "EngineSilent" in held(front, view["id"]))
        begun_s = time.monotonic()
        assert front.moulin("stop", view["id"], "--no-wait").returncode == 0
        for _ in range(5):
            held(front, view["id"])
        assert time.monotonic() < begun_s + 8.0
    finally:
        slurm_cluster.thaw("slurmctld")
        set_partition(slurm_cluster, "UP")
    front.until(lambda: front.json("show", view["id"])["state"] == "cancelled")
    # It never runs from the stop on; Slurm is told once it hears again.
    front.until(
        lambda: not slurm_cluster.run("squeue", "-h", "--states=pending", "-o", "%i").strip()
    )

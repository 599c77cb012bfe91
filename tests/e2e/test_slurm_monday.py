"""The first morning in front of a Slurm that is there: import, check, apply, run, and nothing is changed in it."""

import json

import pytest

from tests.e2e.conftest import Shell

pytestmark = pytest.mark.slurm
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=train
#SBATCH --partition=short
#SBATCH --nodes=2
#SBATCH --ntasks=2
#SBATCH --mem=100M
#SBATCH --time=5
#SBATCH --gres=gpu:h100:1
srun sh -c 'echo task $SLURM_PROCID of $SLURM_NTASKS on $SLURMD_NODENAME'
"""


def test_from_an_import_to_a_script_that_ran(tmp_path, slurm_cluster, monkeypatch):
    before = slurm_cluster.run("scontrol", "show", "partition")
    shell = Shell(tmp_path, is_inside=True)
    file, script = shell.folder / "cluster.yaml", shell.folder / "train.sh"
    script.write_text(SCRIPT)
    # As where a module, or somebody's profile, says which cluster it is.
    monkeypatch.setenv("SLURM_CONF", slurm_cluster.environment["SLURM_CONF"])
    shell.moulin(
        *("cluster", "import", "--country", "FR", "--directory", str(tmp_path / "shared")),
        *("-o", str(file)),
    )
    monkeypatch.delenv("SLURM_CONF")
    checked = shell.moulin("cluster", "check", "short", "--file", str(file), "--json")
    assert checked.returncode == 0, checked.stdout
    assert {each["verdict"] for each in json.loads(checked.stdout)["pools"]["short"]} == {"ok"}

    shell.up()
    try:
        assert "create pool batch" in shell.moulin("apply", str(file), "--dry-run").stdout
        shell.moulin("apply", str(file), "--yes")
        shell.until(lambda: len(shell.json("nodes")["items"]) == 7)
        found = shell.moulin("run", str(script), "--follow").stdout.splitlines()
        assert sorted(line.partition(" on ")[0] for line in found) == ["task 0 of 2", "task 1 of 2"]

        # A node of both partitions that one pool has is taken in the other.
        words = ("--zone", "batch", "--nodes", "4", "--cpus", "8", "--", "sleep", "300")
        job = shell.json("run", *words)["id"]
        shell.until(lambda: shell.json("show", job)["state"] == "running")
        held = {each["node"]: each for each in shell.json("nodes")["items"]}
        shell.until(lambda: shell.json("nodes")["items"] and held_in_short(shell) == [8000, 8000])
        assert held["batch-node-0"]["taken_cpu_milli"] == 0
        shell.moulin("stop", job)
        shell.until(lambda: shell.json("show", job)["state"] == "cancelled")
    finally:
        shell.close()
    assert slurm_cluster.run("scontrol", "show", "partition") == before


def held_in_short(shell: Shell) -> list[int]:
    """Return what others hold of the nodes of `short`."""
    items = shell.json("nodes")["items"]
    return [each["taken_cpu_milli"] for each in items if each["node"].startswith("short-")]

"""Nodes are checked before a gang, and work leaves a broken device: on this machine, in two nodes."""

import shutil
import time

import pytest

from moulin.domain.health import Signal
from tests import nvml
from tests.e2e.conftest import Shell

FACTORY = """\
organisations: {lab: {}}
sites: {here: {country: FR}}
zones: {mill: {site: here}}
machine_classes: {box: {title: this machine}}
pools:
  p:
    zone: mill
    engine: local
    machine_class: box
    settings: {nodes: "2"}
    preflight: {every: 1h, size: 1MiB, time_limit: 20s}
projects: {default: {organisation: lab}}
"""
WELL = "device 0 GPU-a\ndevice 1 GPU-b\n"
# Noticed within 15 s, and elsewhere within 60 s of that; a machine under load gets the sum of both.
ELSEWHERE_S = 75


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    """A Moulin over two nodes with a device each, of which a driver library of ours tells."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("divided")
    nvml.build(folder)
    (folder / "nvml").write_text(WELL, "ascii")
    (folder / "factory.yaml").write_text(FACTORY, "ascii")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in nvml.environment(folder, folder / "nvml").items():
            patch.setenv(name, value)
        opened = Shell(folder, is_inside=True)
        opened.up("--factory", "factory.yaml")
        opened.until(lambda: len(opened.json("nodes")["items"]) == 2)
        yield opened
        opened.close()


def say(mill: Shell, text: str) -> None:
    new = mill.folder / "nvml.new"
    new.write_text(text, "ascii")
    new.replace(mill.folder / "nvml")


def state(mill: Shell, workload: str) -> str:
    return mill.json("show", workload)["state"]


def test_a_gang_starts_after_a_check_of_its_nodes(divided):
    job = divided.json("run", "--nodes", "2", "--", "sh", "-c", "echo $MOULIN_RESTART_COUNT")
    divided.until(lambda: state(divided, job["id"]) == "succeeded")
    shown = divided.json("show", job["id"])
    assert [(unit["generation"], unit["restarts"]) for unit in shown["units"]] == [(2, 0)]
    checked = [node["fit_at"] is not None for node in divided.json("nodes")["items"]]
    assert checked == [True, True]
    again = divided.json("run", "--nodes", "2", "--", "true")
    divided.until(lambda: state(divided, again["id"]) == "succeeded")
    assert divided.json("show", again["id"])["units"][0]["generation"] == 1


def test_work_leaves_a_device_that_fails_and_what_runs_beside_it_stays(divided):
    words = ("run", "--accelerators", "1", "--", "sh", "-c", "sleep 1000")
    job = divided.json(*words)["id"]
    divided.until(lambda: state(divided, job) == "running")
    [task] = divided.json("show", job)["units"][0]["tasks"]
    index = int(task["node"][-1])
    began_s = time.monotonic()
    say(divided, f"{WELL}xid {index} 79\n")
    divided.until(
        lambda: (
            divided.json("show", job)["units"][0]["generation"] == 2
            and state(divided, job) == "running"
        )
    )
    assert time.monotonic() - began_s < ELSEWHERE_S
    [after] = divided.json("show", job)["units"][0]["tasks"]
    assert after["node"] != task["node"]
    health = {node["node"]: node for node in divided.json("nodes")["items"]}
    assert health[task["node"]]["health"] == "quarantined"
    assert [each["signal"] for each in health[task["node"]]["evidence"]] == [Signal.XID]
    assert "xid (79)" in divided.moulin("nodes").stdout
    divided.moulin("stop", job)
    divided.until(lambda: state(divided, job) == "cancelled")
    say(divided, WELL)
    divided.until(lambda: not any(each["symptoms"] for each in divided.json("nodes")["items"]))
    assert divided.json("nodes", "release", task["node"])["health"] == "healthy"

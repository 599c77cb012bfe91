"""Servers without Slurm: the real control plane over a real Ray of two nodes."""

import json
import os
import signal

import pytest

from moulin.sdk import Credentials, Moulin
from tests.e2e.conftest import Shell

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FACTORY = """
organisations:
  lab: {{roles: [operator, tenant]}}
sites:
  here: {{country: FR}}
zones:
  cellar: {{site: here}}
  desk: {{site: here}}
pools:
  desk: {{zone: desk, engine: local, machine_class: this-machine}}
  node:
    zone: cellar
    engine: ray
    machine_class: H100
    settings: {{address: "{address}", agent_port: {port}, token_file: "{token}", spool: "{spool}"}}
projects:
  default: {{organisation: lab}}
prices:
  list: {{cpu_hour: 0.02, accelerator_hour: {{H100: 2.5}}}}
"""

CELLAR = ("--zone", "cellar")


@pytest.fixture(scope="module")
def front(tmp_path_factory, ray_cluster):
    opened = Shell(tmp_path_factory.mktemp("front"), is_inside=True)
    path = opened.folder / "factory.yaml"
    path.write_text(
        FACTORY.format(
            address=ray_cluster.pool.address,
            port=ray_cluster.pool.agent_address.rpartition(":")[2],
            token=ray_cluster.token_file,
            spool=ray_cluster.pool.spool,
        )
    )
    opened.up("--factory", str(path))
    opened.until(lambda: len(opened.json("status")["nodes"]) >= 3)
    yield opened
    opened.close()


def test_a_command_runs_on_a_server_and_is_charged(front):
    words = (*CELLAR, "--accelerators", "H100:2", "--", "sh", "-c")
    done = front.moulin("run", "--follow", *words, "echo with $CUDA_VISIBLE_DEVICES; sleep 1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "with 0,1\n"
    front.until(lambda: front.json("usage")["items"])


def test_a_gang_outlives_the_control_plane_and_is_adopted(front):
    effects = front.folder / "effects"
    effects.mkdir()
    script = f"echo $MASTER_PORT > {effects}/$RANK; sleep 4; echo $RANK of $WORLD_SIZE"
    view = front.json("run", *CELLAR, "--nodes", "2", "--", "sh", "-c", script)
    front.until(lambda: len(list(effects.iterdir())) == 2)
    control = json.loads((front.data / "run.json").read_text())["control"]["pid"]
    os.kill(control, signal.SIGKILL)
    with Moulin(credentials=credentials(front)) as client:
        front.until(lambda: is_over(client, view["id"]))
        assert client.workloads.get(view["id"]).state == "succeeded"
        for rank in range(2):
            said = b"".join(client.workloads.follow(view["id"], rank=rank))
            assert said == f"{rank} of 2\n".encode()
    assert (effects / "0").read_text() == (effects / "1").read_text()


def test_a_stop_reaches_the_program(front):
    effects = front.folder / "stopped"
    script = (
        f"trap 'echo told >> {effects}; exit 3' TERM; touch {effects}; while :; do sleep 0.05; done"
    )
    view = front.json("run", *CELLAR, "--", "sh", "-c", script)
    front.until(effects.exists)
    assert front.moulin("stop", view["id"]).returncode == 0
    with Moulin(credentials=credentials(front)) as client:
        front.until(lambda: is_over(client, view["id"]))
    assert effects.read_text().split() == ["told"]


def test_what_a_ray_pool_cannot_carry_is_refused_when_it_is_submitted(front):
    assert front.moulin("secrets", "set", "TOKEN", text="grain\n").returncode == 0
    secretive = ("--name", "secretive", "--secret", "TOKEN")
    script = ("--", "sh", "-c", "echo $TOKEN")
    refused = front.moulin("run", *CELLAR, *secretive, *script)
    assert (refused.returncode, refused.stdout) == (1, "")
    words = "it needs secrets, which none of the 2 permitted node(s) large enough can carry"
    assert f"{words} (pools: node)" in refused.stderr
    assert "hint: let it run on a pool of engine local or slurm" in refused.stderr
    tried = front.moulin("run", *CELLAR, *secretive, "--dry-run", *script)
    assert (tried.returncode, words in tried.stdout) == (1, True)
    assert "  hint: let it run on a pool of engine local or slurm" in tried.stdout
    tried = front.moulin("run", *CELLAR, *secretive, "--dry-run", "--json", *script)
    [reason] = json.loads(tried.stdout)["reasons"]
    assert (reason["code"], reason["parameters"]["needs"]) == ("CannotCarry", "secrets")
    # Where somebody can carry it, it goes there, however often and whatever is free elsewhere.
    for _ in range(3):
        done = front.moulin("run", "--follow", *secretive, *script)
        assert (done.returncode, done.stdout) == (0, "grain\n"), done.stderr
        [unit] = front.json("show", "secretive")["units"]
        assert unit["tasks"][0]["node"].startswith("desk-")


def test_join_prints_one_command_and_no_token(front, ray_cluster):
    token = ray_cluster.token_file.read_text()
    done = front.moulin("join", "node", "--head")
    assert (done.returncode, done.stderr) == (0, "")
    [command] = done.stdout.splitlines()
    assert token not in command
    assert token in (front.data / "ray" / "node" / "head.sh").read_text()
    refused = front.moulin("join", "node")
    assert refused.returncode == 1
    assert "only this machine reaches" in refused.stderr
    assert "there is no pool 'other'" in front.moulin("join", "other").stderr


def credentials(shell) -> Credentials:
    known = json.loads((shell.data / "credentials.json").read_text())
    names = ("control_url", "gateway_url", "api_key", "project")
    return Credentials(**{name: known[name] for name in names})


def is_over(client, workload) -> bool:
    try:
        return client.workloads.get(workload).state in ("succeeded", "failed", "cancelled")
    except Exception:  # noqa: BLE001 - the control plane is being started again
        return False

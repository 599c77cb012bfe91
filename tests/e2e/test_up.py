"""`moulin up` and `moulin down`: what they leave behind, whatever happens in between."""

import json
import os
import signal
import socket
import ssl
import stat
import urllib.request
from pathlib import Path

import pytest

from tests.tls_files import write_pair

STAGES = ["lock", "pepper", "settings.json", "logs/gateway.log", "ready"]


def test_a_first_start_and_its_end(shell):
    process, facts = shell.up()
    assert set(facts) == {
        *("control_url", "gateway_url", "console_url", "credentials_file", "data_dir"),
        *("pid", "control_pid", "gateway_pid", "listen", "ca_file"),
    }
    assert (facts["listen"], facts["ca_file"]) == ("127.0.0.1", None)
    assert facts["pid"] == process.pid
    assert facts["console_url"] is None
    assert Path(facts["data_dir"]) == shell.data
    credentials = Path(facts["credentials_file"])
    assert stat.S_IMODE(credentials.stat().st_mode) == 0o600
    assert stat.S_IMODE(shell.data.stat().st_mode) == 0o700
    known = json.loads(credentials.read_text("utf-8"))
    assert (known["control_url"], known["project"]) == (facts["control_url"], "default")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 0
    assert out == b""  # one JSON document, and nothing after it
    assert b"Running workloads go on" in err
    assert shell.processes() == []


def test_secrets_are_in_two_files_only(shell):
    shell.up()
    known = json.loads((shell.data / "credentials.json").read_text("utf-8"))
    secrets = [known["api_key"], known["operator_key"], (shell.data / "gateway.key").read_text()]
    holders = {"credentials.json", "gateway.key"}
    for path in shell.data.rglob("*"):
        if path.is_file() and path.name not in holders:
            held = path.read_bytes()
            assert not any(secret.strip().encode() in held for secret in secrets), path


def test_a_second_up_on_one_directory(shell):
    _, facts = shell.up()
    done = shell.moulin("up", "--control-port", "0", "--gateway-port", "0", "--json")
    assert done.returncode == 1
    assert f"another Moulin runs there (pid {facts['pid']})" in done.stderr
    assert "hint: " in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "data_directory_busy"
    assert shell.moulin("status").returncode == 0


@pytest.mark.parametrize("name", ["control", "gateway"])
def test_a_port_in_use(shell, name):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ports = {"--control-port": "0", "--gateway-port": "0", f"--{name}-port": port}
        done = shell.moulin("up", *(word for pair in ports.items() for word in pair))
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert f"--{name}-port" in done.stderr
    assert shell.processes() == []


@pytest.mark.parametrize("stage", STAGES)
def test_sigterm_at_each_stage(shell, stage):
    if stage == "ready":
        process, _ = shell.up()
    else:
        process = shell.begin("up", "--control-port", "0", "--gateway-port", "0")
        shell.until((shell.data / stage).exists)
    process.terminate()
    process.communicate()
    assert process.returncode in ({0} if stage == "ready" else {0, 128 + signal.SIGTERM})
    assert shell.processes() == []
    _, facts = shell.up()
    assert facts["control_url"]


def test_a_killed_control_process_comes_back(shell):
    _, facts = shell.up()
    os.kill(facts["control_pid"], signal.SIGKILL)
    done = shell.moulin("run", "--follow", "--", "echo", "still here")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "still here\n"
    run = json.loads((shell.data / "run.json").read_text("utf-8"))
    assert run["control"]["pid"] != facts["control_pid"]


def test_a_killed_supervisor_is_followed_by_another(shell):
    process, facts = shell.up()
    process.kill()
    process.communicate()
    _, again = shell.up()
    assert again["control_pid"] != facts["control_pid"]
    assert not Path(f"/proc/{facts['control_pid']}").exists()
    assert shell.moulin("status").returncode == 0


def test_work_outlives_moulin_and_is_adopted(shell):
    process, _ = shell.up()
    beat = shell.folder / "beat"
    script = f"while :; do echo x >> {beat}; sleep 0.1; done"
    view = shell.json("run", "--name", "beater", "--", "sh", "-c", script)
    shell.until(beat.exists)
    process.terminate()
    process.communicate()
    size = beat.stat().st_size
    shell.until(lambda: beat.stat().st_size > size)
    shell.up()
    assert shell.json("why", "beater")["id"] == view["id"]
    stopped = shell.json("stop", "beater")
    assert stopped["state"] == "cancelled"
    assert [unit["generation"] for unit in stopped["units"]] == [1]


def test_down_stops_work_too(shell):
    process, _ = shell.up()
    shell.json("run", "--name", "sleeper", "--", "sleep", "1000")
    shell.until(lambda: shell.json("why", "sleeper")["state"] == "running")
    done = shell.json("down")
    assert done == {"was_running": True, "workloads": 1, "steps": 0}
    assert process.wait() == 0
    shell.until(lambda: shell.processes() == [])


def test_down_without_a_moulin_stops_what_is_left(shell):
    process, _ = shell.up()
    shell.json("run", "--name", "sleeper", "--", "sleep", "1000")
    shell.until(lambda: shell.json("why", "sleeper")["state"] == "running")
    process.terminate()
    process.communicate()
    assert shell.processes() != []
    done = shell.json("down")
    assert done == {"was_running": False, "workloads": 1, "steps": 0}
    shell.until(lambda: shell.processes() == [])
    assert shell.json("down") == {"was_running": False, "workloads": 0, "steps": 0}
    shell.up()
    assert shell.json("why", "sleeper")["state"] == "cancelled"


def test_down_where_moulin_never_was(shell):
    done = shell.moulin("down")
    assert done.returncode == 1
    assert "it was never started there" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--nodes", "100000"), "nodes must be a whole number"),
        (("--nodes", "4000"), "divide this machine into 4000 nodes: it has"),
        (("--nodes", "0"), "divide this machine into 0 nodes"),
        (("--country", "France"), "'France' is not a country code"),
        (("--factory", "absent.yaml"), "absent.yaml"),
        (("--control-port", "99999"), "control_port must be a whole number from 0 to 65535"),
        (("--data", "/proc/none"), "make the data directory /proc/none"),
    ],
    ids=range(7),
)
def test_a_start_that_cannot_be(shell, words, message):
    done = shell.moulin("up", "--control-port", "0", "--gateway-port", "0", *words)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "hint: " in done.stderr


def test_a_machine_divided_into_nodes(shell):
    cpus = len(os.sched_getaffinity(0))
    shell.up("--nodes", str(cpus))
    assert len(shell.json("status")["nodes"]) == cpus


def test_a_country_stated_later(shell):
    process, _ = shell.up()
    refused = shell.moulin("run", "--country", "FR", "--", "true")
    assert "has no country asserted by its operator" in refused.stderr
    process.terminate()
    process.communicate()
    shell.up("--country", "FR")
    assert shell.json("run", "--country", "FR", "--", "true")["state"] != "refused"


def test_a_factory_of_ones_own(shell):
    path = shell.folder / "factory.yaml"
    path.write_text(
        "organisations: {lab: {}}\n"
        "sites: {here: {country: SE}}\n"
        "zones: {north: {site: here}, south: {site: here, state: building}}\n"
        "machine_classes: {box: {is_accelerator: false}}\n"
        "pools: {p: {zone: north, engine: local, machine_class: box}}\n"
        "projects: {research: {organisation: lab, budget: 5}}\n",
        "utf-8",
    )
    process, _ = shell.up("--factory", "factory.yaml")
    status = shell.json("status")
    assert {zone["name"]: zone["state"] for zone in status["zones"]} == {
        "north": "open",
        "south": "building",
    }
    assert shell.json("run", "--", "true")["project"] == "research"
    assert shell.json("apply", "factory.yaml", "--yes")["diffs"] == []
    process.terminate()
    process.communicate()
    again, _ = shell.up("--factory", "factory.yaml", "--country", "FR")
    again.terminate()
    _, err = again.communicate()
    assert b"this factory exists already" in err
    assert b"the country stays as it was" in err


def test_both_planes_are_served_with_a_certificate_of_the_operators(shell):
    certificate, key = write_pair(shell.folder, "models")
    _, facts = shell.up("--tls-cert", certificate.name, "--tls-key", key.name)
    trusted = ssl.create_default_context(cafile=str(certificate))
    for url in (facts["gateway_url"], facts["control_url"]):
        assert url.startswith("https://127.0.0.1:")
        with urllib.request.urlopen(f"{url}/healthz", context=trusted) as answer:
            assert json.load(answer)["status"] == "ok"
    assert facts["ca_file"] is None
    assert shell.json("status")["version"]


def test_a_certificate_needs_its_key(shell):
    done = shell.moulin("up", "--tls-cert", "models.pem")
    assert done.returncode != 0
    assert "give both --tls-cert and --tls-key" in done.stderr
    assert shell.processes() == []

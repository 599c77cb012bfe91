"""What people do with jobs that run: look inside, reach a port, forget them, and let them give way."""

import os
import socket
import subprocess

import pytest

from tests.e2e.conftest import Shell

FACTORY = """
organisations: {uni: {}}
sites: {here: {country: FR}}
zones: {z: {site: here}}
pools: {p: {zone: z, engine: local, machine_class: this-machine, preemption: project}}
projects: {lab: {organisation: uni}}
"""
SAVES = """
name: low
priority: 10
stop_signal: USR1
grace: 20s
resources: {cpus: CPUS, memory: 50MB}
time_limit: 3m
run: |
  echo "start $MOULIN_RESTART_COUNT from $(cat $MOULIN_CHECKPOINT_DIR/step 2>/dev/null || echo nothing)"
  test "$MOULIN_RESTART_COUNT" = 1 && exit 0
  trap 'echo saved; echo here > $MOULIN_CHECKPOINT_DIR/step; exit 0' USR1
  echo ready; while true; do sleep 0.1; done
"""
SERVES = (
    "import os,socket; s = socket.create_server(('127.0.0.1', 0));"
    "print('port', s.getsockname()[1], flush=True)\n"
    "while True:\n c, _ = s.accept(); c.sendall(c.recv(99).upper()); c.close()"
)
SMALL = ("--cpus", "0.2", "--memory", "50MB", "--time-limit", "2m")


@pytest.fixture(scope="module")
def mill(tmp_path_factory):
    """A running Moulin whose pool lets jobs give way inside of a project."""
    opened = Shell(tmp_path_factory.mktemp("mill"), is_inside=True)
    (opened.folder / "factory.yaml").write_text(FACTORY, "utf-8")
    opened.up("--factory", "factory.yaml")
    yield opened
    opened.close()


def outside(mill, *words, given=b""):
    """Run a command as a process of its own, with bytes for its input."""
    return subprocess.run(
        mill.command(*words),
        cwd=mill.folder,
        env=mill.environment(),
        input=given,
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_a_command_inside_a_running_job_and_a_port_of_it(mill):
    view = mill.json(
        "run", "--name", "serves", *SMALL, "-e", "HUE=red", "--", "python3", "-c", SERVES
    )
    mill.until(lambda: "port" in mill.moulin("logs", view["id"]).stdout)
    done = outside(mill, "exec", "serves", "--", "sh", "-c", "cat; echo $HUE; exit 7", given=b"in ")
    assert (done.returncode, done.stdout) == (7, b"in red\n")
    told = outside(mill, "exec", "serves", "--json", "--", "sh", "-c", "echo no >&2; exit 3")
    assert told.returncode == 3
    assert b'"errors":"no\\n"' in told.stdout.replace(b": ", b":")
    port = mill.moulin("logs", view["id"]).stdout.split()[1]
    forward = mill.begin("port-forward", "serves", f"{port}:0", "--json")
    try:
        line = forward.stdout.readline().decode()
        local_port = int(line.split('"local_port":')[1].split(",")[0])
        for word in (b"one", b"two"):
            with socket.create_connection(("127.0.0.1", local_port), 20) as made:
                made.sendall(word)
                assert made.recv(99) == word.upper()
    finally:
        forward.terminate()
        forward.wait(20)
    strange = outside(mill, "port-forward", "serves", "1")
    assert strange.returncode == 1
    assert b"no process of the task listens on port 1" in strange.stderr
    assert mill.moulin("stop", "serves").returncode == 0
    late = outside(mill, "exec", "serves", "--", "true")
    assert b"it does not run" in late.stderr


def test_a_job_that_does_nothing_is_stopped_and_says_what_it_used(mill):
    (mill.folder / "idle.yaml").write_text(
        "name: idle\nidle_stop: 3s\nrun: sleep 1000\nresources: {cpus: 0.5, memory: 50MB}\n",
        "utf-8",
    )
    view = mill.json("run", "idle.yaml")
    mill.until(lambda: mill.json("why", view["id"])["state"] == "cancelled")
    why = mill.json("why", view["id"])
    assert [reason["code"] for reason in why["reasons"]] == ["IdleStopped"]
    [attempt] = mill.json("jobs", view["id"])["units"][0]["attempts"]
    assert (attempt["stop_cause"], attempt["unread"]) == ("idle", [])
    assert int(attempt["memory_bytes_max"]) > 0
    assert 0 < int(attempt["cpu_used_ns"]) < int(attempt["cpu_held_ns"])
    assert "idle" in mill.moulin("show", view["id"]).stdout


def test_a_job_gives_way_saves_and_goes_on_where_it_was(mill):
    cpus = max(1, len(os.sched_getaffinity(0)))
    (mill.folder / "low.yaml").write_text(SAVES.replace("CPUS", str(cpus)), "utf-8")
    low = mill.json("run", "low.yaml")["id"]
    mill.until(lambda: "ready" in mill.moulin("logs", low).stdout)
    urgent = mill.json(
        "run", "--name", "urgent", "--cpus", str(cpus), "--memory", "50MB", "--priority", "90",
        "--", "sh", "-c", "while test ! -e go; do sleep 0.1; done",
    )["id"]  # fmt: skip
    mill.until(lambda: mill.json("why", urgent)["state"] == "running")
    [code] = {each["code"] for each in mill.json("why", low)["reasons"]} & {"PreemptedBy"}
    assert code
    assert urgent in mill.moulin("why", low).stdout
    [unit] = mill.json("show", low)["units"]
    assert [(each["state"], each["stop_cause"]) for each in unit["attempts"]] == [
        ("preempted", "preempted")
    ]
    assert mill.moulin("stop", urgent).returncode == 0
    mill.until(lambda: mill.json("why", low)["state"] == "succeeded")
    assert mill.moulin("logs", low).stdout == "start 1 from here\n"
    assert mill.json("show", low)["units"][0]["restarts"] == 1

"""Endpoints on a real Slurm with a real model: behind doors, registered, followed, asleep and awake."""

import argparse
import http.client
import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import slurm_rollover
from benchmarks._moulin import moulin_command, wait_for
from benchmarks._serving import Served, Streams, stream
from moulin.domain.reasons import sentence
from moulin.domain.workload import Scaling
from tests.real_model import cache_directory, smollm2

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]
WAIT_S = 120.0


@pytest.fixture(autouse=True)
def _model_of_the_tests(monkeypatch):
    smollm2()
    monkeypatch.setenv("MOULIN_MODELS", str(cache_directory() / "store"))


def test_no_stream_is_cut_when_replicas_reach_their_walltime(slurm_cluster):
    options = argparse.Namespace(rollovers=2, limit=20, streams=3, tokens=8, delegated=False)
    result = slurm_rollover.measure(options, slurm_cluster)
    assert result["cuts"] == []
    assert result["cut"] == 0
    assert result["rollovers"] >= 2
    assert result["streams"] > 0


def test_a_replica_where_slurm_chooses(slurm_cluster):
    with slurm_rollover.serving_on(slurm_cluster, 600, is_delegated=True) as served:
        step = step_directory(served)
        check_door(step)
        check_registration(served, step)
        check_asleep_and_awake(served, slurm_cluster)


def step_directory(served: Served) -> Path:
    [ready] = (served.running.data / "slurm" / "hpc" / "spool").glob("*/0/ready")
    return ready.parent


def check_door(step: Path) -> None:
    """Nothing answers without the replica's own key, and the key is in no command line."""
    facts = dict(line.split(" ", 1) for line in (step / "door").read_text().splitlines())
    assert (step / "door").stat().st_mode & 0o077 == 0
    address = (step / "ready").read_text().strip()
    key = facts["replica_key"]
    for path in ("/health", "/v1/models", "/v1/chat/completions", "/metrics"):
        assert ask(address, path, "") == 401
        assert ask(address, path, facts["registration_key"]) == 401
    assert ask(address, "/v1/models", key) == 200
    words = [entry.read_bytes() for entry in Path("/proc").glob("[0-9]*/cmdline") if is_ours(entry)]
    assert words
    assert not any(
        secret.encode() in b"".join(words) for secret in (key, facts["registration_key"])
    )


def check_registration(served: Served, step: Path) -> None:
    """It said so to the control plane, which says when another will follow."""
    assert wait_for(lambda: "has the registration" in (step / "log").read_text(), WAIT_S)
    command = moulin_command("replicas", "--data", str(served.running.data), "--json")
    said = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    [held] = json.loads(said)["items"]
    assert held["address"] == (step / "ready").read_text().strip()
    words_said = [
        sentence(reason) for reason in served.client.workloads.why(served.endpoint).reasons
    ]
    assert any("may run for" in words and "successor" in words for words in words_said)


def check_asleep_and_awake(served: Served, cluster) -> None:
    """Nobody asks: no job is left. Somebody asks: held until a new one answers."""
    scaling = Scaling(replicas_min=0, replicas_max=1, idle_s=1, stabilise_s=1)
    served.client.endpoints.scale(served.endpoint, 1, scaling=scaling)
    assert wait_for(served.is_at_zero, WAIT_S)
    assert wait_for(lambda: not cluster.run("squeue", "-h", "-o", "%i"), WAIT_S)
    answer = stream(served, 4)
    assert answer.why == ""


def is_ours(entry: Path) -> bool:
    try:
        return b"moulin.runtimes.llm" in entry.read_bytes()
    except OSError:
        return False


def ask(address: str, path: str, key: str) -> int:
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        body = json.dumps({"messages": []}) if path.endswith("completions") else None
        connection.request("POST" if body else "GET", path, body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_replica_that_is_given_less_time_in_slurm_itself_cuts_no_stream(slurm_cluster):
    with slurm_rollover.serving_on(slurm_cluster, 600) as served:
        [first] = [unit.attempt for unit in served.view().units]
        [job] = slurm_cluster.run("squeue", "-h", f"--name={first}", "-o", "%i").split()
        watch, streams = slurm_rollover.Watch(served), Streams(served, 32)
        watch.start()
        streams.start(2)
        try:
            slurm_cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=2")
            assert wait_for(lambda: watch.rollovers() == 1, WAIT_S)
        finally:
            answers = streams.finish()
            watch.finish()
        assert slurm_cluster.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").split() != [
            "TIMEOUT"
        ]
        assert answers
        assert [answer.why for answer in answers if answer.why] == []
        left_s = list(watch.left_s.values())
        assert any(each.begun_s < at_s < each.ended_s for each in answers for at_s in left_s)

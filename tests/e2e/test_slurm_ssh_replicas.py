"""Endpoints on a real Slurm whose nodes are reached through a login node alone: over one SSH connection."""

import http.client
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from benchmarks._moulin import Running, moulin_command, up, wait_for
from benchmarks._node_failure_slurm import Line
from benchmarks._serving import MODEL, NAME, READY_S, REPLICA, Answer, Served, stream
from moulin.domain.workload import EndpointSpec
from moulin.engines.task.sidecar import read_facts
from moulin.sdk import Moulin, read_credentials
from tests.real_model import cache_directory, smollm2
from tests.real_runtimes import packaged
from tests.ssh_server import need_ssh

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]
WAIT_S = 60.0
EMBEDDER = "all-minilm-l6-v2"
FACTORY = """\
organisations:
  lab: {{roles: [operator, tenant]}}
sites:
  here: {{country: FR}}
zones:
  hall: {{site: here}}
pools:
  hpc:
    zone: hall
    engine: slurm
    machine_class: H100
    mode: {mode}
    settings:
      partition: batch
      conf: {conf}
      poll_ms: 200
      ssh: "{ssh}"
      reach_replicas: ssh
projects:
  default: {{organisation: lab}}
prices:
  list: {{cpu_hour: 0.02}}
"""


@pytest.fixture
def line(monkeypatch) -> Iterator[Line]:
    need_ssh()
    smollm2()
    packaged(EMBEDDER)
    monkeypatch.setenv("MOULIN_MODELS", str(cache_directory() / "store"))
    opened = Line.open()
    try:
        yield opened
    finally:
        opened.close()


@dataclass
class Far:
    """A Moulin with a chat model on nodes that it reaches over SSH."""

    served: Served
    line: Line

    @property
    def pool(self) -> Path:
        return self.served.running.data / "slurm" / "hpc"

    @property
    def over(self) -> Path:
        """Where the SSH connection is on record, which all pools over that login node share."""
        [folder] = self.pool.parent.glob(".over-*")
        return folder

    def connection(self) -> int:
        """Return the process that holds the SSH connection, 0 while none is on record."""
        return int(read_facts(str(self.over / "hpc.ports")).get("connection") or 0)

    def ports(self) -> dict[str, str]:
        """Return each port that is led somewhere, and where to."""
        facts = read_facts(str(self.over / "hpc.ports"))
        return {port: words.split()[1] for port, words in facts.items() if port.isdigit()}

    def attempts(self) -> list[str]:
        return [unit.attempt for unit in self.served.view().units]

    def answers(self) -> bool:
        return not stream(self.served, 4).why

    def streaming(self) -> tuple[list[Answer], threading.Thread]:
        """Begin a stream that lasts, and return when its first words have come."""
        answers: list[Answer] = []
        answer = Answer(time.monotonic())
        thread = threading.Thread(target=lambda: answers.append(stream(self.served, 400, answer)))
        thread.start()
        assert wait_for(lambda: answer.first_s > 0, WAIT_S)
        assert not answers
        return answers, thread


@contextmanager
def far_away(cluster: Any, line: Line, folder: Path, mode: str = "owned") -> Iterator[Far]:
    with ExitStack() as stack:
        data, factory = folder / "data", folder / "factory.yaml"
        conf = cluster.environment["SLURM_CONF"]
        factory.write_text(FACTORY.format(conf=conf, ssh=line.destination, mode=mode))
        words = ("--factory", str(factory))
        running = stack.enter_context(up(data, *words, environment=line.environment))
        credentials = read_credentials(data / "credentials.json")
        client = stack.enter_context(Moulin(credentials=credentials))
        yield Far(Served(running, client, deploy(client, NAME, MODEL)), line)


def deploy(client: Moulin, name: str, model: str) -> str:
    assert [status.state for status in client.models.fetch(model)][-1] == "ready"
    spec = EndpointSpec(model=model, parallel_requests=4)
    view = client.endpoints.deploy(name, spec, resources=REPLICA)
    client.endpoints.wait(view.id, timeout_s=READY_S)
    return view.id


def test_replicas_behind_a_login_node(slurm_cluster, line, tmp_path):
    with far_away(slurm_cluster, line, tmp_path) as far:
        check_answers_and_doors(far)
        check_vectors_and_the_end_of_a_replica(far)
        check_the_death_of_the_connection(far)
        check_a_line_that_is_cut_for_a_while(far)
        check_the_death_of_the_control_plane(far)
        sockets = read_facts(str(far.over / "connection"))["sockets"]
        last, [port] = far.connection(), far.ports()
    assert wait_for(lambda: not Path(f"/proc/{last}").exists(), WAIT_S)
    assert not Path(sockets).exists()
    assert listeners(int(port)) == []
    assert ssh_processes(sockets) == []


def test_replicas_where_slurm_chooses_the_node(slurm_cluster, line, tmp_path):
    with far_away(slurm_cluster, line, tmp_path, "delegated") as far:
        check_answers_and_doors(far)


def check_answers_and_doors(far: Far) -> None:
    """Answers come over SSH; the port is this machine's alone and wants the replica's key."""
    assert far.answers()
    [ready] = (far.pool / "spool").glob("*/0/ready")
    [(port, target)] = far.ports().items()
    assert target == ready.read_text().strip()
    assert listeners(int(port)) == ["0100007F"]
    key = read_facts(str(ready.parent / "door"))["replica_key"]
    assert asked(int(port), "/v1/models", "") == 401
    assert asked(int(port), "/v1/models", key) == 200
    sockets = read_facts(str(far.over / "connection"))["sockets"]
    words = ssh_processes(sockets)
    assert words
    assert not any(key.encode() in each for each in words)
    registered = ("replicas", "--data", str(far.served.running.data), "--json")
    assert json.loads(moulin(*registered))["items"] == []  # its file alone says where it is


def check_vectors_and_the_end_of_a_replica(far: Far) -> None:
    """A second endpoint has a port of its own, which goes with it."""
    client = far.served.client
    before = far.ports()
    endpoint = deploy(client, "vectors", EMBEDDER)
    credentials = client.credentials
    body = {"model": "vectors", "input": ["A cat sits on the mat."]}
    answer = gateway(far.served.running, credentials.api_key, "/v1/embeddings", body)
    assert len(answer.body["data"][0]["embedding"]) == 384
    assert answer.headers["x-moulin-zone"] == "hall"
    shown = ("receipt", "show", answer.headers["x-moulin-receipt"], "--json")
    data = str(far.served.running.data)
    assert wait_for(lambda: b'"tokens_input"' in moulin(*shown, "--data", data), WAIT_S)
    [port] = far.ports().keys() - before.keys()
    client.workloads.stop(endpoint)
    assert wait_for(lambda: far.ports() == before, WAIT_S)
    assert listeners(int(port)) == []


def check_the_death_of_the_connection(far: Far) -> None:
    """Only what is under way is cut; the replica goes on and answers at the same port."""
    attempts, ports, servers = far.attempts(), far.ports(), far.served.processes()
    answers, thread = far.streaming()
    first = far.connection()
    os.kill(first, signal.SIGKILL)
    thread.join()
    assert answers[0].why
    assert wait_for(far.answers, WAIT_S)
    assert far.connection() != first
    assert (far.attempts(), far.ports(), far.served.processes()) == (attempts, ports, servers)


def check_a_line_that_is_cut_for_a_while(far: Far) -> None:
    """Nobody reaches the replica, nothing is restarted, and it answers when the line is there again."""
    attempts, ports = far.attempts(), far.ports()
    far.line.cut()
    assert wait_for(lambda: listeners(int(next(iter(ports)))) == [], WAIT_S)
    time.sleep(3.0)
    assert "engine_unavailable" in stream(far.served, 4).why
    assert far.attempts() == attempts
    far.line.mend()
    assert wait_for(far.answers, WAIT_S)
    assert (far.attempts(), far.ports()) == (attempts, ports)


def check_the_death_of_the_control_plane(far: Far) -> None:
    """Its successor finds connection and ports as they are; a stream under way is not cut."""
    attempts, ports, connection = far.attempts(), far.ports(), far.connection()
    answers, thread = far.streaming()
    run = json.loads((far.served.running.data / "run.json").read_text())
    os.kill(run["control"]["pid"], signal.SIGKILL)
    thread.join()
    assert answers[0].why == ""
    assert wait_for(far.served.running.is_whole, WAIT_S)
    assert wait_for(far.answers, WAIT_S)
    time.sleep(2.0)
    assert far.answers()
    assert (far.attempts(), far.ports(), far.connection()) == (attempts, ports, connection)


def listeners(port: int) -> list[str]:
    """Return the addresses on which somebody listens at a port, as the kernel writes them."""
    found = []
    for table in ("tcp", "tcp6"):
        for words in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:]):
            address, _, number = words[1].partition(":")
            if words[3] == "0A" and int(number, 16) == port:
                found.append(address)
    return found


def ssh_processes(sockets: str) -> list[bytes]:
    """Return the command lines of processes that have to do with a connection."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:
            continue
        if sockets.encode() in words:
            found.append(words)
    return found


def asked(port: int, path: str, key: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers={"authorization": f"Bearer {key}"} if key else {})
        return connection.getresponse().status
    finally:
        connection.close()


def moulin(*words: str) -> bytes:
    command = moulin_command(*words)
    return subprocess.run(command, capture_output=True, check=False, timeout=60).stdout


@dataclass
class Answered:
    """What the gateway answered."""

    headers: dict[str, str]
    body: Any


def gateway(running: Running, key: str, path: str, body: dict[str, Any]) -> Answered:
    url = urlsplit(running.gateway_url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    try:
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        assert response.status == 200
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answered(found, json.loads(response.read()))
    finally:
        connection.close()

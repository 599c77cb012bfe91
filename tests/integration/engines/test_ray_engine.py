"""The Ray engine over a real cluster: gangs, lost agents, nodes that leave, servers that join."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from moulin.app.clock import SystemClock
from moulin.app.join import RayPlace, write_head, write_join
from moulin.domain.errors import EngineError, EngineUnavailable, InvalidSpec
from moulin.domain.observation import TaskPhase
from moulin.domain.workload import TaskTemplate
from moulin.engines.ray.engine import RayEngine, RayPool
from moulin.engines.ray.package import Package
from tests.conformance.engine_bench import RayBench, make_step, wait_for, wait_until
from tests.ray_cluster import RayCluster, free_ports, ray_directory

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NODES = ("node-0", "node-1")
JOINED = "joined"


@pytest.fixture
def bench(ray_cluster: RayCluster, tmp_path: Path) -> Iterator[RayBench]:
    made = RayBench(tmp_path, ray_cluster)
    yield made
    made.close()


def ask(cluster: RayCluster, path: str) -> dict:
    """Ask Ray itself, past Moulin."""
    token = cluster.token_file.read_text()
    found = httpx.get(f"{cluster.pool.address}{path}", headers={"Authorization": f"Bearer {token}"})
    return found.raise_for_status().json()


def groups(cluster: RayCluster) -> set[str]:
    """Return the names of the placement groups that Ray holds now."""
    found = ask(cluster, "/api/v0/placement_groups?detail=1")["data"]["result"]["result"]
    return {group["name"] for group in found if group["state"] == "CREATED"}


def agents(cluster: RayCluster) -> dict[str, int]:
    """Return the processes of Moulin's running programs in the cluster by the names of their jobs."""
    running = [job for job in ask(cluster, "/api/jobs/") if job["status"] == "RUNNING"]
    return {job["submission_id"]: int(job["driver_info"]["pid"]) for job in running}


def kill_agent(cluster: RayCluster) -> str:
    """End Moulin's program in the cluster without a word; another follows. Return its job's name."""
    [(name, pid)] = agents(cluster).items()
    os.kill(pid, signal.SIGKILL)
    return name


def seen(bench: RayBench, *steps) -> list[TaskPhase]:
    return [found.phase for found in bench.engine.observe([step.step for step in steps])]


def test_a_gang_meets_on_one_port_and_holds_its_places_until_it_ends(bench):
    script = 'echo "$RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $CUDA_VISIBLE_DEVICES"; sleep 1000'
    task = TaskTemplate(command=("sh", "-c", script))
    gang = [make_step("a", task, rank=rank, nodes=NODES) for rank in (0, 1)]
    for step in gang:
        bench.engine.start(step)
    wait_until(lambda: all(bench.engine.logs(step.step, 0, 200).data for step in gang))
    words = [bench.engine.logs(step.step, 0, 200).data.decode().split() for step in gang]
    head = bench.cluster.address("0")
    assert [word[:3] for word in words] == [["0", "2", head], ["1", "2", head]]
    assert words[0][3] == words[1][3]
    name = f"moulin/node/{gang[0].attempt}"
    assert name in groups(bench.cluster)
    for step in gang:
        bench.engine.stop(step.step, 0)
        wait_for(bench, step.step, TaskPhase.EXITED)
    wait_until(lambda: name not in groups(bench.cluster))


def test_a_gang_that_ray_cannot_place_starts_nowhere(bench):
    task = bench.program(seconds=1000)
    gang = [make_step("a", task, rank=r, nodes=NODES, memory_bytes=10**12) for r in (0, 1)]
    for step in gang:
        with pytest.raises(EngineUnavailable, match="reserved"):
            bench.engine.start(step)
    assert seen(bench, *gang) == [TaskPhase.ABSENT, TaskPhase.ABSENT]
    for step in gang:
        bench.engine.stop(step.step, 0)
    assert seen(bench, *gang) == [TaskPhase.ABSENT, TaskPhase.ABSENT]


def test_work_outlives_the_agent_and_is_found_by_the_next(bench):
    step = make_step("a", bench.program(seconds=1000))
    claim = bench.engine.start(step)
    former = kill_agent(bench.cluster)
    wait_until(lambda: seen(bench, step) == [TaskPhase.UNREACHABLE])
    bench.renew()
    found = wait_for(bench, step.step, TaskPhase.RUNNING)
    assert found.claim == claim
    assert bench.engine.start(step) == claim
    bench.engine.stop(step.step, 30)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 128 + 15
    assert bench.runs(step.step) == 1
    [name] = agents(bench.cluster)
    assert name != former  # which Ray may never give again
    bench.cluster.wait_for_nodes(len(NODES))


def test_a_node_that_leaves_is_unreachable_and_its_work_is_there_when_it_returns(bench):
    task = bench.program(seconds=1000)
    here, there = make_step("a", task, nodes=NODES[:1]), make_step("b", task, nodes=NODES[1:])
    claim = bench.engine.start(there)
    bench.engine.start(here)
    bench.cluster.kill_node("1")
    wait_until(lambda: seen(bench, here, there) == [TaskPhase.RUNNING, TaskPhase.UNREACHABLE])
    known = {node.node: node.is_reachable for node in bench.engine.capacity()}
    assert (known["node-0"], known["node-1"]) == (True, False)
    with pytest.raises(EngineUnavailable):
        bench.engine.stop(there.step, 0)
    bench.cluster.start_node("1")
    assert wait_for(bench, there.step, TaskPhase.RUNNING).claim == claim
    bench.engine.stop(there.step, 30)
    assert wait_for(bench, there.step, TaskPhase.EXITED).exit_code == 128 + 15
    assert bench.runs(there.step) == 1


def test_work_outlives_the_head_with_the_whole_cluster(bench):
    step = make_step("a", bench.program(seconds=1000), nodes=NODES[1:])
    claim = bench.engine.start(step)
    bench.cluster.stop()
    wait_until(lambda: seen(bench, step) == [TaskPhase.UNREACHABLE])
    for name in ("0", "1"):
        bench.cluster.start_node(name)
    bench.cluster.wait_for_nodes(len(NODES))
    assert wait_for(bench, step.step, TaskPhase.RUNNING).claim == claim
    assert bench.runs(step.step) == 1


def test_a_server_joins_by_its_script(bench, tmp_path):
    place = RayPlace(
        pool="node",
        scheme="http",
        host=bench.cluster.address("0"),
        dashboard_port=1,
        gcs_port=bench.cluster.gcs_port,
        token_file=bench.cluster.token_file,
    )
    with pytest.raises(InvalidSpec, match="only this machine"):
        write_join(place, tmp_path)
    script = write_head(place, tmp_path)
    assert script.stat().st_mode & 0o077 == 0
    home = tmp_path / "home"
    home.mkdir()
    for name in ("bin", "lock.txt"):  # as if an earlier run had installed it
        (home / name).symlink_to(ray_directory() / name)
    text = script.read_text()
    head = next(line for line in text.splitlines() if line.startswith("exec ray start"))
    joins_at = bench.cluster.address("2")
    address = f"--address={place.host}:{place.gcs_port} --node-ip-address={joins_at} --block"
    script.write_text(text.replace(head.partition(" --labels")[0], f"exec ray start {address}"))
    options = " ".join(
        f"--{port}={free}"
        for port, free in zip(
            ("dashboard-agent-listen-port", "metrics-export-port", "dashboard-agent-grpc-port"),
            free_ports(3, joins_at),
            strict=True,
        )
    )
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", str(script)],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "MOULIN_RAY_HOME": str(home),
                "MOULIN_NODE": JOINED,
                "MOULIN_RAY_OPTIONS": f"--num-cpus=2 {options}",
            },
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        bench.cluster.wait_for_nodes(3)
        step = make_step("a", bench.program(exit_code=9), nodes=(f"node-{JOINED}",))
        bench.engine.start(step)
        assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 9
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    bench.engine.forget(step.step)
    kill_agent(bench.cluster)  # it knows who left: later tests count on two nodes
    bench.cluster.wait_for_nodes(len(NODES))


def test_a_wrong_token_and_an_absent_head_are_nobodys_end(bench, tmp_path):
    step = make_step("a", bench.program(seconds=1000))
    bench.engine.start(step)
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    host = bench.cluster.address("0")
    [port] = free_ports(1, host)
    away = f"http://{host}:{port}"
    pool = bench.cluster.pool
    for token_file, agent in (
        (wrong, pool.agent_address),
        (tmp_path / "none", away),
        (wrong, away),
    ):
        other = RayEngine(
            tmp_path / "book",
            pool=RayPool(
                name=pool.name,
                address=away,
                agent_address=agent,
                token_file=token_file,
                package=Package(data=b"", digest="0" * 40),
                opens="",
            ),
            clock=SystemClock(),
        )
        assert [found.phase for found in other.observe([step.step])] == [TaskPhase.UNREACHABLE]
        with pytest.raises(EngineError):
            other.capacity()
        other.close()
    assert seen(bench, step) == [TaskPhase.RUNNING]


def test_the_agent_answers_nobody_without_the_token(ray_cluster):
    answer = httpx.post(f"{ray_cluster.pool.agent_address}/nodes", content=b"{}")
    assert (answer.status_code, answer.json()) == (401, {})
    with socket.create_connection(
        (ray_cluster.address("0"), httpx.URL(ray_cluster.pool.agent_address).port)
    ) as s:
        s.sendall(b"POST /steps HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n")
        assert b" 401 " in s.recv(4096).split(b"\r\n")[0]
    assert json.loads(answer.content) == {}


def test_nodes_are_read_where_they_are(bench):
    wait_until(lambda: len(bench.engine.health()) == len(NODES))
    found = {each.node: each for each in bench.engine.health()}
    assert sorted(found) == sorted(each.node for each in bench.engine.capacity())
    name = min(found)
    assert found[name].memory_bytes > 2**28
    assert not found[name].is_partial
    assert found[name].clock_skew_ns == 0
    assert [each.node for each in bench.engine.health((name,))] == [name]

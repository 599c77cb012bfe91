"""The check of a gang's nodes as processes of this machine: every rank says what it saw of its left."""

import json
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from moulin.domain.ids import NodeId
from moulin.domain.preflight import read_results
from moulin.runtimes import allreduce

PROGRAM = Path(allreduce.__file__).read_text("utf-8")
LIMIT_S = 20


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wanted(limit_s: int) -> str:
    return json.dumps({"size_bytes": 1 << 18, "time_limit_s": limit_s})


def run(
    ranks,
    size: int,
    *,
    port: int = 0,
    programs: dict[int, str] | None = None,
    limit_s: int = LIMIT_S,
) -> list[bytes]:
    """Run some ranks of a gang of `size`; return what each printed, nothing for those left out."""
    port = port or free_port()
    processes = {
        rank: subprocess.Popen(
            [sys.executable, "-I", "-c", (programs or {}).get(rank, PROGRAM), wanted(limit_s)],
            env={
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "MOULIN_ATTEMPT_ID": "a",
            },
            stdout=subprocess.PIPE,
        )
        for rank in ranks
    }
    said = {rank: process.communicate(timeout=60)[0] for rank, process in processes.items()}
    assert {process.returncode for process in processes.values()} == {0}
    return [said.get(rank, b"") for rank in range(size)]


def nodes(count: int) -> list[NodeId]:
    return [NodeId(f"n{index}") for index in range(count)]


def test_each_link_of_a_ring_is_measured_and_every_sum_is_right():
    lines = run(range(3), 3)
    transport, links = read_results(nodes(3), lines)
    assert transport == "sockets"
    assert [(each.sender, each.receiver) for each in links] == [
        ("n2", "n0"),
        ("n0", "n1"),
        ("n1", "n2"),
    ]
    assert all(each.bytes_per_s > 10**6 for each in links)
    assert all(0 < each.round_trip_ns < 10**9 for each in links)
    assert not any(each.problem for each in links)
    assert all(json.loads(line)["ring_bytes_per_s"] > 0 for line in lines)


def test_two_nodes_have_two_links():
    _, links = read_results(nodes(2), run(range(2), 2))
    assert [(each.sender, each.receiver, each.problem) for each in links] == [
        ("n1", "n0", ""),
        ("n0", "n1", ""),
    ]


def test_who_does_not_come_is_missed_and_the_others_measure_without():
    _, links = read_results(nodes(3), run((0, 1), 3, limit_s=10))
    assert [(each.sender, each.receiver, bool(each.problem)) for each in links] == [
        ("n2", "n0", True),
        ("n1", "n0", False),
        ("n0", "n1", False),
    ]


def test_without_rank_0_everybody_says_so():
    _, links = read_results(nodes(3), run((1, 2), 3, limit_s=4))
    assert [(each.sender, each.receiver) for each in links] == [("n0", "n1"), ("n0", "n2")]
    assert all("cannot be reached" in each.problem for each in links)


def test_who_dies_meanwhile_is_blamed_by_both_neighbours():
    dying = PROGRAM.replace("said.update(link(", "os._exit(0); said.update(link(")
    assert dying != PROGRAM
    _, links = read_results(nodes(3), run(range(3), 3, programs={2: dying}))
    bad = {(each.sender, each.receiver) for each in links if each.problem}
    assert bad == {("n2", "n0"), ("n1", "n2")}


def test_strangers_do_not_take_part():
    port = free_port()
    other = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"""
import socket, time
for _ in range(100):
    try:
        peer = socket.create_connection(("127.0.0.1", {port}), timeout=1)
        peer.sendall(b'{{"gang": "other", "rank": 1, "port": 1, "nccl": false}}\\n')
        break
    except OSError:
        time.sleep(0.02)
""",
        ]
    )
    _, links = read_results(nodes(2), run(range(2), 2, port=port))
    other.wait(timeout=30)
    assert not any(each.problem for each in links)


def test_a_wrong_sum_is_seen():
    gang = allreduce.Gang(
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "", "MASTER_PORT": "1"}, 5.0
    )
    gang.here = [0, 1]
    before, left = socket.socketpair()
    after, right = socket.socketpair()
    with before, left, after, right:
        left.sendall(bytes(64 * 8 * 8))
        said = allreduce.around(gang, before, after, 64 * 8 * 8 * 2)
    assert said == {"problem": "a sum came wrong from rank 1"}

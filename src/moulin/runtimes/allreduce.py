"""The check that a gang's nodes run together before the gang: every link by itself, then a ring all-reduce.

    python3 -c THIS '{"size_bytes": 16777216, "time_limit_s": 60}'

with the variables of any gang (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT). It needs nothing but Python 3.8;
where every node has PyTorch with NCCL and a device, links and sum go through NCCL, on the first device
of each node. Each rank prints one line of JSON with what it saw of the link from its left neighbour:
bytes a second, the time of a round trip, and what is wrong. It judges nothing, and ends with 0 whenever
it could say something. Sums are of whole numbers, so that a wrong one is wrong.
"""

from __future__ import annotations

import array
import contextlib
import importlib
import json
import operator
import os
import socket
import struct
import sys
import threading
import time
from typing import Any, Callable, Iterator, Mapping, Sequence  # noqa: UP035 - Python 3.8 on nodes

ROUND_TRIPS = 20
PIECE_BYTES = 1 << 18
WORD_BYTES = 8
PATTERN_WORDS = 64
LINE_BYTES_MAX = 1 << 20
# Of the whole time, how much is spent on waiting for others to come, and on one link.
GATHER_SHARE = 0.5
LINK_SHARE = 0.2
_LENGTH = struct.Struct("!Q")


class Gang:
    """Who takes part: this rank, the others' addresses by rank, and the time that is left."""

    def __init__(self, environment: Mapping[str, str], time_limit_s: float) -> None:
        self.rank = int(environment["RANK"])
        self.size = int(environment["WORLD_SIZE"])
        self.master = (environment["MASTER_ADDR"], int(environment["MASTER_PORT"]))
        self.name = environment.get("MOULIN_ATTEMPT_ID", "")
        self.began_s = time.monotonic()
        self.time_limit_s = time_limit_s
        self.here: list[int] = [self.rank]
        self.addresses: dict[int, tuple[str, int]] = {}
        self.has_nccl = False

    def left_s(self, share: float = 1.0) -> float:
        """Return how much of a share of the time is left, never nothing."""
        return max(0.1, self.began_s + share * self.time_limit_s - time.monotonic())

    def neighbours(self) -> tuple[int, int]:
        """Return the ranks before and after this one of those that came, in a ring."""
        place = self.here.index(self.rank)
        return self.here[place - 1], self.here[(place + 1) % len(self.here)]


def check(
    environment: Mapping[str, str], size_bytes: int, time_limit_s: float
) -> Iterator[dict[str, Any]]:
    """Yield what this rank has to say, once more where devices could be measured too."""
    gang = Gang(environment, time_limit_s)
    said = by_sockets(gang, size_bytes)
    yield said
    if gang.has_nccl and "problem" not in said:
        try:
            said.update(nccl(gang, size_bytes))
        except (OSError, RuntimeError) as cause:  # what NCCL lacks here says nothing about a node
            said["transport"] = f"sockets; NCCL failed: {cause}"[:200]
        yield said


def by_sockets(gang: Gang, size_bytes: int) -> dict[str, Any]:
    """Return what this rank saw of its link from the left, by plain connections."""
    said: dict[str, Any] = {"moulin_check": 1, "rank": gang.rank, "transport": "sockets"}
    with contextlib.ExitStack() as stack:
        door = stack.enter_context(socket.create_server(("", 0), backlog=64))
        try:
            gather(gang, door.getsockname()[1], has_nccl=can_nccl())
        except OSError as cause:
            said.update(left=0, problem=f"rank 0 cannot be reached: {cause}")
            return said
        said["absent"] = sorted(set(range(gang.size)) - set(gang.here))
        if len(gang.here) < 2:
            return said
        said["left"] = gang.neighbours()[0]
        before, after = connect(gang, door, stack, said)
        said.update(link(gang, before, after, size_bytes))
        is_whole = not {"problem", "right_problem"} & set(said)
        if is_whole and before is not None and after is not None:
            with contextlib.suppress(OSError, ValueError):  # who left the ring has said why
                said.update(around(gang, before, after, size_bytes))
    return said


# -- meeting --------------------------------------------------------------------------------------


def gather(gang: Gang, port: int, *, has_nccl: bool) -> None:
    """Let rank 0 tell everybody where everybody is; who does not come in time is left out.

    Raises `OSError` when rank 0 cannot be reached, or went on without this one.
    """
    if gang.rank == 0:
        _host(gang, port, has_nccl=has_nccl)
        return
    hello = {"gang": gang.name, "rank": gang.rank, "port": port, "nccl": has_nccl}
    with _reach(gang.master, gang.left_s(GATHER_SHARE)) as master:
        master.settimeout(gang.left_s())
        master.sendall(json.dumps(hello).encode() + b"\n")
        told = json.loads(_line(master))
    gang.addresses = {int(rank): (host, port) for rank, (host, port) in told["addresses"].items()}
    gang.here = sorted(gang.addresses)
    gang.has_nccl = told["nccl"]
    if gang.rank not in gang.here:
        raise OSError("it went on without this rank")


def _host(gang: Gang, port: int, *, has_nccl: bool) -> None:
    found: dict[int, tuple[str, int]] = {0: (gang.master[0], port)}
    peers: list[socket.socket] = []
    with socket.create_server(("", gang.master[1]), backlog=1024) as server:
        while len(found) < gang.size and time.monotonic() < gang.began_s + (
            GATHER_SHARE * gang.time_limit_s
        ):
            server.settimeout(gang.left_s(GATHER_SHARE))
            with contextlib.suppress(OSError, ValueError, KeyError):
                peer, address = server.accept()
                peer.settimeout(2.0)
                hello = json.loads(_line(peer))
                if hello["gang"] == gang.name and 0 < hello["rank"] < gang.size:
                    found[hello["rank"]] = (address[0], hello["port"])
                    has_nccl = has_nccl and hello["nccl"]
                    peers.append(peer)
    gang.addresses, gang.here, gang.has_nccl = found, sorted(found), has_nccl
    told = json.dumps({"addresses": found, "nccl": has_nccl}).encode() + b"\n"
    for peer in peers:
        with contextlib.suppress(OSError), peer:
            peer.sendall(told)


def connect(
    gang: Gang, door: socket.socket, stack: contextlib.ExitStack, said: dict[str, Any]
) -> tuple[socket.socket | None, socket.socket | None]:
    """Return the connections from the left and to the right; what is missing is a problem of its link."""
    left, right = gang.neighbours()
    before = after = None
    try:
        after = stack.enter_context(_reach(gang.addresses[right], gang.left_s(GATHER_SHARE + 0.1)))
        after.settimeout(gang.left_s())
        after.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        after.sendall(_LENGTH.pack(gang.rank))
    except OSError as cause:
        said.update(right=right, right_problem=f"rank {right} cannot be reached: {cause}")
    try:
        before = stack.enter_context(_answer(gang, door, left))
        before.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, ValueError) as cause:
        said["problem"] = f"rank {left} did not connect: {cause}"
    return before, after


def _answer(gang: Gang, door: socket.socket, left: int) -> socket.socket:
    while True:
        door.settimeout(gang.left_s(GATHER_SHARE + 0.1))
        came = door.accept()[0]
        came.settimeout(gang.left_s())
        with contextlib.suppress(ValueError):
            if _LENGTH.unpack(_exactly(came, _LENGTH.size))[0] == left:
                return came
        came.close()


def _reach(address: tuple[str, int], wait_s: float) -> socket.socket:
    until_s = time.monotonic() + wait_s
    while True:
        try:
            return socket.create_connection(address, timeout=max(0.1, until_s - time.monotonic()))
        except OSError:
            if time.monotonic() >= until_s:
                raise
            time.sleep(0.05)


# -- measuring ------------------------------------------------------------------------------------


def link(
    gang: Gang, before: socket.socket | None, after: socket.socket | None, size_bytes: int
) -> dict[str, Any]:
    """Measure the link from the left while the one to the right is measured there.

    A link that breaks does not end the other: a neighbour would take that for a fault of this node.
    """
    said: dict[str, Any] = {}
    left, right = gang.neighbours()
    threads = []
    if before is not None:
        threads.append(_begin(_echo, before))
    if after is not None:
        try:
            said["round_trip_ns"] = _round_trip_ns(after)
        except (OSError, ValueError) as cause:
            said.update(right=right, right_problem=f"the link to rank {right} broke: {cause}")
        threads.append(_begin(_send, after, size_bytes))
    if before is not None:
        threads[0].join(gang.left_s())
        try:
            said["bytes_per_s"] = _received_per_s(gang, before, size_bytes)
        except (OSError, ValueError) as cause:
            said["problem"] = f"the link from rank {left} broke: {cause}"
    for thread in threads:
        thread.join(gang.left_s())
    return said


def _begin(what: Callable[..., None], *words: Any) -> threading.Thread:
    thread = threading.Thread(target=what, args=words, daemon=True)
    thread.start()
    return thread


def _round_trip_ns(after: socket.socket) -> int:
    trips = []
    for _ in range(ROUND_TRIPS):
        began_ns = time.perf_counter_ns()
        after.sendall(b"?")
        _exactly(after, 1)
        trips.append(time.perf_counter_ns() - began_ns)
    return sorted(trips)[len(trips) // 2]


def _received_per_s(gang: Gang, before: socket.socket, size_bytes: int) -> int:
    until_s = time.monotonic() + LINK_SHARE * gang.time_limit_s
    got, first_s = 0, 0.0
    while got < size_bytes:
        got += len(_piece(before, min(PIECE_BYTES, size_bytes - got)))
        first_s = first_s or time.monotonic()
        if time.monotonic() > until_s:
            raise ValueError(f"only {got} bytes came in {LINK_SHARE * gang.time_limit_s:.0f} s")
    return int(size_bytes / max(time.monotonic() - first_s, 1e-6))


def around(
    gang: Gang, before: socket.socket, after: socket.socket, size_bytes: int
) -> dict[str, Any]:
    """Add up an array over the ring, and look at every sum that comes by."""
    count, place = len(gang.here), gang.here.index(gang.rank)
    words = max(1, size_bytes // WORD_BYTES // PATTERN_WORDS // count)
    chunks = [_pattern(gang.rank, words) for _ in range(count)]
    began_s = time.monotonic()
    for step in range(2 * (count - 1)):
        out, into = (place - step) % count, (place - step - 1) % count
        sent = chunks[out].tobytes()
        sender = _begin(_send_all, after, sent)
        came = array.array("q")
        came.frombytes(_exactly(before, len(sent)))
        sender.join(gang.left_s())
        whole = min(step + 1, count)
        ranks = [gang.here[(into + each) % count] for each in range(whole)]
        if came != _sum_of(ranks, words):
            return {"problem": f"a sum came wrong from rank {gang.neighbours()[0]}"}
        is_adding = step < count - 1
        chunks[into] = (
            array.array("q", map(operator.add, came, chunks[into])) if is_adding else came
        )
    took_s = max(time.monotonic() - began_s, 1e-6)
    moved = 2 * (count - 1) * words * PATTERN_WORDS * WORD_BYTES
    return {"ring_bytes_per_s": int(moved / took_s)}


def _pattern(rank: int, words: int) -> array.array[int]:
    block = [(rank + 1) * (2654435761 * (place + 1) % (1 << 40)) for place in range(PATTERN_WORDS)]
    return array.array("q", block) * words


def _sum_of(ranks: Sequence[int], words: int) -> array.array[int]:
    columns = zip(*[_pattern(rank, 1) for rank in ranks])  # noqa: B905 - `strict` is not in Python 3.8
    return array.array("q", [sum(column) for column in columns]) * words


# -- NCCL -----------------------------------------------------------------------------------------


def can_nccl() -> bool:
    """Say whether this node has PyTorch with NCCL, and a device for it."""
    if not os.environ.get("CUDA_VISIBLE_DEVICES"):
        return False
    try:
        torch = importlib.import_module("torch")
        return bool(torch.cuda.is_available() and torch.distributed.is_nccl_available())
    except (ImportError, OSError, AttributeError):
        return False


def nccl(
    gang: Gang, size_bytes: int, backend: str = "nccl", device: str = "cuda:0"
) -> dict[str, Any]:
    """Measure the same between the first devices of the nodes."""
    torch = importlib.import_module("torch")
    timedelta = importlib.import_module("datetime").timedelta
    distributed, count = torch.distributed, len(gang.here)
    host, port = gang.master  # where rank 0 has told who comes; that is over now
    distributed.init_process_group(
        backend,
        init_method=f"tcp://{host}:{port}",
        rank=gang.here.index(gang.rank),
        world_size=count,
        timeout=timedelta(seconds=gang.left_s()),
    )
    place, words = gang.here.index(gang.rank), max(1, size_bytes // WORD_BYTES)
    mine = torch.full((words,), gang.rank + 1, dtype=torch.int64, device=device)
    came = torch.zeros_like(mine)

    def pass_on() -> None:
        todo = [
            distributed.P2POp(distributed.isend, mine, (place + 1) % count),
            distributed.P2POp(distributed.irecv, came, (place - 1) % count),
        ]
        for request in distributed.batch_isend_irecv(todo):
            request.wait()

    said: dict[str, Any] = {"transport": backend, "bytes_per_s": 0}
    _timed(torch, device, pass_on)  # the first time makes the connections
    said["bytes_per_s"] = int(words * WORD_BYTES / _timed(torch, device, pass_on))
    total = sum(rank + 1 for rank in gang.here)
    _timed(torch, device, lambda: distributed.all_reduce(came))
    took_s = _timed(torch, device, lambda: distributed.all_reduce(mine))
    said["ring_bytes_per_s"] = int(2 * (count - 1) * words * WORD_BYTES / count / took_s)
    if not bool((mine == total).all()):
        said["problem"] = "the sum over all devices came out wrong"
    distributed.destroy_process_group()
    return said


def _timed(torch: Any, device: str, do: Callable[[], object]) -> float:
    began_s = time.monotonic()
    do()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return max(time.monotonic() - began_s, 1e-6)


# -- bytes ----------------------------------------------------------------------------------------


def _echo(peer: socket.socket) -> None:
    with contextlib.suppress(OSError, ValueError):
        for _ in range(ROUND_TRIPS):
            peer.sendall(_exactly(peer, 1))


def _send(peer: socket.socket, size_bytes: int) -> None:
    with contextlib.suppress(OSError):
        for piece in _pieces(size_bytes):
            peer.sendall(piece)


def _send_all(peer: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        peer.sendall(data)


def _pieces(size_bytes: int) -> Iterator[bytes]:
    whole = bytes(PIECE_BYTES)
    for _ in range(size_bytes // PIECE_BYTES):
        yield whole
    yield whole[: size_bytes % PIECE_BYTES]


def _piece(peer: socket.socket, bytes_max: int) -> bytes:
    data = peer.recv(bytes_max)
    if not data:
        raise ValueError("the other side hung up")
    return data


def _exactly(peer: socket.socket, size_bytes: int) -> bytes:
    got = bytearray()
    while len(got) < size_bytes:
        got += _piece(peer, size_bytes - len(got))
    return bytes(got)


def _line(peer: socket.socket) -> bytes:
    got = bytearray()
    while not got.endswith(b"\n"):
        got += _piece(peer, 1 << 16)
        if len(got) > LINE_BYTES_MAX:
            raise ValueError("a line without an end")
    return bytes(got)


def main() -> int:
    """Check, and say what was seen in one line."""
    wanted = json.loads(sys.argv[1])
    for said in check(os.environ, wanted["size_bytes"], wanted["time_limit_s"]):
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())

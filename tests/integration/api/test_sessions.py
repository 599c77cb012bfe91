"""The way into a running task over the API: who is let in, what passes, and what is on record."""

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import time

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from moulin.api.app import ROUTERS
from moulin.api.describe import PREFIX
from moulin.api.services import ApiLimits
from moulin.domain.errors import (
    Conflict,
    EngineRefused,
    InvalidRequest,
    NotFound,
    PortInUse,
    QuotaExceeded,
    Unauthenticated,
    Unavailable,
)
from moulin.domain.principal import Role
from moulin.domain.session_events import SessionClosed, SessionEnd, SessionOpened
from moulin.identity import PERMISSIONS, Action, Reach
from moulin.sdk import AsyncMoulin, Credentials, Moulin
from tests.integration.api.world import World, running_world

LET_IN = {Role.MEMBER, Role.ADMIN}
DOOR = "/workloads/{workload}/enter"


@pytest.fixture
def client(world):
    with client_of(world) as made:
        yield made


def client_of(world: World, role: Role = Role.MEMBER) -> Moulin:
    return Moulin(credentials=credentials(world, role))


def credentials(world: World, role: Role) -> Credentials:
    shown = world.client(role).headers["authorization"].removeprefix("Bearer ")
    return Credentials(control_url=world.url, api_key=shown)


def on_record(world: World, kind: type) -> list:
    events = world.standin.store.events(after=0, limit=10_000)
    return [event.payload for event in events if isinstance(event.payload, kind)]


def wait_for_record(world: World, count: int) -> SessionClosed:
    until_s = time.monotonic() + 20
    while len(on_record(world, SessionClosed)) < count and time.monotonic() < until_s:
        time.sleep(0.01)
    return on_record(world, SessionClosed)[-1]


# -- who is let in --------------------------------------------------------------------------------


def test_it_is_the_only_route_that_is_no_plain_request():
    found = [
        route for router in ROUTERS for route in router.routes if not hasattr(route, "methods")
    ]
    assert [getattr(route, "path", "") for route in found] == [DOOR]
    roles = {role for role in Role if PERMISSIONS[role].get(Action.WORKLOAD_ENTER, Reach.NONE)}
    assert roles == LET_IN


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("owner", ["alpha", "beta"])
def test_only_members_of_the_project_get_in(world, role, owner):
    headers = {"authorization": world.client(role).headers["authorization"]}
    url = f"{world.url.replace('http', 'ws')}{PREFIX}/workloads/{world.workloads[owner]}/enter"
    wanted = 101 if role in LET_IN and owner == "alpha" else 404 if role in LET_IN else 403
    try:
        with connect(url, additional_headers=headers) as door:
            status = 101
            door.close()
    except InvalidStatus as refused:
        status = refused.response.status_code
        told = json.loads(refused.response.body or b"")
        assert told["status"] == status
    assert status == wanted


def test_without_a_key_nobody_gets_in(world):
    unknown = Moulin(credentials=Credentials(control_url=world.url, api_key="mk_nobody"))
    with unknown, pytest.raises(Unauthenticated):
        unknown.inside.run(world.workloads["alpha"], ["true"])


def test_what_does_not_exist_answers_as_what_is_anothers(world, client):
    for each in (world.workloads["beta"], "job_00000000000000000000000000"):
        with pytest.raises(NotFound):
            client.inside.run(each, ["true"])


# -- what passes ----------------------------------------------------------------------------------


def test_pipes_and_status_pass(world, client):
    script = "cat; echo no >&2; exit 7"
    outcome = client.inside.run(world.workloads["alpha"], ["sh", "-c", script], given=b"given")
    assert (outcome.exit_code, outcome.output, outcome.errors) == (7, b"given", b"no\n")


def test_a_megabyte_each_way_is_whole(world, client):
    given = os.urandom(1 << 20)
    outcome = client.inside.run(world.workloads["alpha"], ["cat"], given=given)
    assert outcome.output == given


def test_a_terminal_has_a_size_that_follows_and_keys_that_signal(world, client):
    with client.inside.open(world.workloads["alpha"], terminal="vt100", size=(40, 101)) as session:
        seen = bytearray()
        pieces = iter(session)

        def expect(word: bytes) -> None:
            while word not in seen:
                seen.extend(next(pieces)[1])
            del seen[: seen.index(word) + len(word)]

        session.write(b"stty size; echo $TERM is $((1+1))\n")
        expect(b"40 101")
        expect(b"vt100 is 2")
        session.resize(50, 120)
        session.write(b"stty size\n")
        expect(b"50 120")
        session.write(b"sh -c 'echo rea\"\"dy; exec cat'\n")
        expect(b"ready")
        session.write(b"\x03")
        expect(b"^C")
        expect(b"\n")  # what is typed before the shell is back is dropped
        session.write(b"echo st''ill here\n")
        expect(b"still here")
        session.write(b"exit 5\n")
        for _ in pieces:
            pass
    assert session.exit_code == 5


def test_a_client_that_leaves_takes_its_command_along(world, client, tmp_path):
    count = len(on_record(world, SessionClosed))
    script = f"echo $$ > {tmp_path}/pid; echo going; exec sleep 1000"
    with client.inside.open(world.workloads["alpha"], ["sh", "-c", script]) as session:
        assert next(iter(session))[1] == b"going\n"
    closed = wait_for_record(world, count + 1)
    assert (closed.end, closed.exit_code) == (SessionEnd.LEFT, None)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGCONT)


def test_what_an_engine_refuses_is_told_and_on_record(world, client):
    count = len(on_record(world, SessionClosed))
    with pytest.raises(EngineRefused, match="nobody gets in") as refused:
        client.inside.run(world.workloads["alpha"], ["refused"])
    assert refused.value.hint == "stay out"
    assert wait_for_record(world, count + 1).end is SessionEnd.FAILED
    with pytest.raises(Conflict, match="does not run"):
        client.inside.run(world.workloads["alpha"], ["true"], rank=9)


def test_the_record_has_the_first_word_alone(world, client):
    client.inside.run(world.workloads["alpha"], ["echo", "a secret", "--password=x"], unit=3)
    opened = on_record(world, SessionOpened)[-1]
    assert (opened.word, opened.by) == ("echo", "member of alpha")
    assert opened.step.endswith(".u3.g1.t0")
    said = json.dumps([str(each) for each in on_record(world, SessionOpened)])
    assert "secret" not in said
    assert "password" not in said


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"command": "ls"},
        {"command": ["a\0b"]},
        {"command": [1]},
        {"command": ["x" * 200_000]},
        {"terminal": 1},
        {"terminal": "x\n"},
        {"port": -1},
        {"port": 70_000},
        {"port": True},
        {"command": ["ls"], "port": 80},
        [],
        "no JSON",
    ],
)
def test_a_first_message_that_makes_no_sense_is_refused(world, said):
    headers = {"authorization": world.client(Role.MEMBER).headers["authorization"]}
    url = f"{world.url.replace('http', 'ws')}{PREFIX}/workloads/{world.workloads['alpha']}/enter"
    count = len(on_record(world, SessionOpened))
    with connect(url, additional_headers=headers) as door:
        door.send(said if isinstance(said, str) else json.dumps(said))
        assert json.loads(door.recv())["error"]["code"] == InvalidRequest.code
        with pytest.raises(ConnectionClosed):
            door.recv()
    assert len(on_record(world, SessionOpened)) == count


# -- limits ---------------------------------------------------------------------------------------


def test_so_many_sessions_of_a_project_at_once_and_no_more():
    limits = ApiLimits(project_sessions_max=2)
    with running_world(limits) as world, client_of(world) as client:
        job = world.workloads["alpha"]
        with client.inside.open(job, ["cat"]) as one, client.inside.open(job, ["cat"]):
            with pytest.raises(QuotaExceeded, match="2 sessions of project alpha"):
                client.inside.run(job, ["true"])
            one.close()
            wait_for_record(world, 1)
            assert client.inside.run(job, ["true"]).exit_code == 0


def test_so_long_and_no_longer():
    with running_world(ApiLimits(session_s_max=0.2)) as world, client_of(world) as client:
        with pytest.raises(Unavailable, match="cut"):
            client.inside.run(world.workloads["alpha"], ["sleep", "1000"])
        assert wait_for_record(world, 1).end is SessionEnd.TOO_LONG


# -- ports ----------------------------------------------------------------------------------------

FAR_END = """
import struct, sys, os
HEAD = struct.Struct(">IBI")
def take(size):
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            sys.exit(0)
        data += piece
    return data
def give(stream, kind, data=b""):
    sys.stdout.buffer.write(HEAD.pack(stream, kind, len(data)) + data)
    sys.stdout.flush()
give(0, 1)
while True:
    stream, kind, size = HEAD.unpack(take(HEAD.size))
    data = take(size)
    if kind == 0:
        give(stream, 0, data.upper())
    if kind == 2:
        give(stream, 2)
"""


@pytest.fixture
def far_end(monkeypatch):
    """A port whose far end answers in capitals."""
    import tests.integration.api.sessions_world as sessions
    from moulin.domain.session import Entry

    monkeypatch.setattr(
        sessions,
        "PORT_ENTRY",
        Entry(argv=(sys.executable, "-I", "-S", "-c", FAR_END), env=sessions.ENVIRONMENT),
    )


def exchange(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 20) as made:
        made.sendall(data)
        made.shutdown(socket.SHUT_WR)
        found = b""
        while piece := made.recv(65536):
            found += piece
        return found


def test_several_connections_share_one_way_in(world, client, far_end):
    count = len(on_record(world, SessionOpened))
    said: dict[int, bytes] = {}

    def ask(number: int) -> None:
        said[number] = exchange(made.port, f"hello {number} ".encode() * 20_000)

    with client.inside.forward(world.workloads["alpha"], 8888) as made:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert said == {number: f"HELLO {number} ".encode() * 20_000 for number in range(4)}
    opened = on_record(world, SessionOpened)[count:]
    assert [(each.purpose.value, each.word) for each in opened] == [("forward", "8888")]


def test_a_port_here_that_is_taken_is_said_and_nothing_is_left_open(world, client, far_end):
    count = len(on_record(world, SessionClosed))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PortInUse):
        client.inside.forward(world.workloads["alpha"], 1, local_port=taken.getsockname()[1])
    wait_for_record(world, count + 1)


def test_a_port_that_is_not_the_tasks_is_said_in_the_far_ends_words(world, client, monkeypatch):
    import tests.integration.api.sessions_world as sessions
    from moulin.domain.session import Entry

    words = "echo 'moulin: no process of the task listens on port 1' >&2; exit 125"
    entry = Entry(argv=("sh", "-c", words), env=sessions.ENVIRONMENT)
    monkeypatch.setattr(sessions, "PORT_ENTRY", entry)
    with pytest.raises(Conflict, match="no process of the task listens on port 1"):
        client.inside.forward(world.workloads["alpha"], 1)


# -- asyncio --------------------------------------------------------------------------------------


def test_the_same_for_asyncio(world, far_end):
    async def story() -> None:
        async with AsyncMoulin(credentials=credentials(world, Role.MEMBER)) as client:
            job = world.workloads["alpha"]
            outcome = await client.inside.run(job, ["sh", "-c", "cat; exit 3"], given=b"x")
            assert (outcome.exit_code, outcome.output) == (3, b"x")
            async with await client.inside.open(job, terminal="vt100", size=(40, 100)) as session:
                await session.resize(41, 99)
                await session.write(b"stty size; exit 6\n")
                seen = b"".join([data async for _, data in session])
            assert b"41 99" in seen
            assert session.exit_code == 6
            async with await client.inside.forward(job, 8888) as made:
                reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
                writer.write(b"hello")
                writer.write_eof()
                assert await reader.read() == b"HELLO"
                writer.close()
            with pytest.raises(NotFound):
                await client.inside.run(world.workloads["beta"], ["true"])
            with pytest.raises(EngineRefused):
                await client.inside.run(job, ["refused"])

    asyncio.run(story())

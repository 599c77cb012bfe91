"""Ports that are led over a real SSH connection: proved, kept, led again, given up, and refused with reasons."""

import getpass
import http.server
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moulin.app.wiring.slurm import SlurmWays, hang_up_all
from moulin.domain.errors import EngineUnavailable
from moulin.domain.ids import AttemptId
from moulin.engines.slurm.forwards import RETRY_S, TEND_S, Forwards
from moulin.engines.slurm.transport import SshTransport, hang_up
from moulin.engines.slurm.tunnel import Tunnel
from moulin.engines.task.sidecar import open_door, read_facts
from tests.conformance.engine_bench import wait_until
from tests.ssh_server import SshServer, need_ssh

ATTEMPT = AttemptId("end_1.u0.g2")
KEY = "its-own-key"


class Hello(http.server.BaseHTTPRequestHandler):
    """A model server that says hello to anybody."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture(scope="module")
def naked() -> Iterator[str]:
    """Where a server answers whoever asks."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hello) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def door(naked) -> str:
    """Where a replica's real door is, before that server."""
    return open_door({"replica_key": KEY, "host": "127.0.0.1", "url": ""}, naked)


@pytest.fixture
def strict_server(tmp_path) -> Iterator[SshServer]:
    """An SSH server that forwards nothing."""
    need_ssh()
    server = SshServer(tmp_path)
    server.stop()
    config = server.folder / "config"
    config.write_text(f"{config.read_text()}AllowTcpForwarding no\n")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def record(tmp_path) -> Iterator[Path]:
    """The connection on record; whatever a test leaves open is closed."""
    found = tmp_path / "connection"
    yield found
    for thread in threading.enumerate():
        if thread.name == "forwards":
            thread.join()
    hang_up(found)


def transport_of(server: SshServer, record: Path) -> SshTransport:
    options = (*server.options, "-o", "GatewayPorts=yes")
    return SshTransport(f"{getpass.getuser()}@127.0.0.1", options=options, record=record)


def forwards_of(transport: SshTransport, record: Path, *, is_live: bool = True) -> Forwards:
    return Forwards(Tunnel(transport), record.with_name("ports"), lambda _: is_live)


@pytest.fixture
def transport(ssh_server, record) -> SshTransport:
    return transport_of(ssh_server, record)


@pytest.fixture
def forwards(transport, record) -> Forwards:
    return forwards_of(transport, record)


def is_nothing_done() -> bool:
    """Tell whether no ports are led or recorded just now."""
    return not any(each.name == "forwards" for each in threading.enumerate())


def led(forwards: Forwards, target: str, attempt: AttemptId = ATTEMPT) -> int:
    """Return the port at which a target answers, once it does and that is on record."""

    def is_led() -> bool:
        forwards.tend()
        return bool(forwards.address(attempt, target))

    wait_until(is_led)
    wait_until(is_nothing_done)
    host, _, port = forwards.address(attempt, target).rpartition(":")
    assert host == "127.0.0.1"
    return int(port)


def refused(forwards: Forwards, target: str) -> str:
    """Return why a target is not reached, once that is known."""

    def is_refused() -> bool:
        forwards.tend()
        assert forwards.address(ATTEMPT, target) == ""
        return "(" in forwards.why_not(ATTEMPT)

    wait_until(is_refused)
    return forwards.why_not(ATTEMPT)


def said(port: int, key: str = "") -> bytes:
    """Return what a server says to a request, empty when nobody listens."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as asking:
            shown = f"Authorization: Bearer {key}\r\n" if key else ""
            asking.sendall(f"GET / HTTP/1.1\r\nHost: h\r\n{shown}\r\n".encode())
            return asking.recv(1000)
    except OSError:
        return b""


def listeners(port: int) -> list[str]:
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return [
        row[1].partition(":")[0]
        for row in rows
        if row[3] == "0A" and int(row[1].partition(":")[2], 16) == port
    ]


def test_a_door_is_reached_at_a_port_of_this_machine_alone_that_wants_its_key(
    forwards, transport, door, ssh_server
):
    before = ssh_server.connections()
    port = led(forwards, door)
    assert b" 401 " in said(port)
    assert b" 200 " in said(port, KEY)
    assert listeners(port) == ["0100007F"]
    transport.run(("true",))
    assert ssh_server.connections() == before + 1


def test_a_connection_that_dies_is_followed_by_another_with_the_same_ports(forwards, door, record):
    port, word = led(forwards, door), forwards.word(ATTEMPT)
    first = int(read_facts(str(record.with_name("ports")))["connection"])
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: listeners(port) == [])

    def is_noticed() -> bool:
        forwards.tend()
        return forwards.word(ATTEMPT) != word

    wait_until(is_noticed)
    assert led(forwards, door) == port
    assert b" 200 " in said(port, KEY)
    assert forwards.word(ATTEMPT) not in ("", word)


@pytest.mark.slow
def test_a_connection_that_says_nothing_any_more_is_given_up_for_another(tmp_path, door, record):
    server = SshServer(tmp_path)
    try:
        forwards = forwards_of(transport_of(server, record), record)
        port, word = led(forwards, door), forwards.word(ATTEMPT)
        server.freeze()

        def is_another() -> bool:
            forwards.tend()
            return forwards.word(ATTEMPT) not in ("", word)

        wait_until(is_another)
        assert led(forwards, door) == port
        assert b" 200 " in said(port, KEY)
    finally:
        server.drop_frozen()
        server.stop()


def test_a_port_that_somebody_took_meanwhile_is_given_up_for_another(transport, door, record):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        record.with_name("ports").write_text(f"connection 1\n{taken} {ATTEMPT} {door} 1\n")
        forwards = forwards_of(transport, record)
        assert forwards.address(ATTEMPT, door) == ""
        port = led(forwards, door)
    assert port != taken
    assert b" 200 " in said(port, KEY)


def test_the_port_of_a_replica_that_ended_is_closed_and_what_goes_through_it_goes_on(
    forwards, door
):
    port, other = led(forwards, door), led(forwards, door, AttemptId("end_2.u0.g1"))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as begun:
        begun.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer its-own-key\r\n\r\n")
        assert b" 200 " in begun.recv(1000)
        forwards.release(ATTEMPT)
        forwards.tend()
        wait_until(lambda: listeners(port) == [])
        begun.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert b" 200 " in said(other, KEY)


def test_the_next_control_plane_finds_ports_as_they_are(forwards, door, record, ssh_server):
    port, before = led(forwards, door), ssh_server.connections()
    # What is led is put on record when all of it is.
    wait_until(lambda: forwards._thread is None or not forwards._thread.is_alive())
    heir = forwards_of(transport_of(ssh_server, record), record)
    assert heir.address(ATTEMPT, door) == f"127.0.0.1:{port}"
    assert heir.word(ATTEMPT) == forwards.word(ATTEMPT)
    assert ssh_server.connections() == before


def test_ports_of_replicas_that_ended_meanwhile_are_closed(forwards, door, record, ssh_server):
    port = led(forwards, door)
    heir = forwards_of(transport_of(ssh_server, record), record, is_live=False)
    heir.tend()
    wait_until(lambda: listeners(port) == [])
    assert heir.word(ATTEMPT) == ""


def test_what_answers_without_a_key_is_never_handed_out(forwards, naked, record):
    assert "asks for no key" in refused(forwards, naked)
    facts = read_facts(str(record.with_name("ports")))
    [port] = [int(name) for name in facts if name.isdigit()]
    assert listeners(port) == []


def test_a_login_node_that_does_not_get_there_is_named(forwards):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        target = f"127.0.0.1:{gone.getsockname()[1]}"
    assert "127.0.0.1 itself cannot connect to it" in refused(forwards, target)


def test_an_sshd_that_forwards_nothing_is_named(strict_server, door, record, caplog):
    forwards = forwards_of(transport_of(strict_server, record), record)
    words = refused(forwards, door)
    assert "forwards no ports" in words
    assert "AllowTcpForwarding" in words
    assert "[engine_unavailable]" in caplog.text
    assert KEY not in caplog.text


def test_a_login_node_that_lets_nobody_in_is_said_once(door, record, caplog):
    nowhere = SshTransport("127.0.0.1", options=("-F", "none", "-p", "1"), record=record)
    forwards = Forwards(Tunnel(nowhere), record.with_name("ports"), lambda _: True)
    assert forwards.address(ATTEMPT, door) == ""
    forwards.tend()
    wait_until(lambda: "must need no password" in caplog.text)
    until_s = time.monotonic() + 2 * TEND_S
    while time.monotonic() < until_s:
        forwards.tend()
        time.sleep(0.1)
    assert caplog.text.count("no replica of 127.0.0.1 can be reached") == 1
    assert forwards.address(ATTEMPT, door) == ""


def test_what_a_killed_control_plane_left_open_is_closed(ssh_server, tmp_path):
    record = tmp_path / "slurm" / "hpc" / "connection"
    record.parent.mkdir(parents=True)
    transport = transport_of(ssh_server, record)
    transport.run(("true",))
    held = int(Tunnel(transport).connection())
    hang_up_all(tmp_path)
    wait_until(lambda: not Path(f"/proc/{held}").exists())
    assert not record.exists()
    assert not Path(transport.control_path).parent.exists()


def test_a_pool_that_is_reached_otherwise_by_now_leaves_the_connection_to_others(
    ssh_server, door, tmp_path
):
    over = tmp_path / "slurm" / ".over-there"
    over.mkdir(parents=True)
    transport = transport_of(ssh_server, over / "connection")
    tunnel = Tunnel(transport)
    mine = Forwards(tunnel, over / "mine.ports", lambda _: True)
    other = Forwards(tunnel, over / "other.ports", lambda _: True)
    port, kept = led(mine, door), led(other, door)
    held, ways = tunnel.connection(), SlurmWays(tmp_path / "slurm")
    ways.give_up_ports("mine", over / "mine.ports")
    assert said(port, KEY)
    ways.give_up_ports("mine", None)
    assert listeners(port) == []
    assert not (over / "mine.ports").exists()
    assert said(kept, KEY)
    assert tunnel.connection() == held
    other_said = listeners(kept)

    def is_led_again() -> bool:
        mine.tend()
        return listeners(port) == other_said

    wait_until(is_led_again)  # once it is reached over that connection again, as it was before
    assert said(port, KEY)
    wait_until(is_nothing_done)
    hang_up_all(tmp_path)
    ways.give_up_ports("other", None)  # of a connection that is closed
    assert not (over / "other.ports").exists()


def test_a_folder_of_another_host_or_that_others_may_write_is_not_used(record, tmp_path):
    first = SshTransport("one", record=record)
    again = SshTransport("one", record=record)
    assert again.control_path == first.control_path
    other = SshTransport("two", record=record)
    assert other.control_path != first.control_path
    assert not Path(first.control_path).parent.exists()
    Path(other.control_path).parent.chmod(0o777)
    assert SshTransport("two", record=record).control_path != other.control_path
    Path(other.control_path).parent.rmdir()


def test_records_that_a_power_cut_left_in_pieces_are_no_obstacle(transport, door, record):
    record.write_bytes(b"host a\nsockets \0\0\n")
    again = SshTransport("a", record=record)
    assert again.control_path != transport.control_path
    ports = record.with_name("ports")
    ports.write_bytes(b"connection 1\n4000\n\0\0 x\n70000 a b:1 1\n40")
    forwards = forwards_of(transport, record)
    assert led(forwards, door) > 0


class Full:
    """A connection from a machine on which every port is taken."""

    host = "login"
    asked = 0

    def connection(self) -> str:
        return "7"

    def carry(self, port: int, target: str) -> bool:
        self.asked += 1
        return False


def test_a_machine_without_a_free_port_is_said(tmp_path):
    full = Full()
    forwards = Forwards(full, tmp_path / "ports", lambda _: True)  # type: ignore[arg-type]
    assert "is free" in refused(forwards, "n1:4000")
    assert full.asked == 8
    assert RETRY_S > 1
    with pytest.raises(EngineUnavailable, match="carry n1:4000 over SSH"):
        Tunnel(SshTransport("login", options=("-F", "none"))).carry(1, "n1:4000")

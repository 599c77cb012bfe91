"""The sidecar as a node runs it: the system's Python, a program of its own, real connections."""

import http.client
import http.server
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moulin.engines.task import sidecar
from moulin.engines.task.spool import format_record
from tests.tls_files import write_pair

KEY = "the-replica-s-own-key"
PROGRAM = """
import http.server, os, signal, sys, time
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for word in ("one", "two", "three"):
            self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(word), word.encode()))
            time.sleep(0.05)
        self.wfile.write(b"0\\r\\n\\r\\n")
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
with open(os.environ["MOULIN_READY_FILE"] + ".new", "w") as file:
    file.write("127.0.0.1:%d\\n" % server.server_address[1])
os.replace(file.name, os.environ["MOULIN_READY_FILE"])
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
server.serve_forever()
"""


class Standin(http.server.ThreadingHTTPServer):
    """A control plane that remembers what was said to it."""

    daemon_threads = True

    def __init__(self, pair: tuple[Path, Path] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Hearing)
        self.heard: list[tuple[str, str, str, dict[str, str]]] = []
        self.status = 200
        self.scheme = "https" if pair else "http"
        if pair:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*pair)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of callers that trust nobody."""


class Hearing(http.server.BaseHTTPRequestHandler):
    server: Standin

    def do_PUT(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        key = self.headers["authorization"]
        self.server.heard.append((self.command, self.path, key, body))
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_DELETE(self) -> None:
        self.do_PUT()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def control() -> Iterator[Standin]:
    with Standin() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


class Beside:
    """A sidecar in a step's directory, started as the shim starts it."""

    def __init__(
        self,
        folder: Path,
        control: Standin | None,
        *program: str,
        authority: str = "",
        host: str = "127.0.0.1",
    ) -> None:
        self.folder = folder
        url = f"{control.scheme}://127.0.0.1:{control.server_address[1]}" if control else ""
        facts = {
            "replica_key": KEY,
            "registration_key": "reg",
            "host": host,
            "url": url,
            "ca": authority,
            "model": "tiny model",
            "attempt": "end_1.u0.g2",
            "heartbeat_s": "0.1",
        }
        (folder / "door").write_bytes(format_record(facts))
        system = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
        environment = {
            "PATH": os.environ["PATH"],
            "MOULIN_STEP_DIR": str(folder),
            "MOULIN_READY_FILE": str(folder / "ready"),
        }
        words = program or (sys.executable, "-c", PROGRAM)
        with (folder / "said").open("wb") as said:
            self.process = subprocess.Popen(
                [system, "-I", "-S", "-E", sidecar.__file__, *words],
                env=environment,
                stderr=said,
                start_new_session=True,
            )

    def address(self) -> str:
        wait_until((self.folder / "ready").exists)
        return (self.folder / "ready").read_text().strip()

    def end(self) -> tuple[int, str]:
        """Ask all of it to end, as a shim or Slurm does."""
        os.killpg(self.process.pid, signal.SIGTERM)
        return self.process.wait(timeout=30), self.said()

    def said(self) -> str:
        return (self.folder / "said").read_text()


@pytest.fixture
def beside(tmp_path, control) -> Iterator[Beside]:
    opened = Beside(tmp_path, control)
    yield opened
    if opened.process.poll() is None:
        os.killpg(opened.process.pid, signal.SIGKILL)
        opened.process.wait()


def wait_until(is_true, wait_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + wait_s
    while not is_true():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.01)


def ask(address: str, *, key: str | None = KEY, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        headers = {"authorization": f"Bearer {key}"} if key is not None else {}
        connection.request("POST" if body is not None else "GET", "/", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_only_the_replica_s_own_key_opens_the_door(beside):
    address = beside.address()
    assert ask(address) == (200, b"onetwothree")
    for key in (None, "", "other", f"{KEY} ", KEY[:-1]):
        status = 200 if key is not None and key.strip() == KEY else 401
        assert ask(address, key=key)[0] == status


def test_large_bodies_and_many_callers_get_through_whole(beside):
    address = beside.address()
    body = os.urandom(3_000_000)
    answers: list[tuple[int, bytes]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(ask(address, body=body))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [(200, body)] * 8


def test_a_connection_goes_on_after_its_first_request(beside):
    connection = http.client.HTTPConnection(beside.address(), timeout=30)
    for index in range(3):
        headers = {"authorization": f"Bearer {KEY}"}
        connection.request("POST", "/", b"%d" % index, headers)
        assert connection.getresponse().read() == b"%d" % index
    connection.close()


def test_what_is_no_request_is_refused_and_not_waited_for(beside):
    host, _, port = beside.address().rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as caller:
        caller.sendall(b"x" * (sidecar.HEAD_BYTES_MAX + 1))
        assert caller.recv(100).startswith(b"HTTP/1.1 401 ")


def test_it_listens_where_others_reach_it(monkeypatch):
    assert sidecar.bound_host("127.0.0.1") == "127.0.0.1"
    assert sidecar.bound_host("localhost") == "127.0.0.1"
    # As many machines have themselves in /etc/hosts.
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 0, 0, "", ("127.0.1.1", 0))]
    )
    assert sidecar.bound_host("gpu-7") == sidecar.EVERY_HOST


def test_a_host_that_is_not_this_machine_s_own_address_is_no_hindrance(tmp_path):
    beyond = Beside(tmp_path, None, host="192.0.2.1")
    host, _, port = beyond.address().rpartition(":")
    assert host == "192.0.2.1"
    assert ask(f"127.0.0.1:{port}") == (200, b"onetwothree")
    assert beyond.end()[0] == 7


def test_it_registers_renews_and_lets_go(beside, control):
    address = beside.address()
    wait_until(lambda: len(control.heard) >= 3)
    method, path, key, body = control.heard[0]
    assert (method, path, key) == ("PUT", "/api/v1/registrations/end_1.u0.g2", "Bearer reg")
    assert (body["model"], body["address"]) == ("tiny model", address)
    assert all(body == each[3] for each in control.heard)
    status, said = beside.end()
    assert status == 7  # the program's own
    assert control.heard[-1][0] == "DELETE"
    assert "has the registration" in said
    assert KEY not in said


def test_a_control_plane_that_refuses_or_is_away_is_asked_again(beside, control):
    control.status = 503
    beside.address()
    wait_until(lambda: len(control.heard) >= 2)
    assert beside.process.poll() is None
    control.status = 200
    count = len(control.heard)
    wait_until(lambda: len(control.heard) > count + 1)
    _, said = beside.end()
    assert "answers 503" in said
    assert "has the registration" in said


@pytest.mark.parametrize("is_trusted", [True, False])
def test_only_the_authority_it_was_given_is_trusted(tmp_path, is_trusted):
    pair = write_pair(tmp_path, "control")
    (tmp_path / "other").mkdir()
    authority = pair[0] if is_trusted else write_pair(tmp_path / "other", "control")[0]
    with Standin(pair) as secured:
        threading.Thread(target=secured.serve_forever, args=(0.02,), daemon=True).start()
        opened = Beside(tmp_path, secured, authority=str(authority))
        assert ask(opened.address())[0] == 200  # served all the same
        said = "has the registration" if is_trusted else "CERTIFICATE_VERIFY_FAILED"
        wait_until(lambda: said in opened.said())
        opened.end()
        secured.shutdown()
    assert bool(secured.heard) is is_trusted


def test_without_a_url_the_file_is_all_it_says(tmp_path, control):
    alone = Beside(tmp_path, None)
    assert ask(alone.address())[0] == 200
    assert alone.end()[0] == 7
    assert control.heard == []


@pytest.mark.parametrize(
    ("program", "status"),
    [
        (("sh", "-c", "exit 3"), 3),
        (("sh", "-c", "kill -9 $$"), 137),
        (("/no/such/program",), 127),
    ],
)
def test_it_ends_as_its_program_does(tmp_path, program, status):
    ended = Beside(tmp_path, None, *program)
    assert ended.process.wait(timeout=30) == status

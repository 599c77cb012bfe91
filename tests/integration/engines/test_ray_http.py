"""Calls to a server of a Ray cluster, over connections that end when they like."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from moulin.domain.errors import EngineUnavailable
from moulin.engines.ray.jobs import RayHttp

BODY = b"{}"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@contextmanager
def server(*answers: bytes) -> Iterator[str]:
    """Answer one connection after another, an empty answer by closing it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                asked = b""
                while not asked.endswith(BODY):  # what is closed with words unread is reset
                    asked += connection.recv(65536)
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread.join()
    listener.close()


def test_a_connection_closed_instead_of_an_answer_is_opened_once_more(tmp_path):
    token = tmp_path / "token"
    token.write_text("secret")
    with server(b"", ANSWER) as address, RayHttp(address, token) as http:
        assert http.send("POST", "/steps", json={}).json() == {}


def test_a_server_that_never_answers_is_unavailable(tmp_path):
    token = tmp_path / "token"
    token.write_text("secret")
    with (
        server(b"", b"") as address,
        RayHttp(address, token) as http,
        pytest.raises(EngineUnavailable, match="disconnected"),
    ):
        http.send("POST", "/steps", json={})

"""What is refused at the HTTP edge, over raw sockets: smuggling, floods, slow and half-open clients."""

import socket
import time
from pathlib import Path

import pytest

from tests.integration.gateway.plant import CHAT, KEY, Plant, chat_body, eventually, read_all
from tests.integration.gateway.replica_fake import ReplicaFake

AUTHORIZATION = f"authorization: Bearer {KEY}\r\n".encode()
HOST = b"host: x\r\n"
BODY = b'{"model":"smol","messages":[{"role":"user","content":"hi"}]}'


def request(*headers: bytes, body: bytes = BODY, length: bool = True) -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    if length:
        lines += b"content-length: %d\r\n" % len(body)
    return (
        b"POST " + CHAT.encode() + b" HTTP/1.1\r\n" + HOST + AUTHORIZATION + lines + b"\r\n" + body
    )


SMUGGLED = b"GET /v1/models HTTP/1.1\r\n" + HOST + AUTHORIZATION + b"\r\n"

SMUGGLING = {
    "length and chunked": request(b"transfer-encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED),
    "chunked and length": (
        b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + AUTHORIZATION
        + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED
    ),
    "two different lengths": request(b"content-length: 5", body=BODY + SMUGGLED),
    "two equal lengths": request(b"content-length: %d" % len(BODY)),
    "a list of lengths": request(b"content-length: 5, 5", length=False),
    "a signed length": request(b"content-length: +60", length=False),
    "a negative length": request(b"content-length: -1", length=False),
    "a hexadecimal length": request(b"content-length: 0x3c", length=False),
    "an empty length": request(b"content-length: ", length=False),
    "a length beyond 64 bits": request(b"content-length: 99999999999999999999999", length=False),
    "an unknown coding": request(b"transfer-encoding: xchunked", length=False),
    "chunked twice": request(
        b"transfer-encoding: chunked", b"transfer-encoding: chunked", length=False
    ),
    "a list of codings": request(b"transfer-encoding: gzip, chunked", length=False),
    "identity and chunked": request(b"transfer-encoding: identity, chunked", length=False),
    "chunked, then more": request(b"transfer-encoding: chunked, identity", length=False),
    "a coding behind a tab": request(b"transfer-encoding:\x0bchunked", length=False),
    "a space before the colon": request(b"transfer-encoding : chunked", length=False),
    "a space before the length's colon": request(b"content-length : 60", length=False),
    "a folded line": request(b"x: a\r\n b", b"content-length: 60", length=False),
    "a bare carriage return": request(b"x: a\rtransfer-encoding: chunked"),
    "a zero byte in a value": request(b"x: a\0b"),
    "a zero byte in a name": request(b"x\0y: a"),
    "a newline alone": request().replace(b"\r\n", b"\n"),
    "no host": request().replace(HOST, b""),
    "two hosts": request(HOST.strip()),
    "two keys": request(AUTHORIZATION.strip()),
    "a method nobody knows": request().replace(b"POST", b"GETT", 1),
    "a method in small letters": request().replace(b"POST", b"post", 1),
    "a version nobody speaks": request().replace(b"HTTP/1.1", b"HTTP/1.2", 1),
    "a version of old": request().replace(b"HTTP/1.1", b"HTTP/0.9", 1),
    "a version to come": request().replace(b"HTTP/1.1", b"HTTP/2.0", 1),
    "another protocol": request().replace(b"HTTP/1.1", b"RTSP/1.0", 1),
    "no space before the version": request().replace(b" HTTP/1.1", b"HTTP/1.1", 1),
    "a tab before a length": request(b"content-length:\t%d" % len(BODY), length=False),
    "a tab behind a coding": request(b"transfer-encoding: chunked\t", length=False),
    "an empty host": request().replace(HOST, b"host: \r\n"),
    "a path as host": request().replace(HOST, b"host: a/b\r\n"),
    "a whole address": request().replace(b" /v1", b" http://x/v1", 1),
    "a way up": request().replace(b" /v1", b" /%2e%2e/v1", 1),
    "two expectations": request(b"expect: 100-continue", b"expect: 200-ok"),
    "two conditions": request(b"if-match: x", b"if-match: x"),
    "a method that echoes": request().replace(b"POST", b"TRACE", 1),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an old version": b"GET /v1/models\r\n\r\n",
    "chunked in HTTP/1.0": request(b"transfer-encoding: chunked", length=False).replace(
        b"HTTP/1.1", b"HTTP/1.0"
    ),
    "a bad chunk size": request(
        b"transfer-encoding: chunked", body=b"zz\r\nab\r\n0\r\n\r\n", length=False
    ),
    "a signed chunk size": request(
        b"transfer-encoding: chunked", body=b"+2\r\nab\r\n0\r\n\r\n", length=False
    ),
    "a chunk size beyond 64 bits": request(
        b"transfer-encoding: chunked", body=b"ffffffffffffffffff\r\nab", length=False
    ),
    "a chunk longer than its size": request(
        b"transfer-encoding: chunked", body=b"2\r\nabcd\r\n0\r\n\r\n", length=False
    ),
    "a chunk that ends in a newline alone": request(
        b"transfer-encoding: chunked", body=b"2\r\nab\n0\r\n\r\n", length=False
    ),
    "a switch of protocols": request(b"connection: upgrade", b"upgrade: websocket"),
    "a tunnel": b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n" + AUTHORIZATION + b"\r\n",
    "noise": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
}  # fmt: skip


@pytest.mark.parametrize("name", SMUGGLING)
def test_what_is_not_plain_http_is_refused_and_the_connection_closed(
    plant: Plant, replica: ReplicaFake, name: str
) -> None:
    answer = plant.raw(SMUGGLING[name] + SMUGGLED)
    status = int(answer.split(b" ", 2)[1])
    assert status in {400, 431, 501, 505} or (name == "a length beyond 64 bits" and status == 413)
    assert answer.count(b"\r\ncontent-length: ") == 1, "nothing behind it was answered"
    assert b"connection: close" in answer
    assert replica.seen.bodies == []
    assert plant.chat().status == 200


def test_chunked_bodies_and_pipelined_requests_are_served_in_order(plant: Plant) -> None:
    half = len(BODY) // 2
    chunked = request(
        b"transfer-encoding: chunked",
        body=b"%x\r\n%b\r\n%x;ext=1\r\n%b\r\n0\r\nx-trailer: 1\r\n\r\n"
        % (half, BODY[:half], len(BODY) - half, BODY[half:]),
        length=False,
    )
    last = SMUGGLED.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    answer = plant.raw(chunked + SMUGGLED + request() + last)
    bodies = [part.split(b"\r\n\r\n", 1)[1] for part in answer.split(b"HTTP/1.1 200 OK")[1:]]
    assert [b"chat.completion" in body for body in bodies] == [True, False, True, False]


def test_a_protocol_of_old_is_seen_in_pieces_too(plant: Plant) -> None:
    data = request().replace(b"HTTP/1.1", b"RTSP/1.0", 1)
    with socket.create_connection(("127.0.0.1", plant.port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(len(data) - len(BODY)):
            connection.sendall(data[position : position + 1])
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")


def test_an_answer_to_head_has_no_body_that_would_be_read_as_the_next(plant: Plant) -> None:
    head = SMUGGLED.replace(b"GET", b"HEAD", 1)
    last = SMUGGLED.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    first, _, second = plant.raw(head + last).partition(b"\r\n\r\n")
    assert b"content-length: " in first
    assert second.startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_wish_to_close_is_seen_in_a_list_that_is_none(plant: Plant) -> None:
    data = SMUGGLED.replace(b"\r\n\r\n", b"\r\nconnection:;Close\r\n\r\n")
    assert plant.raw(data + SMUGGLED).count(b"HTTP/1.1 200 OK") == 1


def test_too_much_sent_ahead_is_cut(plant: Plant, replica: ReplicaFake) -> None:
    replica.behaviour.delay_s = 0.5
    assert plant.raw(request() * 50).count(b"HTTP/1.1") <= 18
    assert len(replica.seen.bodies) <= 18


def test_a_request_in_single_bytes_is_read(plant: Plant) -> None:
    data = request(b"connection: close")
    with socket.create_connection(("127.0.0.1", plant.port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(len(data)):
            connection.sendall(data[position : position + 1])
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


def test_http_10_gets_an_answer_without_chunks(plant: Plant) -> None:
    body = b'{"model":"smol","stream":true,"messages":[{"role":"user","content":"hi"}]}'
    answer = plant.raw(request(body=body).replace(b"HTTP/1.1", b"HTTP/1.0"))
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert rest.startswith(b"data: {")
    assert rest.endswith(b"data: [DONE]\n\n")


def test_a_client_may_ask_before_it_sends(plant: Plant) -> None:
    head, _, _ = request(b"expect: 100-continue", b"connection: close").partition(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", plant.port), timeout=10) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "flood",
    [
        b"x: " + b"a" * 40_000,
        b"\r\n".join(b"x%d: 1" % number for number in range(150)),
        b"y" * 40_000 + b": 1",
    ],
)
def test_too_long_a_head_is_refused(plant: Plant, flood: bytes) -> None:
    assert plant.raw(request(flood)).startswith(b"HTTP/1.1 431 ")
    endless = request(flood)[: 33 * 1024 + 900]
    with socket.create_connection(("127.0.0.1", plant.port), timeout=10) as connection:
        for start in range(0, len(endless), 1000):
            connection.sendall(endless[start : start + 1000])
        if len(endless) > 33 * 1024:
            assert read_all(connection).startswith(b"HTTP/1.1 431 ")


def test_a_gigabyte_is_neither_read_nor_kept(plant: Plant) -> None:
    assert plant.process is not None
    before = rss_bytes(plant.process.pid)
    started_s = time.monotonic()
    with socket.create_connection(("127.0.0.1", plant.port), timeout=10) as connection:
        connection.sendall(request(b"content-length: %d" % 10**9, body=b"", length=False))
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"8388608 bytes" in answer
        sent = flood(connection, 10**9)
    assert sent < 10**9
    assert rss_bytes(plant.process.pid) - before < 50 * 10**6
    assert time.monotonic() - started_s < 60


def test_an_endless_chunked_body_is_cut_at_the_limit(plant: Plant) -> None:
    assert plant.process is not None
    before = rss_bytes(plant.process.pid)
    with socket.create_connection(("127.0.0.1", plant.port), timeout=10) as connection:
        connection.sendall(request(b"transfer-encoding: chunked", body=b"", length=False))
        sent = flood(connection, 10**9, prefix=b"10000\r\n", suffix=b"\r\n")
    assert sent < 10**9
    assert rss_bytes(plant.process.pid) - before < 60 * 10**6
    assert plant.chat().status == 200


def test_a_large_prompt_is_served(plant: Plant, replica: ReplicaFake) -> None:
    prompt = "word " * 200_000
    answer = plant.post(chat_body(messages=[{"role": "user", "content": prompt}]))
    assert answer.status == 200
    assert replica.seen.bodies[0]["messages"][0]["content"] == prompt


@pytest.mark.slow
def test_slow_and_silent_connections_are_closed_and_others_served(plant: Plant) -> None:
    silent = [socket.create_connection(("127.0.0.1", plant.port)) for _ in range(20)]
    slow = socket.create_connection(("127.0.0.1", plant.port), timeout=30)
    slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx: ")
    assert plant.chat().status == 200
    assert read_all(slow).startswith(b"HTTP/1.1 408 ")
    for connection in silent:
        connection.settimeout(30)
        assert connection.recv(100) == b""
        connection.close()
    slow.close()


def test_a_half_closed_client_is_gone(plant: Plant, replica: ReplicaFake) -> None:
    replica.behaviour.delay_s = 60
    with socket.create_connection(("127.0.0.1", plant.port), timeout=10) as connection:
        connection.sendall(request())
        eventually(lambda: len(replica.seen.bodies) == 1)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b""
    eventually(lambda: replica.seen.cancelled == 1)


def flood(
    connection: socket.socket, limit_bytes: int, prefix: bytes = b"", suffix: bytes = b""
) -> int:
    """Send until the other side closes; return how much went out."""
    piece = prefix + b"a" * 65536 + suffix
    sent = 0
    connection.settimeout(20)
    try:
        while sent < limit_bytes:
            connection.sendall(piece)
            sent += len(piece)
    except OSError:
        pass
    return sent


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096

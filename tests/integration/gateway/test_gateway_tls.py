"""TLS at the gateway with real handshakes: what is agreed on, and certificates that change."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.integration.gateway.control_fake import ControlFake
from tests.integration.gateway.plant import CHAT, KEY, Plant, chat_body, eventually, read_all
from tests.integration.gateway.replica_fake import ReplicaFake
from tests.tls_files import write_pair


@pytest.fixture
def secured(tmp_path: Path, control: ControlFake) -> Iterator[Plant]:
    certificate, key = write_pair(tmp_path, "first")
    built = Plant(tmp_path, control)
    built.words = ["--tls-cert", str(certificate), "--tls-key", str(key)]
    built.start(wait=False)
    eventually(lambda: answers(built))
    yield built
    built.stop()


def connect(plant: Plant, **wanted: object) -> ssl.SSLSocket:
    """Return a connection whose certificate was checked against the file."""
    context = ssl.create_default_context(cafile=str(plant.data / "models.pem"))
    context.set_alpn_protocols(["h2", "http/1.1"])
    for name, value in wanted.items():
        setattr(context, name, value)
    plain = socket.create_connection(("127.0.0.1", plant.port), timeout=20)
    try:
        return context.wrap_socket(plain, server_hostname="127.0.0.1")
    except BaseException:
        plain.close()
        raise


def answers(plant: Plant) -> bool:
    try:
        return ask(
            plant, b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        ).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False


def ask(plant: Plant, data: bytes) -> bytes:
    with connect(plant) as line:
        line.sendall(data)
        return read_all(line)


def chat(*, close: bool = True, **fields: object) -> bytes:
    body = json.dumps(chat_body(**fields)).encode()
    last = "connection: close\r\n" if close else ""
    return (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n{last}"
        f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )


def name_shown(plant: Plant) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", plant.port), timeout=20) as plain,
        context.wrap_socket(plain) as line,
    ):
        shown = line.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).subject.rfc4514_string()


def test_answers_and_streams_pass_through_tls(secured: Plant) -> None:
    assert ask(secured, chat()).startswith(b"HTTP/1.1 200 ")
    assert b"data: [DONE]" in ask(secured, chat(stream=True))
    with connect(secured) as line:
        assert line.selected_alpn_protocol() == "http/1.1"
        assert line.version() == "TLSv1.3"


def test_tls_12_is_spoken_with_forward_secrecy_and_nothing_older(secured: Plant) -> None:
    with connect(secured, maximum_version=ssl.TLSVersion.TLSv1_2) as line:
        cipher = line.cipher()
    assert cipher is not None
    assert cipher[0].startswith("ECDHE-")
    assert "GCM" in cipher[0] or "CHACHA20" in cipher[0]
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(
        action="ignore", category=DeprecationWarning
    ):  # Python warns of what is refused here
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", secured.port), timeout=20) as plain,
        pytest.raises(ssl.SSLError, match=r"EOF|VERSION"),
    ):
        old.wrap_socket(plain)


def test_plain_http_gets_nothing_on_a_secured_port(secured: Plant) -> None:
    assert b"HTTP/1.1 200" not in secured.raw(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")


@pytest.mark.parametrize("is_told", [True, False])
def test_a_renewed_certificate_is_taken_up_without_cutting_a_stream(
    secured: Plant, replica: ReplicaFake, is_told: bool
) -> None:
    replica.behaviour.events, replica.behaviour.event_delay_s = 40, 0.1
    assert secured.process is not None
    assert name_shown(secured) == "CN=first"
    with connect(secured) as line:
        line.sendall(chat(stream=True))
        data = b""
        while b"w1 " not in data:
            data += line.recv(65536)
        write_pair(secured.data, "second")
        if is_told:
            os.kill(secured.process.pid, signal.SIGHUP)
        eventually(lambda: name_shown(secured) == "CN=second")
        data += read_all(line)
    assert b"w39 " in data
    assert b"data: [DONE]" in data
    assert secured.process.poll() is None


def test_a_certificate_that_cannot_be_used_leaves_the_former_in_force(secured: Plant) -> None:
    assert secured.process is not None
    (secured.data / "models.key").write_text("not a key")
    eventually(lambda: "the former certificate stays in force" in secured.log.read_text())
    os.kill(secured.process.pid, signal.SIGHUP)
    eventually(lambda: secured.log.read_text().count("stays in force") == 2)
    assert name_shown(secured) == "CN=first"
    write_pair(secured.data, "third")
    eventually(lambda: name_shown(secured) == "CN=third")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda files: files[0].unlink(), "No such file"),
        (lambda files: files[1].write_text("no key"), "use the certificate"),
    ],
)
def test_a_gateway_does_not_start_without_its_certificate(
    tmp_path: Path, spoil: object, words: str
) -> None:
    files = write_pair(tmp_path, "first")
    assert callable(spoil)
    spoil(files)
    command = [
        sys.executable, "-m", "moulin.gateway", "--control-url", "http://127.0.0.1:1",
        "--key-file", str(tmp_path / "k"), "--data", str(tmp_path), "--port", "0",
        "--tls-cert", str(files[0]), "--tls-key", str(files[1]),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": "src"},
    )  # fmt: skip
    assert done.returncode == 1
    assert words in done.stderr
    assert "hint: give a PEM file" in done.stderr

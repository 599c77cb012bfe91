"""Which servers Moulin's own processes speak to: real handshakes with certificates of every kind."""

import asyncio
import contextlib
import datetime as dt
import http.server
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from moulin.app.own_certificate import ensure
from moulin.gateway.http_client import HttpClient, NotSent
from moulin.gateway.trust import Trust

LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


class Answering(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(data: Path) -> Iterator[int]:
    """Serve with the pair of a data directory; yield the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(data / "tls/server.pem", data / "tls/server.key")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def made(folder: Path, *names: str, now: dt.datetime | None = None) -> Path:
    folder.mkdir()
    ensure(folder, names, now or dt.datetime.now(dt.UTC))
    return folder


def ask(url: str, trust: Trust) -> int:
    async def once() -> int:
        client = HttpClient(url, "key", trust=trust)
        try:
            return (await client.post("/x", b"{}", 10.0))[0]
        finally:
            client.close()

    return asyncio.run(once())


def test_a_ca_file_is_trusted_and_nobody_else_is(tmp_path: Path) -> None:
    own, other = made(tmp_path / "own", "localhost"), made(tmp_path / "other", "localhost")
    with serving(own) as port:
        assert ask(f"https://127.0.0.1:{port}", Trust(own / "tls/ca.pem")) == 200
        for trust in (Trust(other / "tls/ca.pem"), Trust()):
            with pytest.raises(NotSent, match="its certificate is not trusted"):
                ask(f"https://127.0.0.1:{port}", trust)


def test_a_certificate_may_be_trusted_without_its_issuer(tmp_path: Path) -> None:
    own = made(tmp_path / "own", "mill.example")
    with serving(own) as port:
        assert ask(f"https://127.0.0.1:{port}", Trust(own / "tls/server.pem")) == 200


def test_on_loopback_an_ended_certificate_still_joins_moulins_processes(tmp_path: Path) -> None:
    own = made(tmp_path / "own", "mill.example", now=LONG_AGO)
    with serving(own) as port:
        assert ask(f"https://127.0.0.1:{port}", Trust(own / "tls/server.pem")) == 200
        with pytest.raises(NotSent, match="not trusted"):
            ask(f"https://127.0.0.1:{port}", Trust())


def test_elsewhere_names_and_times_count(tmp_path: Path) -> None:
    """Loopback by no name of it, which is what another machine looks like."""
    own = made(tmp_path / "own", "mill.example", now=LONG_AGO)
    context = Trust(own / "tls/ca.pem").context("https://mill.example:1")
    assert context is not None
    assert context.check_hostname
    with serving(own) as port, pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        asyncio.run(shake_hands(port, context, "mill.example"))
    new = made(tmp_path / "new", "mill.example")
    context = Trust(new / "tls/ca.pem").context("https://mill.example:1")
    assert context is not None
    with serving(new) as port:
        asyncio.run(shake_hands(port, context, "mill.example"))
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            asyncio.run(shake_hands(port, context, "other.example"))


def test_a_renewed_file_is_read_again(tmp_path: Path) -> None:
    old, new = made(tmp_path / "old", "localhost"), made(tmp_path / "new", "localhost")
    file = tmp_path / "trusted.pem"
    file.write_bytes((old / "tls/ca.pem").read_bytes())
    trust = Trust(file)
    with serving(new) as port:
        with pytest.raises(NotSent):
            ask(f"https://127.0.0.1:{port}", trust)
        file.write_bytes((new / "tls/ca.pem").read_bytes() + b"\n")
        assert ask(f"https://127.0.0.1:{port}", trust) == 200


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_without_certificates(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "trusted.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(NotSent, match="trust the certificates in"):
        ask("https://127.0.0.1:9", Trust(file))


def test_plain_http_asks_for_nothing(tmp_path: Path) -> None:
    assert Trust(tmp_path / "none").context("http://127.0.0.1:9") is None


async def shake_hands(port: int, context: ssl.SSLContext, name: str) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()

"""Served to other machines: what the stock clients, the SDK and the command line need to trust it."""

import contextlib
import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
import urllib.request
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from cryptography import x509
from openai import APIConnectionError, DefaultHttpxClient, OpenAI

from moulin.app.certificates import names_of, read_certificate
from moulin.app.own_certificate import ensure
from moulin.domain.errors import Unavailable
from moulin.sdk import Moulin
from tests.e2e.conftest import Shell

NAMES = ("mill.example", "203.0.113.9")


@pytest.fixture(scope="module")
def outside(tmp_path_factory) -> Iterator[tuple[Shell, dict]]:
    """A Moulin on all addresses of this machine, with a certificate of its own."""
    opened = Shell(tmp_path_factory.mktemp("outside"))
    words = ("--listen", "0.0.0.0", "--tls", "self", "--tls-names", ", ".join(NAMES))
    _, facts = opened.up(*words)
    yield opened, facts
    opened.close()


def known(facts: dict) -> dict:
    return json.loads(Path(facts["credentials_file"]).read_text("utf-8"))


def port_of(url: str) -> int:
    return int(urlsplit(url).port or 0)


def named(url: str) -> str:
    """Return the address with a name that strict clients check."""
    return f"https://localhost:{port_of(url)}"


def handshake(url: str, name: str, ca: str, **wanted: object) -> ssl.SSLSocket:
    """Return a connection as a client that calls the server `name` and trusts `ca` makes it."""
    context = ssl.create_default_context(cafile=ca)
    for attribute, value in wanted.items():
        setattr(context, attribute, value)
    plain = socket.create_connection(("127.0.0.1", port_of(url)), timeout=20)
    try:
        return context.wrap_socket(plain, server_hostname=name)
    except BaseException:
        plain.close()
        raise


def serial(url: str) -> int:
    shown = ssl.get_server_certificate(("127.0.0.1", port_of(url)))
    return x509.load_pem_x509_certificate(shown.encode()).serial_number


def test_what_up_says_and_writes(outside):
    shell, facts = outside
    assert facts["listen"] == "0.0.0.0"
    assert facts["ca_file"] == str(shell.data / "tls/ca.pem")
    assert facts["control_url"].startswith("https://127.0.0.1:")
    assert facts["gateway_url"].startswith("https://127.0.0.1:")
    assert known(facts)["ca"] == "tls/ca.pem"
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((shell.data / "tls" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((shell.data / "tls").stat().st_mode) == 0o700


def test_both_listen_on_every_address(outside):
    _, facts = outside
    for url in (facts["control_url"], facts["gateway_url"]):
        found = subprocess.run(
            ["ss", "-Hltn", f"sport = :{port_of(url)}"], capture_output=True, text=True, check=True
        )
        assert "0.0.0.0:" in found.stdout


@pytest.mark.parametrize("place", ["control_url", "gateway_url"])
@pytest.mark.parametrize("name", [*NAMES, "localhost", socket.gethostname()])
def test_the_certificate_is_for_the_names_that_clients_use(outside, place, name):
    _, facts = outside
    with handshake(facts[place], name, facts["ca_file"]) as line:
        assert line.version() == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError, match=r"[Hh]ostname|IP"):
        handshake(facts[place], "other.example", facts["ca_file"])


def test_the_control_api_speaks_tls_12_and_nothing_older(outside):
    _, facts = outside
    latest = ssl.TLSVersion.TLSv1_2
    with handshake(
        facts["control_url"], "localhost", facts["ca_file"], maximum_version=latest
    ) as line:
        cipher = line.cipher()
    assert cipher is not None
    assert cipher[0].startswith("ECDHE-")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    plain = socket.create_connection(("127.0.0.1", port_of(facts["control_url"])), timeout=20)
    with plain, pytest.raises(ssl.SSLError, match=r"EOF|VERSION"):
        old.wrap_socket(plain)


def test_plain_http_gets_nothing(outside):
    _, facts = outside
    url = f"http://127.0.0.1:{port_of(facts['control_url'])}/healthz"
    with pytest.raises(httpx.TransportError):
        httpx.get(url, trust_env=False)


def test_the_stock_client_trusts_the_ca_and_reaches_both_planes(outside):
    """Models come from the gateway's snapshot, files from the control API behind it: both over TLS."""
    _, facts = outside
    trusted = DefaultHttpxClient(verify=ssl.create_default_context(cafile=facts["ca_file"]))
    url = f"{named(facts['gateway_url'])}/v1"
    with OpenAI(base_url=url, api_key=known(facts)["api_key"], http_client=trusted) as client:
        assert list(client.models.list()) == []
        kept = client.files.create(file=("lines.jsonl", b"{}\n"), purpose="batch")
        assert client.files.content(kept.id).read() == b"{}\n"
        assert client.files.delete(kept.id).deleted


def test_the_stock_client_trusts_nobody_by_itself(outside):
    _, facts = outside
    url = f"{named(facts['gateway_url'])}/v1"
    with (
        OpenAI(base_url=url, api_key=known(facts)["api_key"], max_retries=0) as client,
        pytest.raises(APIConnectionError) as caught,
    ):
        client.models.list()
    assert "CERTIFICATE_VERIFY_FAILED" in repr(caught.value.__cause__)


def test_the_stock_client_takes_the_file_from_the_environment(outside):
    """As `up` says: SSL_CERT_FILE=…"""
    _, facts = outside
    program = "import openai; print(list(openai.OpenAI().models.list()))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "SSL_CERT_FILE": facts["ca_file"],
            "OPENAI_BASE_URL": f"{named(facts['gateway_url'])}/v1",
            "OPENAI_API_KEY": known(facts)["api_key"],
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[]\n", done.stderr


def test_the_sdk_takes_a_ca(outside):
    _, facts = outside
    place = {"control_url": named(facts["control_url"]), "api_key": known(facts)["api_key"]}
    with Moulin(**place, ca=facts["ca_file"]) as client:
        assert client.status().version
    with Moulin(credentials=facts["credentials_file"]) as client:
        assert client.status().version
    with Moulin(**place) as client, pytest.raises(Unavailable, match="not trusted") as caught:
        client.status()
    assert "MOULIN_CA" in caught.value.hint


@pytest.mark.parametrize("way", ["flag", "variable"])
def test_the_command_line_takes_a_ca(outside, way):
    shell, facts = outside
    environment = {
        **shell.environment(),
        "MOULIN_URL": f"https://localhost:{port_of(facts['control_url'])}",
        "MOULIN_API_KEY": known(facts)["api_key"],
    }
    words = ["--ca", facts["ca_file"]] if way == "flag" else []
    if way == "variable":
        environment["MOULIN_CA"] = facts["ca_file"]
    done = subprocess.run(
        shell.command(*words, "status", "--json"),
        env=environment,
        cwd=shell.folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"]


def test_a_command_beside_the_data_directory_needs_no_option(outside):
    shell, _ = outside
    assert shell.json("status")["version"]
    job = shell.json("run", "--", "echo", "over TLS")["id"]
    assert shell.moulin("logs", "-f", job).stdout == "over TLS\n"


def test_the_doctor_reads_the_certificate(outside):
    shell, _ = outside
    lines = shell.moulin("doctor", "--offline").stdout
    line = next(each for each in lines.splitlines() if "other machines" in each)
    assert line.startswith("ok")
    assert "mill.example" in line
    assert "days)" in line


def test_a_renewed_certificate_is_served_and_no_stream_is_cut(outside):
    shell, facts = outside
    places = [facts["control_url"], facts["gateway_url"]]
    before = [serial(url) for url in places]
    with listening(facts) as (lines, events):
        names = names_of(read_certificate(shell.data / "tls/server.pem"))
        assert ensure(shell.data, (*names, "renewed.example"), datetime.now(UTC))
        for url, old in zip(places, before, strict=True):
            shell.until(lambda url=url, old=old: serial(url) != old)
        # What is open stays open; new connections, the gateway's own too, know the new one.
        shell.moulin("run", "--", "true")
        shell.until(lambda: len(lines) > 0)
        assert events.is_alive()
    with handshake(places[0], "renewed.example", facts["ca_file"]):
        pass


@contextlib.contextmanager
def listening(facts: dict) -> Iterator[tuple[list[str], threading.Thread]]:
    """Follow the control API's events over a connection that was made before."""
    lines: list[str] = []
    ready, done = threading.Event(), threading.Event()
    client = httpx.Client(
        verify=ssl.create_default_context(cafile=facts["ca_file"]), timeout=60, trust_env=False
    )

    def follow() -> None:
        url = f"{named(facts['control_url'])}/api/v1/events?follow=true"
        bearer = {"authorization": f"Bearer {known(facts)['operator_key']}"}
        with (
            contextlib.suppress(httpx.TransportError),
            client.stream("GET", url, headers=bearer) as answer,
        ):
            ready.set()
            for line in answer.iter_lines():
                if done.is_set():
                    return
                if ready.is_set() and "workload.submitted" in line:
                    lines.append(line)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    assert ready.wait(30)
    yield lines, thread
    done.set()
    client.close()
    thread.join(10)


@pytest.mark.parametrize(
    ("words", "told", "hint"),
    [
        (["--listen", "0.0.0.0"], "keys, prompts and answers", "--insecure-plain-http"),
        (["--control-listen", "::"], "listen on :: without TLS", "--tls self"),
        (["--listen", "mill.example"], "that is no address", "0.0.0.0"),
        (["--tls", "magic"], "no way 'magic'", "--tls self"),
        (["--tls", "self", "--tls-cert", "a", "--tls-key", "b"], "both an own", "give either"),
    ],
    ids=range(5),
)
def test_what_is_refused_before_anything_starts(shell, words, told, hint):
    shell.is_inside = True
    done = shell.moulin("up", "--control-port", "0", "--gateway-port", "0", *words)
    assert done.returncode == 1
    assert told in done.stderr
    assert hint in done.stderr
    assert shell.processes() == []


def test_an_address_of_another_machine(shell):
    done = shell.moulin("up", "--control-port", "0", "--listen", "203.0.113.9", "--tls", "self")
    assert done.returncode == 1
    assert "start the control API on 203.0.113.9" in done.stderr
    assert "an address that this machine has" in done.stderr


def test_plain_http_for_others_is_an_explicit_choice(shell):
    _, facts = shell.up("--listen", "0.0.0.0", "--insecure-plain-http")
    assert facts["control_url"].startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{facts['gateway_url']}/healthz") as answer:
        assert json.load(answer)["status"] == "ok"
    lines = shell.moulin("doctor", "--offline").stdout
    assert "warn  other machines: 0.0.0.0 is served without TLS" in lines

"""The factory's own certificate: when it is made anew, and what it is worth to strict clients."""

import datetime as dt
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from moulin.app import own_certificate
from moulin.app.certificates import judge, names_of, read_certificate
from moulin.app.datadir import OWN_CA, OWN_CERTIFICATE, OWN_KEY
from moulin.app.own_certificate import ensure, machine_names
from moulin.domain.errors import InvalidRequest
from tests.tls_files import write_pair

NOW = dt.datetime(2026, 11, 22, 9, 0, tzinfo=dt.UTC)
NAMES = ("localhost", "127.0.0.1", "mill.example", "fd00::5")


def days(count: int) -> dt.timedelta:
    return dt.timedelta(days=count)


def pair(data: Path) -> tuple[Path, Path]:
    return data / OWN_CERTIFICATE, data / OWN_KEY


def test_a_first_certificate(tmp_path: Path) -> None:
    assert ensure(tmp_path, NAMES, NOW)
    made = read_certificate(tmp_path / OWN_CERTIFICATE)
    assert set(names_of(made)) == set(NAMES)
    for path in (tmp_path / "tls").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    # The Web's rules, not only OpenSSL's: key usages, constraints, identifiers.
    trusted = Store([read_certificate(tmp_path / OWN_CA)])
    verifier = PolicyBuilder().store(trusted).time(NOW)
    for name in ("localhost", "mill.example"):
        chain = verifier.build_server_verifier(x509.DNSName(name)).verify(made, [])
        assert len(chain) == 2


def test_it_is_kept_while_it_serves(tmp_path: Path) -> None:
    ensure(tmp_path, NAMES, NOW)
    before = {path: path.read_bytes() for path in (tmp_path / "tls").iterdir()}
    assert not ensure(tmp_path, NAMES, NOW + days(30))
    assert not ensure(tmp_path, NAMES[:1], NOW + days(59))
    assert {path: path.read_bytes() for path in (tmp_path / "tls").iterdir()} == before


@pytest.mark.parametrize(
    ("spoil", "names", "later"),
    [
        (lambda data: None, (*NAMES, "new.example"), 0),
        (lambda data: None, NAMES, 61),
        (lambda data: (data / OWN_KEY).unlink(), NAMES, 0),
        (lambda data: (data / OWN_CERTIFICATE).write_text("nothing"), NAMES, 0),
        (lambda data: (data / OWN_CERTIFICATE).write_bytes((data / OWN_CA).read_bytes()), NAMES, 0),
    ],
    ids=["another name", "near its end", "no key", "damaged", "another certificate"],
)
def test_it_is_made_anew_and_the_ca_stays(tmp_path: Path, spoil, names, later) -> None:
    ensure(tmp_path, NAMES, NOW)
    ca = (tmp_path / OWN_CA).read_bytes()
    spoil(tmp_path)
    assert ensure(tmp_path, names, NOW + days(later))
    assert (tmp_path / OWN_CA).read_bytes() == ca
    assert judge(pair(tmp_path), ["mill.example"], NOW + days(later)).hint == ""


def test_a_ca_that_ends_is_made_anew(tmp_path: Path) -> None:
    ensure(tmp_path, NAMES, NOW)
    ca = (tmp_path / OWN_CA).read_bytes()
    assert ensure(tmp_path, NAMES, NOW + days(own_certificate.CA_DAYS - 1))
    assert (tmp_path / OWN_CA).read_bytes() != ca


def test_a_name_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no name of a machine"):
        ensure(tmp_path, ("a" * 300,), NOW)


def test_the_names_of_this_machine() -> None:
    found = machine_names(["10.9.9.9"])
    assert {"localhost", "127.0.0.1", "::1", "10.9.9.9"} <= set(found)
    assert "0.0.0.0" not in machine_names(["0.0.0.0"])


@pytest.mark.parametrize(
    ("hosts", "later", "is_usable", "words"),
    [
        (["mill.example"], 0, True, ""),
        ([], 0, True, ""),
        (["other.example"], 0, True, "clients that call this machine other.example refuse it"),
        (["mill.example"], 75, True, "renew it soon"),
        (["mill.example"], 91, False, "renew it; a renewed pair is taken up without a restart"),
        (["mill.example"], -1, False, "wait"),
    ],
)
def test_what_the_doctor_says_of_it(
    tmp_path: Path, hosts: list[str], later: int, is_usable: bool, words: str
) -> None:
    ensure(tmp_path, NAMES, NOW)
    verdict = judge(pair(tmp_path), hosts, NOW + days(later))
    assert verdict.is_usable is is_usable
    assert verdict.hint == words
    assert "mill.example" in verdict.message


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda files: files[0].unlink(), "No such file"),
        (lambda files: files[0].write_text("none"), "holds no certificate"),
        (lambda files: files[1].write_text("none"), "cannot be read"),
        (lambda files: write_other_key(files[1]), "is not the key of"),
    ],
    ids=range(4),
)
def test_what_the_doctor_says_of_files_that_do_not_do(tmp_path: Path, spoil, words) -> None:
    files = write_pair(tmp_path, "first")
    spoil(files)
    verdict = judge(files, [], NOW)
    assert not verdict.is_usable
    assert words in verdict.message
    assert verdict.hint


def write_other_key(path: Path) -> None:
    folder = path.parent / "other"
    folder.mkdir()
    path.write_bytes(write_pair(folder, "other")[1].read_bytes())

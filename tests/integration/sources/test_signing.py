"""The signing key file: made once, kept private, refused when it is not what it should be."""

import stat
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from moulin.domain.errors import LocalError
from moulin.ledger import parse_verifier_key
from moulin.sources.signing import open_signer

NAME = "moulin/demo"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_fresh_key_is_private_and_its_public_half_published(tmp_path):
    path = tmp_path / "keys" / "evidence.key"
    signer = open_signer(path, NAME)
    assert (mode(path), mode(tmp_path / "keys" / "evidence.key.pub")) == (0o600, 0o644)
    published = parse_verifier_key((tmp_path / "keys" / "evidence.key.pub").read_text())
    assert published == signer.key
    Ed25519PublicKey.from_public_bytes(published.public_key).verify(signer.sign(b"x"), b"x")
    assert sorted(p.name for p in path.parent.iterdir()) == ["evidence.key", "evidence.key.pub"]


def test_the_same_key_comes_back(tmp_path):
    path = tmp_path / "evidence.key"
    first, second = open_signer(path, NAME), open_signer(path, NAME)
    assert (first.key, first.operator_secret) == (second.key, second.operator_secret)
    assert first.sign(b"x") == second.sign(b"x")
    assert len(first.operator_secret) == 32
    assert (first.key_name, first.public_key) == (NAME, first.key.public_key)


def test_a_lost_public_half_is_published_again(tmp_path):
    path = tmp_path / "evidence.key"
    signer = open_signer(path, NAME)
    (tmp_path / "evidence.key.pub").unlink()
    open_signer(path, NAME)
    assert (tmp_path / "evidence.key.pub").read_text() == f"{signer.key.text}\n"


def test_two_keys_differ(tmp_path):
    assert open_signer(tmp_path / "a", NAME).key != open_signer(tmp_path / "b", NAME).key


def test_nothing_secret_is_shown(tmp_path):
    path = tmp_path / "evidence.key"
    signer = open_signer(path, NAME)
    assert repr(signer) == f"FileSigner({signer.key.fingerprint})"


def test_a_key_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "evidence.key"
    open_signer(path, NAME)
    path.chmod(0o640)
    with pytest.raises(LocalError, match="others may read it") as caught:
        open_signer(path, NAME)
    assert "chmod 600" in caught.value.hint


def test_a_key_of_another_factory_is_refused(tmp_path):
    path = tmp_path / "evidence.key"
    open_signer(path, NAME)
    with pytest.raises(LocalError, match="not of 'moulin/other'"):
        open_signer(path, "moulin/other")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda line: "",
        lambda line: "PRIVATE+KEY+x",
        lambda line: line[:-9] + "\n",
        lambda line: line.replace("PRIVATE+KEY", "PUBLIC+KEY"),
        lambda line: line.replace("moulin/demo", "moulin/memo"),
        lambda line: line.rsplit("+", 1)[0] + "+" + "B" + line.rsplit("+", 1)[1][1:],
        lambda line: "\x00" * 5000,
    ],
    ids=range(7),
)
def test_a_spoiled_key_file_is_refused_and_left_alone(tmp_path, spoil):
    path = tmp_path / "evidence.key"
    open_signer(path, NAME)
    spoiled = spoil(path.read_text())
    path.write_text(spoiled)
    with pytest.raises(LocalError, match="not a key file"):
        open_signer(path, NAME)
    assert path.read_text() == spoiled


def test_of_several_that_make_the_key_at_once_all_get_the_same(tmp_path):
    path = tmp_path / "evidence.key"
    barrier = threading.Barrier(4)
    found = []

    def make():
        barrier.wait()
        found.append(open_signer(path, NAME).key)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1

"""Secrets are sealed for one owner and name, and a destroyed key makes every copy noise."""

from dataclasses import replace
from pathlib import Path

import pytest

from moulin.domain.errors import LocalError, NotFound
from moulin.domain.ids import OrganisationId, ProjectId
from moulin.domain.secrets import SealedSecret
from moulin.sources.vault import Vault

FIRST = "sec_01HF7YAT000000000000000001"
SECOND = "sec_01HF7YAT000000000000000002"
VALUE = "un mot que personne n'écrit".encode()


def blank(id: str = FIRST, name: str = "TOKEN", project: str = "lab") -> SealedSecret:
    return SealedSecret(
        id=id,
        organisation=OrganisationId("uni"),
        project=ProjectId(project),
        name=name,
        ciphertext=b"",
        set_by="ada",
        set_at_ns=1,
    )


def vault(folder: Path) -> Vault:
    return Vault(folder / "secrets", folder / "secrets.key")


def written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_secret_opens_again_also_after_a_restart(tmp_path):
    sealed = vault(tmp_path).seal(blank(), VALUE)
    assert vault(tmp_path).open(sealed) == VALUE
    assert VALUE not in sealed.ciphertext + written(tmp_path)
    assert "ciphertext" not in repr(sealed)


def test_files_are_for_their_owner_alone(tmp_path):
    vault(tmp_path).seal(blank(), VALUE)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "change", [{"name": "OTHER"}, {"project": "shop"}, {"organisation": "firm"}]
)
def test_a_ciphertext_stands_for_nobody_elses(tmp_path, change):
    held = vault(tmp_path)
    with pytest.raises(LocalError):
        held.open(replace(held.seal(blank(), VALUE), **change))


def test_a_ciphertext_under_another_id_does_not_open(tmp_path):
    held = vault(tmp_path)
    first, _ = held.seal(blank(), VALUE), held.seal(blank(SECOND), VALUE)
    with pytest.raises(LocalError):
        held.open(replace(first, id=SECOND))
    for name in (FIRST, SECOND):
        (tmp_path / "secrets" / f"{name}.swap").write_bytes(
            (tmp_path / "secrets" / f"{name}.key").read_bytes()
        )
    (tmp_path / "secrets" / f"{SECOND}.swap").replace(tmp_path / "secrets" / f"{FIRST}.key")
    with pytest.raises(LocalError):
        held.open(first)


def test_a_destroyed_key_makes_every_copy_noise(tmp_path):
    held = vault(tmp_path)
    sealed = held.seal(blank(), VALUE)
    held.shred([FIRST, SECOND])
    for each in (held, vault(tmp_path)):
        with pytest.raises(NotFound):
            each.open(sealed)
    assert held.ids() == ()


def test_a_rotation_keeps_secrets_and_makes_old_copies_of_keys_useless(tmp_path):
    held = vault(tmp_path)
    sealed = held.seal(blank(), VALUE)
    former = (tmp_path / "secrets" / f"{FIRST}.key").read_bytes()
    master = (tmp_path / "secrets.key").read_bytes()
    assert held.rotate() == 1
    assert held.open(sealed) == vault(tmp_path).open(sealed) == VALUE
    assert (tmp_path / "secrets.key").read_bytes() != master
    (tmp_path / "secrets" / f"{FIRST}.key").write_bytes(former)
    with pytest.raises(LocalError, match="another master key"):
        held.open(sealed)


def test_a_rotation_that_was_cut_short_is_ended_at_the_next_start(tmp_path):
    held = vault(tmp_path)
    first, second = held.seal(blank(), VALUE), held.seal(blank(SECOND, "OTHER"), VALUE)
    old_key = (tmp_path / "secrets" / f"{SECOND}.key").read_bytes()
    [form, old] = (tmp_path / "secrets.key").read_text().splitlines()
    held.rotate()
    [_, new] = (tmp_path / "secrets.key").read_text().splitlines()
    # As a crash leaves it: both master keys, one key wrapped already and one not.
    (tmp_path / "secrets.key").write_text(f"{form}\n{new}\n{old}\n")
    (tmp_path / "secrets" / f"{SECOND}.key").write_bytes(old_key)
    again = vault(tmp_path)
    assert again.open(first) == again.open(second) == VALUE
    assert (tmp_path / "secrets.key").read_text().splitlines() == [form, new]


def test_a_rotation_that_the_disk_stops_loses_nothing(tmp_path):
    held = vault(tmp_path)
    sealed = held.seal(blank(), VALUE)
    (tmp_path / ".secrets.key").mkdir()  # where the new master key would be written first
    with pytest.raises(LocalError):
        held.rotate()
    (tmp_path / ".secrets.key").rmdir()
    later = held.seal(blank(SECOND, "OTHER"), VALUE)
    again = vault(tmp_path)
    assert again.open(sealed) == again.open(later) == VALUE
    (tmp_path / "secrets" / f".{FIRST}.key").mkdir()
    with pytest.raises(LocalError):
        held.rotate()  # the master keys are both on the disk by now, and one key is not wrapped
    (tmp_path / "secrets" / f".{FIRST}.key").rmdir()
    assert held.rotate() == 2
    again = vault(tmp_path)
    assert again.open(sealed) == again.open(later) == VALUE
    assert len((tmp_path / "secrets.key").read_text().splitlines()) == 2


def test_a_lost_or_open_master_key_is_told_and_never_replaced(tmp_path):
    vault(tmp_path).seal(blank(), VALUE)
    master = tmp_path / "secrets.key"
    master.chmod(0o640)
    with pytest.raises(LocalError, match="others may read"):
        vault(tmp_path)
    for damaged in (b"", b"moulin-secrets/v1\n", b"moulin-secrets/v1\nAAAA\n", b"\xff\n"):
        master.chmod(0o600)
        master.write_bytes(damaged)
        with pytest.raises(LocalError, match="no key file"):
            vault(tmp_path)
    master.unlink()
    with pytest.raises(LocalError):
        vault(tmp_path)
    assert not master.exists()


def test_what_is_no_id_names_no_file(tmp_path):
    held = vault(tmp_path)
    with pytest.raises(NotFound):
        held.shred(["../pepper"])
    assert list((tmp_path / "secrets").iterdir()) == []

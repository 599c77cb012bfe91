"""The folder of tenants' bytes: whole or not there, gone when deleted, swept when nobody's."""

import hashlib

import pytest

from moulin.domain.errors import NotFound, StoreUnavailable
from moulin.domain.ids import make_id
from moulin.store.folder import ObjectFolder

NAME = make_id("file", 10**18, 1)
OTHER = make_id("file", 10**18, 2)


def names(path):
    return [each.name for each in (path / "objects").iterdir()]


def test_bytes_are_there_when_they_are_whole(tmp_path):
    folder = ObjectFolder(tmp_path / "objects")
    upload = folder.begin(NAME)
    upload.write(b"one ")
    with pytest.raises(NotFound):
        next(folder.read(NAME))
    upload.write(b"two")
    assert upload.close() == hashlib.sha256(b"one two").hexdigest()
    assert b"".join(folder.read(NAME)) == b"one two"
    assert folder.path(NAME).stat().st_mode & 0o077 == 0
    folder.delete(NAME)
    folder.delete(NAME)
    with pytest.raises(NotFound):
        next(folder.read(NAME))


def test_an_upload_that_fails_leaves_nothing(tmp_path):
    folder = ObjectFolder(tmp_path / "objects")

    def pieces():
        yield b"one"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        folder.put(NAME, pieces())
    assert names(tmp_path) == []
    begun = folder.begin(NAME)
    with pytest.raises(StoreUnavailable):
        folder.begin(NAME)
    begun.drop()
    assert folder.put(NAME, [b"a", b"bc"]) == (3, hashlib.sha256(b"abc").hexdigest())


@pytest.mark.parametrize("name", ["../secret", "file_1", "", "/etc/passwd", NAME + "/x"])
def test_what_is_no_id_names_no_file(tmp_path, name):
    with pytest.raises(NotFound):
        ObjectFolder(tmp_path).path(name)


def test_old_files_that_are_nobodys_go(tmp_path):
    folder = ObjectFolder(tmp_path / "objects")
    folder.put(NAME, [b"kept"])
    folder.put(OTHER, [b"gone"])
    (tmp_path / "objects" / f".{OTHER}.part").write_bytes(b"never ended")
    now_s = folder.path(NAME).stat().st_mtime
    assert folder.sweep(frozenset({NAME}), now_s - 60) == 0
    assert folder.sweep(frozenset({NAME}), now_s + 60) == 2
    assert names(tmp_path) == [NAME]

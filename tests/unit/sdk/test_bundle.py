"""What belongs to a folder's bundle, that equal folders give equal bytes, and what is refused."""

import os
import tarfile
from pathlib import Path

import pytest

from moulin.domain.errors import InvalidRequest, NotFound
from moulin.sdk import _bundle
from moulin.sdk._bundle import members, packed


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text(name)
    return folder


def digest(folder: Path) -> str:
    with packed(folder) as found:
        return found.sha256


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ({}, ["a.py", "data", "data/big.bin", "src", "src/b.py", "src/log.txt"]),
        ({".gitignore": "*.bin\n"}, [".gitignore", "a.py", "data", "src", "src/b.py", "src/log.txt"]),
        ({".gitignore": "data/\n!data/big.bin\n"}, [".gitignore", "a.py", "src", "src/b.py", "src/log.txt"]),
        ({".gitignore": "*.py\n", ".moulinignore": "data\n"}, [".gitignore", ".moulinignore", "a.py", "src", "src/b.py", "src/log.txt"]),
        ({".gitignore": "*.txt\n", "src/.gitignore": "!log.txt\n"}, [".gitignore", "a.py", "data", "data/big.bin", "src", "src/.gitignore", "src/b.py", "src/log.txt"]),
        ({"src/.gitignore": "/b.py\n"}, ["a.py", "data", "data/big.bin", "src", "src/.gitignore", "src/log.txt"]),
        ({".moulinignore": "!.git/\n"}, [".git", ".git/HEAD", ".moulinignore", "a.py", "data", "data/big.bin", "src", "src/b.py", "src/log.txt"]),
    ],
)  # fmt: skip
def test_rules_say_what_belongs_to_it(tmp_path, rules, kept):
    make(tmp_path, "a.py", "src/b.py", "src/log.txt", "data/big.bin", ".git/HEAD", "__pycache__/x")
    for name, text in rules.items():
        (tmp_path / name).write_text(text)
    assert sorted(members(tmp_path)) == sorted(kept)


def test_equal_folders_give_equal_bytes_whatever_their_times(tmp_path):
    one, other = (make(tmp_path / name, "b/c", "a", "run.sh") for name in ("one", "other"))
    os.utime(one / "a", (1, 1))
    assert digest(one) == digest(other)
    (one / "run.sh").chmod(0o755)
    runnable = digest(one)
    assert runnable != digest(other)
    (one / "a").write_text("changed")
    assert digest(one) != runnable


def test_it_holds_files_folders_and_links_inside_and_no_owner(tmp_path):
    make(tmp_path / "f", "a", "b/c", "empty/")
    (tmp_path / "f" / "b" / "link").symlink_to("../a")
    (tmp_path / "f" / "empty").mkdir()
    os.mkfifo(tmp_path / "f" / "pipe")
    with packed(tmp_path / "f") as found, tarfile.open(fileobj=found.stream, mode="r:gz") as tar:
        infos = {info.name: info for info in tar}
        assert (found.files, found.files_bytes) == (6, 4)
    assert sorted(infos) == ["a", "b", "b/c", "b/link", "empty"]
    assert infos["b/link"].linkname == "../a"
    assert {(info.uid, info.gid, info.uname, info.mtime) for info in infos.values()} == {
        (0, 0, "", 315_532_800)
    }


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "sub/../../outside"])
def test_a_link_to_elsewhere_is_refused(tmp_path, target):
    make(tmp_path / "f", "a")
    (tmp_path / "f" / "link").symlink_to(target)
    with pytest.raises(InvalidRequest, match="outside"):
        digest(tmp_path / "f")


def test_too_much_is_refused_with_what_to_do(tmp_path, monkeypatch):
    make(tmp_path, "a", "b", "c")
    for limit in ("FILES_MAX", "BYTES_MAX", "PACKED_BYTES_MAX"):
        with monkeypatch.context() as patch:
            patch.setattr(_bundle, limit, 2)
            with pytest.raises(InvalidRequest) as caught:
                digest(tmp_path)
        assert ".moulinignore" in caught.value.hint


def test_what_is_no_folder_is_said(tmp_path):
    with pytest.raises(NotFound, match="no folder"):
        digest(tmp_path / "nothing")

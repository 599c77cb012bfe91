"""Unpacking: what a bundle may do to a node, and that the program imports nothing of ours."""

import ast
import hashlib
import io
import sys
import tarfile
from pathlib import Path

import pytest

from moulin.engines.task import beside
from moulin.engines.task.beside import Unprepared, unpack


def bundle(tmp_path: Path, *infos: tarfile.TarInfo, data: bytes = b"") -> dict[str, str]:
    path = tmp_path / "bundle"
    with tarfile.open(path, "w:gz") as archive:
        for info in infos:
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_bundle_becomes_the_folder(tmp_path, capfd):
    work = tmp_path / "work"
    work.mkdir()
    wanted = bundle(
        tmp_path,
        member("src", tarfile.DIRTYPE, mode=0o755),
        member("src/run", mode=0o4777),
        member("src/link", tarfile.SYMTYPE, "run"),
        data=b"hello",
    )
    unpack(wanted, str(work))
    assert tree(work) == ["src", "src/link", "src/run"]
    assert (work / "src" / "link").read_bytes() == b"hello"
    assert (work / "src" / "run").stat().st_mode & 0o7777 == 0o755
    assert "unpacked 3 files" in capfd.readouterr().err


@pytest.mark.parametrize(
    "infos",
    [
        [member("../escaped")],
        [member("a/../../escaped")],
        [member("link", tarfile.SYMTYPE, "../../etc")],
        [member("link", tarfile.SYMTYPE, "/etc")],
        [member("out", tarfile.SYMTYPE, ".."), member("out/escaped")],
        [member("hard", tarfile.LNKTYPE, "../bundle")],
        [member("pipe", tarfile.FIFOTYPE)],
        [member("device", tarfile.CHRTYPE)],
    ],
    ids=["up", "down-up", "link-up", "link-away", "through-link", "hard-link", "pipe", "device"],
)
def test_nothing_leaves_the_folder(tmp_path, infos):
    work = tmp_path / "work"
    work.mkdir()
    wanted = bundle(tmp_path, *infos, data=b"x")
    with pytest.raises(Unprepared, match="refused"):
        unpack(wanted, str(work))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bundle", "work"]


def test_an_absolute_name_stays_inside(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    unpack(bundle(tmp_path, member("/tmp/x"), data=b"x"), str(work))
    assert tree(work) == ["tmp", "tmp/x"]


def test_other_bytes_and_too_much_are_refused(tmp_path, monkeypatch):
    wanted = bundle(tmp_path, member("a"), member("b"), data=b"12345")
    with pytest.raises(Unprepared, match="damaged"):
        unpack({**wanted, "sha256": "0" * 64}, str(tmp_path))
    for limit, value in (("FILES_MAX", 1), ("BYTES_MAX", 9)):
        with monkeypatch.context() as patch:
            patch.setattr(beside, limit, value)
            with pytest.raises(Unprepared, match="more than"):
                unpack(wanted, str(tmp_path))
    Path(wanted["path"]).write_bytes(b"no archive")
    digest = hashlib.sha256(b"no archive").hexdigest()
    with pytest.raises(Unprepared, match="cannot be unpacked"):
        unpack({**wanted, "sha256": digest}, str(tmp_path))


def test_it_imports_the_standard_library_alone():
    found = ast.walk(ast.parse(Path(beside.__file__).read_text(encoding="utf-8")))
    names = {each.name for node in found if isinstance(node, ast.Import) for each in node.names}
    assert names <= sys.stdlib_module_names

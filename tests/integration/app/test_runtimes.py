"""Runtimes as a data directory has them: what is missing says how it comes, and conversions fail by name."""

import sys

import pytest

from moulin.app import runtimes
from moulin.app.runtimes import RuntimeBook
from moulin.domain.errors import Refused, SourceError, SourceUnavailable


@pytest.fixture
def book(tmp_path) -> RuntimeBook:
    return RuntimeBook(tmp_path / "runtimes")


@pytest.fixture
def installed(book, monkeypatch) -> RuntimeBook:
    """Make it look as if every runtime were installed in this environment."""
    monkeypatch.setattr(RuntimeBook, "command", lambda *_: (sys.executable, "-m", "it"))
    return book


def test_what_is_not_installed_converts_nothing(book, tmp_path) -> None:
    with pytest.raises(Refused, match="the runtime vllm") as caught:
        book.convert("vllm", tmp_path / "model.gguf", tmp_path / "out")
    assert caught.value.hint == "moulin runtime install vllm"


def test_a_file_that_is_not_there_is_named(installed, tmp_path) -> None:
    with pytest.raises(SourceUnavailable, match=r"gone\.gguf"):
        installed.convert("vllm", tmp_path / "gone.gguf", tmp_path / "out")


def test_a_folder_that_exists_is_kept(installed, tmp_path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    (tmp_path / "out").mkdir()
    with pytest.raises(SourceError, match="it exists"):
        installed.convert("vllm", file, tmp_path / "out")


def test_what_the_library_says_is_handed_on_and_nothing_is_left(
    installed, tmp_path, monkeypatch
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(SourceError, match="ModuleNotFoundError: No module named 'torch'"):
        installed.convert("vllm", file, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"]
    monkeypatch.setattr(runtimes, "CONVERTER", "no.such.module")
    with pytest.raises(SourceError, match=r"no\.such\.module"):
        installed.convert("vllm", file, tmp_path / "out")

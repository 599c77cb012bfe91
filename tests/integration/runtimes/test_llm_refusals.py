"""What the model runtime refuses before it loads anything: one clear line, a hint, status 1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moulin.runtimes.llm import main
from moulin.runtimes.program import memory_available_bytes
from tests.gguf_bytes import TINY, gguf

SOURCE = Path(__file__).parents[3] / "src"


@pytest.fixture
def key_file(tmp_path) -> Path:
    path = tmp_path / "key"
    path.write_text("secret\n")
    path.chmod(0o600)
    return path


def serve(model: Path, key_file: Path, *more: str) -> list[str]:
    named = ["--model", str(model), "--alias", "m", "--key-file", str(key_file)]
    return [*named, "--context", "64", *more]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (os.urandom(1000), "does not begin with GGUF"),
        (gguf()[:-100], "cut off"),
        (gguf()[:80], "header is damaged"),
        (None, "No such file"),
    ],
)
def test_damaged_model_files(tmp_path, key_file, capsys, content, words) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    assert main(serve(path, key_file)) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert words in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--context", "129"), "this model takes 1 to 128"),
        (("--context", "0"), "this model takes 1 to 128"),
        (("--parallel", "0"), "0 requests at once"),
        (("--threads", "-1"), "-1 threads"),
    ],
)
def test_impossible_shapes(tmp_path, key_file, capsys, more, words) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf())
    assert main(serve(path, key_file, *more)) == 1
    assert words in capsys.readouterr().err


def test_too_little_memory_is_refused_with_the_numbers(tmp_path, key_file, capsys) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(TINY | {"llama.context_length": 2**31 - 1}))
    assert main(serve(path, key_file, "--context", str(2**31 - 1), "--parallel", "64")) == 1
    said = capsys.readouterr().err
    # 2 vectors × 2 layers × 2 heads × 16 elements × 2 bytes for each token of each request.
    assert f"{256 * (2**31 - 1) * 64 // 10**6} MB KV cache" in said
    assert "hint: ask for a shorter context" in said


def test_memory_available_is_a_plausible_number() -> None:
    assert 10 * 2**20 < memory_available_bytes() < 2**50


@pytest.mark.parametrize(
    ("mode", "content", "words"),
    [(0o644, "secret", "others may read it"), (0o600, " \n", "it is empty"), (None, "", "No such")],
)
def test_key_files_that_protect_nothing(tmp_path, capsys, mode, content, words) -> None:
    path = tmp_path / "key"
    if mode is not None:
        path.write_text(content)
        path.chmod(mode)
    assert main(serve(tmp_path / "model.gguf", path)) == 1
    assert words in capsys.readouterr().err


def test_a_missing_extra_is_named(tmp_path, key_file) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf())
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    done = subprocess.run(
        [home / "bin" / "python", "-m", "moulin.runtimes.llm", *serve(path, key_file)],
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "xllamacpp is not installed" in done.stderr
    assert "hint: pip install 'moulin[llm]'" in done.stderr


@pytest.mark.model
def test_a_model_llama_cpp_does_not_know_is_refused(tmp_path, key_file) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf())
    done = subprocess.run(
        [sys.executable, "-m", "moulin.runtimes.llm", *serve(path, key_file)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "llama.cpp refused it" in done.stderr

"""The examples and what their README says they print: every command is run, every line compared."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Shell
from tests.real_model import cache_directory, smollm2

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples"
LINES_MAX = 60
# The one example that is a whole factory.
LONG = "07_factory.yaml"

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]


def shown() -> list[tuple[str, list[str]]]:
    """Return each command of the README with the lines it shows below."""
    text = (EXAMPLES / "README.md").read_text("utf-8")
    block = re.search(r"```console\n(.*?)```", text, re.DOTALL)
    assert block
    parts = [part.strip().splitlines() for part in block[1].split("$ ") if part.strip()]
    return [(part[0], part[1:]) for part in parts]


@pytest.fixture(scope="module")
def factory(tmp_path_factory) -> Iterator[Shell]:
    """A Moulin of two nodes with the examples beside it."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two nodes need two CPUs")
    smollm2()
    opened = Shell(tmp_path_factory.mktemp("examples"), is_inside=True)
    (opened.folder / "examples").symlink_to(EXAMPLES)
    models = cache_directory() / "store"
    (opened.folder / "moulin.toml").write_text(f'models = "{models}"\n', "utf-8")
    opened.up("--nodes", "2")
    yield opened
    opened.close()


def test_every_example_does_what_its_readme_shows(factory):
    for command, expected in shown():
        program, *words = shlex.split(command)
        if program == "moulin":
            printed = factory.moulin(*words).stdout
        else:
            done = subprocess.run(
                [sys.executable, *words],
                cwd=factory.folder,
                env=factory.environment(),
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            printed = done.stdout
        assert matches(printed, expected), f"$ {command}\n{printed}"


def matches(printed: str, expected: list[str]) -> bool:
    """Compare line by line; … stands for anything, alone on a line for any number of lines."""
    lines = [re.escape(re.sub(r"127\.0\.0\.1:\d+", "HOST", line)) for line in expected]
    pattern = "\n".join(".*" if line == "…" else line.replace("…", ".*") for line in lines)
    text = re.sub(r"127\.0\.0\.1:\d+", "HOST", printed.strip())
    return re.fullmatch(pattern, text, re.DOTALL) is not None


def test_each_example_is_numbered_short_and_described():
    readme = (EXAMPLES / "README.md").read_text("utf-8")
    files = sorted(path for path in EXAMPLES.iterdir() if path.name != "README.md")
    for number, path in enumerate(files, start=1):
        assert path.name.startswith(f"{number:02d}_")
        assert f"[{path.name}]({path.name})" in readme
        if path.name != LONG:
            assert path.read_text("utf-8").count("\n") <= LINES_MAX, path.name


@pytest.mark.parametrize(
    ("printed", "expected", "is_same"),
    [
        ("a\nb\n", ["a", "b"], True),
        ("a\nx\ny\n", ["a", "…"], True),
        ("cost: 3\n", ["cost: …"], True),
        ("a\n", ["a", "b"], False),
        ("b\n", ["a"], False),
    ],
)
def test_the_comparison_compares(printed, expected, is_same):
    assert matches(printed, expected) is is_same

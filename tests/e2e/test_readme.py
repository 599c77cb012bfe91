"""README.md tells the truth: its tour is run as it stands, and what it quotes of the demo is said."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Shell
from tests.real_model import cache_directory, smollm2

README = Path(__file__).resolve().parent.parent.parent / "README.md"
# The answer to the tour's question is the model's own affair.
CAN_NEVER_RUN = "far"

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]


def tour() -> list[list[str]]:
    """Return the words of each command of the tour, comments left out."""
    text = README.read_text("utf-8").partition("## A tour of sixty seconds")[2]
    block = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert block
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


@pytest.fixture
def shell(tmp_path) -> Iterator[Shell]:
    """A folder where nothing runs yet, with the tests' model files."""
    smollm2()
    opened = Shell(tmp_path)
    models = cache_directory() / "store"
    (tmp_path / "moulin.toml").write_text(f'models = "{models}"\n', "utf-8")
    yield opened
    opened.close()


def test_the_tour_goes_as_it_is_written(shell):
    commands = tour()
    assert commands[0][:2] == ["moulin", "up"]
    assert commands[-1] == ["moulin", "down"]
    shell.up(*commands[0][2:])
    receipt = ""
    for program, *given in commands[1:]:
        assert program == "moulin"
        words = [receipt if word == "RECEIPT" else word for word in given]
        if words[:2] == ["receipt", "list"]:
            shell.until(lambda words=words: shell.json(*words)["items"])
            receipt = shell.json(*words)["items"][0]["id"]
        if words == ["usage"]:  # receipts come when an interval of metering closes
            shell.until(lambda: "hello" in shell.moulin("usage").stdout)
        done = shell.moulin(*words)
        assert (done.returncode == 0) is (CAN_NEVER_RUN not in words), f"{words}\n{done.stderr}"
        check(words, done.stdout)


def check(words: list[str], printed: str) -> None:
    """Each command says what the tour uses it for."""
    expected = {
        "deploy": "smollm2-135m-instruct is ready at http://127.0.0.1:",
        "run": "only SE may be used, and zone local is in FR" if "far" in words else "hello\n",
        "why": "hello is succeeded",
        "usage": "hello",
        "down": "stopped Moulin, 1 workload(s)",
    }.get(words[0], "OK: receipt " if words[:2] == ["receipt", "verify"] else "")
    assert expected in printed, f"{words}\n{printed}"


def quoted() -> list[str]:
    """Return the lines that the README quotes of the demo, as `said` makes them."""
    block = re.search(r"```text\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert block
    return [said(line) for line in block[1].splitlines()]


def said(text: str) -> str:
    """Return a text in which everything that differs from run to run is #."""
    text = re.sub(r"rcp_req_[0-9A-Z]{26}|[0-9a-f]{16}…", "#", text)
    return re.sub(r"[0-9]+", "#", re.sub(r"[0-9.,]*[0-9]", "#", " ".join(text.split())))

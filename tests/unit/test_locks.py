"""The locks agree with pyproject.toml and with one another."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(kind):
    text = (ROOT / f"requirements/{kind}.txt").read_text("utf-8")
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def wanted(extra):
    """Names an extra asks for, those of the extras it refers to included."""
    names = {*PROJECT["dependencies"]}
    for requirement in PROJECT["optional-dependencies"].get(extra, []):
        match = re.fullmatch(r"moulin\[(.+)\]", requirement)
        for other in match[1].split(",") if match else ():
            names |= wanted(other.strip())
        if not match:
            names.add(requirement)
    return {canonical(re.split(r"[\[<>=~! ]", name)[0]) for name in names}


@pytest.mark.parametrize(("kind", "extra"), [("base", ""), ("demo", "demo"), ("dev", "dev")])
def test_lock_holds_what_the_project_asks_for(kind, extra):
    assert wanted(extra) <= locked(kind).keys(), "run `make lock`"


@pytest.mark.parametrize(("small", "large"), [("base", "demo"), ("demo", "dev")])
def test_one_environment_serves_both(small, large):
    assert locked(small).items() <= locked(large).items(), "run `make lock`"


@pytest.mark.parametrize("kind", ["base", "demo", "dev"])
def test_each_pin_has_a_digest(kind):
    text = (ROOT / f"requirements/{kind}.txt").read_text("utf-8")
    pins = re.findall(r"^[a-z0-9-]+==.*\\\n +--hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    assert len(pins) == len(locked(kind)) > 10

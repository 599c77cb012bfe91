"""A process that ends on its own is started again, later and later; its last words are understood."""

import sys

import pytest

from moulin.app.children import BACKOFF_S, Child, revive, split_words


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("error: no room\n\nhint: make some\n", "no room", "make some"),
        ("warning\nerror: no room\n", "no room", ""),
        ("error: old\nhint: x\nerror: new\nhint: y\n", "new", "y"),
        ("Traceback\nValueError: x\n", "ValueError: x", ""),
        ("", "see the log", ""),
    ],
    ids=range(5),
)
def test_last_words(text, message, hint):
    assert split_words(text, "see the log") == (message, hint)


def test_pauses_grow_while_it_keeps_ending(tmp_path):
    child = Child(
        "x", [sys.executable, "-I", "-S", "-c", "print('error: no')"], 0, tmp_path / "log"
    )
    said: list[str] = []
    for _ in range(2):
        child.start()
        assert child.process is not None
        child.process.wait()
        assert revive(child, said.append) is False
        child.restart_at_s = 0.0
    assert [f"in {pause:g} s" in text for pause, text in zip(BACKOFF_S, said, strict=False)] == [
        True,
        True,
    ]
    assert "ended with status 0" in said[0]
    assert child.last_words() == "error: no\nerror: no"


def test_it_is_started_when_its_time_has_come(tmp_path):
    child = Child("x", [sys.executable, "-I", "-S", "-c", ""], 0, tmp_path / "log")
    child.start()
    assert child.process is not None
    child.process.wait()
    child.restart_at_s = 1e-9
    assert revive(child, print) is True
    child.process.wait()

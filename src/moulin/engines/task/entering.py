"""The words of the program that goes into a task, as any engine runs it on the task's node."""

import os
import sys
from pathlib import Path
from typing import Final

from moulin.domain.session import EntryWanted

PROGRAM: Final = str(Path(__file__).with_name("enter.py"))


def entering(
    directory: str, wanted: EntryWanted, *, program: str = PROGRAM, python: str = ""
) -> tuple[str, ...]:
    """Return the argv that goes into the task of a step directory."""
    start = python_words(python, program)
    if wanted.port:
        return (*start, directory, "forward", str(wanted.port))
    return (*start, directory, "exec", wanted.terminal, *wanted.command)


def on_a_terminal(command: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command that leads a session on the terminal that its standard input is."""
    return (*python_words("", PROGRAM), "-", "terminal", *command)


def python_words(python: str, program: str) -> tuple[str, ...]:
    """Return how a bare program is run, by this machine's own Python where none is named."""
    return (python or os.path.realpath(sys.executable), "-I", "-S", "-E", program)

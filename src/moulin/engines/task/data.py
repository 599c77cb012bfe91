"""Writes what the program beside a task is to prepare; judges only what no node could do.

A task with a bundle or inputs starts in a folder of its own, `work` in its step's directory. Its plan
is a file, so that nothing of it is in a command line. Decision 0041.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from moulin.domain.plan import StartStep
from moulin.engines.task.spool import StepFiles, make_directory, write_whole

BESIDE: Final = str(Path(__file__).with_name("beside.py"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """How the program is run on the nodes: a Python, and the path of it there."""

    python: Sequence[str]
    program: str

    def words(self, files: StepFiles) -> tuple[str, ...]:
        """Return what stands before a task's own argv."""
        return (*self.python, "-I", "-S", "-E", self.program, plan_of(files))


def needs_data(step: StartStep) -> bool:
    """Say whether anything is to be prepared for a step."""
    return bool(step.task.bundle)


def plan_of(files: StepFiles) -> str:
    """Return the path of a step's plan."""
    return f"{files.directory}/data"


def placed(step: StartStep, files: StepFiles) -> StartStep:
    """Return the step with the folder it starts in, which is there from here on."""
    if not needs_data(step) or step.task.workdir:
        return step
    folder = f"{files.directory}/work"
    make_directory(folder)
    return replace(step, task=replace(step.task, workdir=folder))


def write_plan(step: StartStep, files: StepFiles) -> None:
    """Write what the program beside the task does; raises `OSError` as files do."""
    bundle = {"path": step.bundle_path, "sha256": step.task.bundle} if step.task.bundle else None
    plan = {"bundle": bundle, "inputs": {}, "outputs": {}, "outputs_when": "success"}
    write_whole(plan_of(files), json.dumps(plan).encode(), is_durable=False)

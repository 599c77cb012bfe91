"""Writes what the program beside a task is to prepare and to save; judges only what no node could do.

A task with a bundle, inputs or outputs starts in a folder of its own, `work` in its step's directory,
unless it names one. Its plan is a file, so that nothing of it is in a command line. Decision 0041.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from moulin.domain.needs import Need
from moulin.domain.plan import StartStep
from moulin.engines.task.specification import refusal
from moulin.engines.task.spool import StepFiles, make_directory, write_whole

BESIDE: Final = str(Path(__file__).with_name("beside.py"))
MOVER: Final = str(Path(__file__).with_name("mover.py"))
_RANK: Final = "{rank}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """How the programs beside a task are run on the nodes: a Python each, and their paths there.

    The mover's Python has libraries; the other one needs none.
    """

    python: Sequence[str]
    program: str
    mover_python: Sequence[str]
    mover: str

    def words(self, step: StartStep, files: StepFiles) -> tuple[str, ...]:
        """Write a step's plan, and return what stands before its own argv; none, nothing.

        Raises `OSError` as files do.
        """
        if not needs_data(step):
            return ()
        path = f"{files.directory}/data"
        write_whole(path, json.dumps(self._plan(step)).encode(), is_durable=False)
        return (*self.python, "-I", "-S", "-E", self.program, path)

    def _plan(self, step: StartStep) -> Mapping[str, object]:
        task = step.task
        return {
            "bundle": {"path": step.bundle_path, "sha256": task.bundle} if task.bundle else None,
            "inputs": {place: _filled(step, address) for place, address in task.inputs.items()},
            "outputs": _outputs(step),
            "outputs_when": task.outputs_when.value,
            "mover": [*self.mover_python, "-I", self.mover],
            "project": step.project,
        }


def needs_data(step: StartStep) -> bool:
    """Say whether anything is to be prepared or saved for a step."""
    task = step.task
    return bool(task.bundle or task.inputs or task.outputs)


def data_lacking() -> tuple[Need, ...]:
    """Return what a mover that runs in this very Python could not copy."""
    return () if find_spec("s3fs") else (Need.OBJECTS,)


def refuse_bad_data(step: StartStep) -> None:
    """Raise `EngineRefused` for what no node can save."""
    if step.task.image and step.task.outputs:
        raise refusal(
            step,
            "outputs of a program in an image are not saved yet",
            "have the program write them where they belong, or leave `image` out",
        )


def placed(step: StartStep, files: StepFiles) -> StartStep:
    """Return the step with the folder it starts in, which is there from here on."""
    if not needs_data(step) or step.task.workdir:
        return step
    folder = f"{files.directory}/work"
    make_directory(folder)
    return replace(step, task=replace(step.task, workdir=folder))


def _outputs(step: StartStep) -> dict[str, str]:
    """Return what this task of its gang saves: the first one all, others what has a place for each."""
    return {
        place: _filled(step, address)
        for place, address in step.task.outputs.items()
        if step.rank == 0 or _RANK in address
    }


def _filled(step: StartStep, address: str) -> str:
    names = {
        _RANK: str(step.rank),
        "{index}": step.env.get("MOULIN_ARRAY_INDEX", "0"),
        "{id}": step.workload,
    }
    for name, value in names.items():
        address = address.replace(name, value)
    return address

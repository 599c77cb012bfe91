"""Hands a task its secrets beside its specification, and takes back what it did not fetch.

The file is read and removed by the task's own process before it becomes the program, so that neither
the shim nor the specification, which stay, ever hold a value. Decision 0041.
"""

import contextlib
import os
import shutil

from moulin.domain.plan import StartStep
from moulin.engines.task.specification import refusal
from moulin.engines.task.spool import StepFiles

# What a shared file system may take at once; the environment of a program has no room for more.
HANDED_BYTES_MAX = 1 << 20


def hand_secrets(step: StartStep, files: StepFiles) -> None:
    """Write the values a step is to have where only its user reads them; none, no file.

    Called before anybody can start the step. Raises `EngineRefused` when they are too large, and
    `OSError` as files do.
    """
    pairs = [
        *(("env", name, value) for name, value in sorted(step.secrets.items())),
        *(("file", name, value) for name, value in sorted(step.secret_files.items())),
    ]
    if not pairs:
        return
    if any("\0" in value for _, _, value in pairs):
        raise refusal(step, "one of its secrets holds a NUL byte", "set it again without")
    data = b"".join(f"{kind}\0{name}={value}\0".encode() for kind, name, value in pairs)
    if len(data) > HANDED_BYTES_MAX:
        raise refusal(step, "its secrets are too large together", "name fewer of them")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(files.secrets, flags, 0o600), "wb") as file:
        file.write(data)


def take_back_secrets(files: StepFiles) -> None:
    """Remove what a step was handed and did not fetch, or left when its shim died."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(files.secrets)
    shutil.rmtree(files.secret, ignore_errors=True)

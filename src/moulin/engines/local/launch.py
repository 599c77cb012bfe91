"""Turns a step into a shim's specification and starts the shim; judges only what can never run."""

import os
import socket
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from moulin.domain.errors import EngineRefused, EngineUnavailable
from moulin.domain.observation import NodeCapacity
from moulin.domain.plan import StartStep
from moulin.engines.local.spool import StepFiles, read_small, write_once
from moulin.engines.local.survivors import STEP_DIRECTORY_VARIABLE

SHIM: Final = str(Path(__file__).with_name("shim.py"))
_LAUNCH_S: Final = 30.0
# Below the kernel's ephemeral range, so that no outgoing connection takes an agreed port.
_PORT_FIRST: Final = 20_000
_PORT_COUNT: Final = 10_000
_WITH_SETUP: Final = 'eval "$1" || exit; shift; exec "$@"'


def refuse_what_cannot_run(step: StartStep, nodes: Sequence[NodeCapacity]) -> None:
    """Raise `EngineRefused` when no number of attempts would start this step here."""
    node = next((n for n in nodes if n.node in step.nodes[step.rank : step.rank + 1]), None)
    if node is None:
        raise _refusal(step, "its node is not one of this engine", "the plan is out of date")
    if step.task.image:
        raise _refusal(
            step,
            f"image {step.task.image!r} needs a container tool, which this engine does not drive",
            "remove `image`, or use a pool whose engine runs containers",
        )
    if step.task.workdir and not os.path.isdir(step.task.workdir):
        raise _refusal(
            step,
            f"workdir {step.task.workdir!r} is not a directory on this machine",
            "make the directory or correct `workdir`",
        )
    if any(not 0 <= device < node.accelerators for device in step.devices):
        raise _refusal(step, "it was given devices the node does not have", "check the inventory")
    refuse_bad_words(step)


def refuse_bad_words(step: StartStep) -> None:
    """Raise `EngineRefused` for a command or variables that no system could run."""
    if not step.task.command:
        raise _refusal(step, "it has no command", "give `run` or a command after --")
    texts = (*step.task.command, step.task.setup, *step.task.env, *step.task.env.values())
    if any("\0" in text for text in texts):
        raise _refusal(step, "a command or variable holds a NUL byte", "remove it")
    if any(not name or "=" in name for name in step.task.env):
        raise _refusal(step, "the name of a variable is empty or holds '='", "rename it")


def specification(
    step: StartStep,
    files: StepFiles,
    *,
    env: dict[str, str],
    node: NodeCapacity,
    memory_method: str,
    cgroup: str,
) -> bytes:
    """Return what the shim reads: NUL-ended names and values, repeated names in order."""
    argv = step.task.command
    if step.task.setup:
        argv = ("sh", "-c", _WITH_SETUP, "sh", step.task.setup, *argv)
    pairs = [
        *(("argv", word) for word in argv),
        *(("env", f"{name}={value}") for name, value in sorted(env.items())),
        ("cpus", ",".join(str(cpu) for cpu in node.cpu_ids)),
        ("workdir", step.task.workdir or files.shared),
        ("memory_limit_bytes", str(step.resources.memory_bytes)),
        ("memory_method", memory_method),
        ("cgroup", cgroup),
        ("grace_ns", str(step.stop_grace_s * 1_000_000_000)),
        ("boot_id", node.boot_id),
        ("endpoint", "1" if step.endpoint is not None else ""),
    ]
    return b"".join(
        name.encode() + b"\0" + value.encode(errors="surrogateescape") + b"\0"
        for name, value in pairs
    )


def launch(files: StepFiles, starting_fd: int) -> None:
    """Run the shim's starter until the shim has taken the step or found it taken.

    The starter ends at once and is reaped here; the shim itself is nobody's child, so the death
    of this process neither ends it nor leaves a zombie. Raises `EngineUnavailable` when the
    starter gives no answer.
    """
    env = {STEP_DIRECTORY_VARIABLE: files.directory}
    if "LD_LIBRARY_PATH" in os.environ:
        env["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    log = os.open(files.log, flags, 0o600)
    try:
        starter = subprocess.Popen(
            [
                os.path.realpath(sys.executable),
                *("-I", "-S", "-E", SHIM, files.directory, str(starting_fd)),
            ],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(starting_fd,),
            start_new_session=True,
        )
    finally:
        os.close(log)
    try:
        status = starter.wait(_LAUNCH_S)
    except subprocess.TimeoutExpired as cause:
        raise EngineUnavailable(
            f"start {files.directory}: the shim gave no answer in {_LAUNCH_S:.0f} s",
            hint="the machine may be overloaded; starting again is safe",
        ) from cause
    if status != 0:
        raise EngineUnavailable(
            f"start {files.directory}: the shim's starter ended with status {status}",
            hint=f"its last words are in {files.log}",
        )


def rendezvous_port(files: StepFiles, taken: set[int]) -> int:
    """Return the port all tasks of the attempt agree on, choosing it if this is the first.

    `taken` holds ports handed out before by this engine, whose programs may not listen yet.
    """
    agreed = read_small(files.port)
    if agreed is None:
        write_once(files.port, b"%d" % _free_port(files.attempt_directory, taken))
        agreed = read_small(files.port) or b"0"
    taken.add(int(agreed))
    return int(agreed)


def _free_port(attempt_directory: str, taken: set[int]) -> int:
    first = zlib.crc32(attempt_directory.encode())
    for offset in range(_PORT_COUNT):
        port = _PORT_FIRST + (first + offset) % _PORT_COUNT
        if port not in taken and _is_free(port):
            return port
    raise EngineUnavailable(
        f"choose a rendezvous port for {attempt_directory}: all {_PORT_COUNT} are in use",
        hint="stop programs that listen on ports 20000 to 29999",
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _refusal(step: StartStep, why: str, hint: str) -> EngineRefused:
    return EngineRefused(f"start {step.step}: {why}", hint=hint, details={"step": step.step})

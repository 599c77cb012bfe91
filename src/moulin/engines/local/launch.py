"""Starts the shim of a step on this machine; judges only what can never run here."""

import os
import socket
import subprocess
import sys
import zlib
from collections.abc import Sequence
from typing import Final

from moulin.domain.errors import EngineUnavailable
from moulin.domain.observation import NodeCapacity
from moulin.domain.plan import StartStep
from moulin.engines.task.containers import tool_for
from moulin.engines.task.login import find
from moulin.engines.task.specification import SHIM, refusal, refuse_bad_words
from moulin.engines.task.spool import StepFiles, read_small, write_once
from moulin.engines.task.task_env import STEP_DIRECTORY_VARIABLE

_LAUNCH_S: Final = 30.0
# Below the kernel's ephemeral range, so that no outgoing connection takes an agreed port.
_PORT_FIRST: Final = 20_000
_PORT_COUNT: Final = 10_000


def refuse_what_cannot_run(step: StartStep, nodes: Sequence[NodeCapacity], path: str) -> None:
    """Raise `EngineRefused` when no number of attempts would start this step here.

    `path` is where programs are found, container tools among them.
    """
    node = next((n for n in nodes if n.node in step.nodes[step.rank : step.rank + 1]), None)
    if node is None:
        raise refusal(step, "its node is not one of this engine", "the plan is out of date")
    if step.task.image:
        tool_for(step, path)
    if step.task.workdir and not os.path.isdir(step.task.workdir):
        raise refusal(
            step,
            f"workdir {step.task.workdir!r} is not a directory on this machine",
            "make the directory or correct `workdir`",
        )
    if step.lease is not None and not node.has_login:
        raise refusal(step, "nobody could log in: there is no sshd", "install openssh-server")
    if any(not 0 <= device < node.accelerators for device in step.devices):
        raise refusal(step, "it was given devices the node does not have", "check the inventory")
    refuse_bad_words(step)


def is_login_possible() -> bool:
    """Whether this machine has what a leased node lets people log in with."""
    return bool(find("sshd") and find("ssh-keygen"))


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

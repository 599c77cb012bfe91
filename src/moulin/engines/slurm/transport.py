"""Runs one Slurm command and returns what it said: here, or over one SSH connection.

It decides nothing about answers. A command that could not be run, or gave no answer in time, raises
`EngineUnavailable`: whether it took effect is then not known.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from moulin.domain.errors import EngineUnavailable
from moulin.domain.session import Entry
from moulin.engines.task.entering import on_a_terminal

COMMAND_S: Final = 20.0
WORDS_MAX: Final = 400
# What SSH itself answers when it never reached the other side's shell.
SSH_FAILED: Final = 255
PERSIST_S: Final = 600
_AGENT: Final = "SSH_AUTH_SOCK"
# Slurm's commands name every element of an array that waits, instead of the first few.
_ALWAYS: Final = {"SLURM_BITSTR_LEN": "0"}
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "USER", "LOGNAME", "SHELL")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command left: its status, its output whole, and its complaints in one line."""

    status: int
    output: bytes
    words: str


class Transport(Protocol):
    """A way to run Slurm's commands."""

    def run(self, command: Sequence[str], *, stdin: bytes = b"") -> Answer:
        """Return a command's answer; raises `EngineUnavailable` when it gave none."""
        ...

    def talking(self, command: Sequence[str], *, is_terminal: bool) -> Entry:
        """Return the program that runs a command with its own pipes, or on its own terminal."""
        ...


class LocalTransport:
    """Slurm's commands on this machine, a login node or the control plane's own."""

    def __init__(self, environment: Mapping[str, str] | None = None, *, folder: str = "") -> None:
        """Take PATH, HOME and the like from this process; `environment` adds SLURM_CONF and so on.

        `folder` is where Slurm's commands are, when they are not in PATH.
        """
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        self._environment = {**passed, **_ALWAYS, **(environment or {})}
        if folder:
            self._environment["PATH"] = f"{folder}:{self._environment.get('PATH', os.defpath)}"

    def run(self, command: Sequence[str], *, stdin: bytes = b"") -> Answer:
        """Return a command's answer; raises `EngineUnavailable` when it gave none."""
        return _answer(command, stdin, self._environment)

    def talking(self, command: Sequence[str], *, is_terminal: bool) -> Entry:
        """Return the command itself."""
        argv = on_a_terminal(tuple(command)) if is_terminal else tuple(command)
        return Entry(argv=argv, env=self._environment)


class SshTransport:
    """Slurm's commands on another machine, over one connection that is kept open.

    The first command opens it and the `ssh` client keeps it for ten minutes after the last one;
    keys, known hosts and names are the user's own SSH configuration.
    """

    def __init__(
        self,
        host: str,
        *,
        environment: Mapping[str, str] | None = None,
        folder: str = "",
        options: Sequence[str] = (),
    ) -> None:
        """Reach `host`, as SSH knows it."""
        # A folder of its own, as short as can be: a socket's path has a hundred characters at most.
        sockets = tempfile.mkdtemp(prefix="moulin-")
        self._ssh = (
            *("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
            *("-o", "ControlMaster=auto", "-o", f"ControlPersist={PERSIST_S}"),
            *("-o", f"ControlPath={sockets}/s", "-o", "ServerAliveInterval=5"),
            *options,
            host,
        )
        weakref.finalize(self, _hang_up, self._ssh, sockets)
        given = {**_ALWAYS, **(environment or {})}
        variables = [f"{name}={value}" for name, value in sorted(given.items())]
        self._before = (
            ("env", *variables, f"PATH={folder}:$PATH") if folder else ("env", *variables)
        )

    def run(self, command: Sequence[str], *, stdin: bytes = b"") -> Answer:
        """Return a command's answer; raises `EngineUnavailable` when it gave none."""
        answer = _answer((*self._ssh, self._words(command)), stdin, None)
        if answer.status == SSH_FAILED:
            raise EngineUnavailable(
                f"run {command[0]} over SSH: {answer.words or 'no connection'}",
                hint="try the same `ssh` command by hand; it must need no password",
            )
        return answer

    def talking(self, command: Sequence[str], *, is_terminal: bool) -> Entry:
        """Return an `ssh` over the same connection, with a terminal on the other side where one is wanted."""
        passed = {name: os.environ[name] for name in (*_PASSED_ON, _AGENT) if name in os.environ}
        if not is_terminal:
            return Entry(argv=(*self._ssh, self._words(command)), env=passed)
        ssh = tuple("-tt" if word == "-T" else word for word in self._ssh)
        return Entry(argv=on_a_terminal((*ssh, self._words(command))), env=passed)

    def _words(self, command: Sequence[str]) -> str:
        return " ".join(
            f'"{word}"' if word.endswith(":$PATH") else shlex.quote(word)
            for word in (*self._before, *command)
        )


def _hang_up(ssh: Sequence[str], sockets: str) -> None:
    """Close the connection, if there is one, and remove its socket."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = (*ssh[:-1], "-O", "exit", ssh[-1])
        subprocess.run(command, capture_output=True, check=False, timeout=COMMAND_S)
    shutil.rmtree(sockets, ignore_errors=True)


def _answer(command: Sequence[str], stdin: bytes, environment: Mapping[str, str] | None) -> Answer:
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            env=environment,
            check=False,
            timeout=COMMAND_S,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as cause:
        raise EngineUnavailable(
            f"run {command[0]}: no answer in {COMMAND_S:.0f} s",
            hint="`scontrol ping` says whether the controller is up",
        ) from cause
    except OSError as cause:
        raise EngineUnavailable(
            f"run {command[0]}: {cause.strerror}",
            hint="Slurm's commands must be here; the pool's setting `bin` names their folder",
        ) from cause
    words = " ".join(done.stderr.decode(errors="replace").split())
    return Answer(done.returncode, done.stdout, words[:WORDS_MAX])

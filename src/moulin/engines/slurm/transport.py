"""Runs one Slurm command and returns what it said: here, or over one SSH connection.

It decides nothing about answers. A command that could not be run, or gave no answer in time, raises
`EngineUnavailable`: whether it took effect is then not known.
"""

import contextlib
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from moulin.domain.errors import EngineUnavailable
from moulin.domain.session import Entry
from moulin.engines.task.entering import on_a_terminal
from moulin.engines.task.spool import format_record, read_record, write_whole

COMMAND_S: Final = 20.0
WORDS_MAX: Final = 400
# What SSH itself answers when it never reached the other side's shell.
SSH_FAILED: Final = 255
PERSIST_S: Final = 600
_SOCKET: Final = "s"
_OWNER_ONLY: Final = 0o700
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
        record: Path | None = None,
    ) -> None:
        """Reach `host`, as SSH knows it.

        With a `record` the connection that a former process left open, and put on record there, is
        taken over, with all that goes through it.
        """
        self.host = host
        sockets = _new_sockets() if record is None else _recorded_sockets(record, host)
        self.control_path = f"{sockets}/{_SOCKET}"
        self._ssh = (
            *("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
            *("-o", "ControlMaster=auto", "-o", f"ControlPersist={PERSIST_S}"),
            *("-o", f"ControlPath={self.control_path}", "-o", "ServerAliveInterval=5"),
            *options,
            host,
        )
        weakref.finalize(self, _hang_up, sockets)
        given = {**_ALWAYS, **(environment or {})}
        before = [f"{name}={shlex.quote(value)}" for name, value in sorted(given.items())]
        if folder:
            before.append(f'PATH={shlex.quote(folder)}:"$PATH"')
        # All else that the shell on the other side reads is quoted: words of tenants are among it.
        self._before = " ".join(("env", *before))

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
        return f"{self._before} {shlex.join(command)}"


def over_that(control_path: str) -> tuple[str, ...]:
    """Return the `ssh` that speaks with an open connection's process, and never opens another."""
    return (
        *("ssh", "-T", "-F", "none", "-o", "BatchMode=yes", "-o", f"ControlPath={control_path}"),
        *("-o", "ControlMaster=no", "-o", "ProxyCommand=false"),
    )


def recorded_path(record: Path) -> str:
    """Return where the process that holds the connection on record is spoken with, empty without one."""
    sockets = _held_sockets(record)[1]
    return f"{sockets}/{_SOCKET}" if sockets else ""


def hang_up(record: Path) -> None:
    """Close the connection that is on record, if one is, and forget it."""
    sockets = _held_sockets(record)[1]
    if sockets:
        _hang_up(sockets)
    record.unlink(missing_ok=True)


def _hang_up(sockets: str) -> None:
    """Close the connection, if there is one, and remove its socket."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = (*over_that(f"{sockets}/{_SOCKET}"), "-O", "exit", "there")
        subprocess.run(command, capture_output=True, check=False, timeout=COMMAND_S)
    shutil.rmtree(sockets, ignore_errors=True)


def _new_sockets() -> str:
    # A folder of its own, as short as can be: a socket's path has a hundred characters at most.
    return tempfile.mkdtemp(prefix="moulin-")


def _recorded_sockets(record: Path, host: str) -> str:
    """Return the folder on record, or a new one that is from now on; of another host it is closed."""
    known, sockets = _held_sockets(record)
    if sockets and known == host:
        return sockets
    hang_up(record)
    sockets = _new_sockets()
    write_whole(str(record), format_record({"host": host, "sockets": sockets}), is_durable=False)
    return sockets


def _held_sockets(record: Path) -> tuple[str, str]:
    """Return host and folder on record, empty unless the folder is there and this user's alone.

    Such folders have names in a place where anybody may make one.
    """
    try:
        facts = read_record(str(record)) or {}
        found = os.lstat(facts.get("sockets", ""))
    except (OSError, ValueError):  # what a power cut left of it may be no path at all
        return "", ""
    is_own = found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) == _OWNER_ONLY
    if not (is_own and stat.S_ISDIR(found.st_mode)):
        return "", ""
    return facts.get("host", ""), facts["sockets"]


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

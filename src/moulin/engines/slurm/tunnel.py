"""Carries ports of nodes over the SSH connection that Slurm's commands go over.

A forward listens on this machine's loopback address alone, in the process that holds the connection,
and ends with it. It decides nothing: who asks for forwards, and proves them, is `forwards.py`.
"""

import re
import subprocess
from typing import Final

from moulin.domain.errors import EngineUnavailable
from moulin.engines.slurm.transport import COMMAND_S, SshTransport, over_that

LOOPBACK: Final = "127.0.0.1"
REACH_S: Final = 5
_PID: Final = re.compile(rb"\(pid=([0-9]+)\)")
# What SSH says when the process that holds the connection could not listen.
_TAKEN: Final = b"forwarding request failed"
# Bash opens connections by itself; nothing else can be counted on where people log in.
_TRY: Final = 'exec 3<>"/dev/tcp/$0/$1"'


class Tunnel:
    """One SSH connection as what carries ports."""

    def __init__(self, transport: SshTransport) -> None:
        self._transport = transport
        self.host = transport.host

    def connection(self) -> str:
        """Return which connection is open, another after each loss; empty when none is."""
        found = _PID.search(self._tell("-O", "check").stderr)
        return found[1].decode() if found is not None else ""

    def connect(self) -> None:
        """Open the connection; raises `EngineUnavailable` when it cannot be had."""
        self._transport.run(("true",))

    def carry(self, port: int, target: str) -> bool:
        """Lead a port of this machine to HOST:PORT over there; say whether that port was free.

        Doing so again is no error. Raises `EngineUnavailable` when no connection is open.
        """
        done = self._tell("-O", "forward", "-L", f"{LOOPBACK}:{port}:{target}")
        if done.returncode == 0:
            return True
        if _TAKEN in done.stderr:
            return False
        words = " ".join(done.stderr.decode(errors="replace").split())
        raise EngineUnavailable(f"carry {target} over SSH to {self.host}: {words}")

    def drop(self, port: int, target: str) -> None:
        """Lead that port nowhere; what goes through it now goes on. Doing so again is no error."""
        drop_port(self._transport.control_path, port, target)

    def is_reached_there(self, target: str) -> bool | None:
        """Say whether the other side itself can connect to HOST:PORT; None when it cannot tell.

        Raises `EngineUnavailable` when it cannot be asked.
        """
        host, _, port = target.rpartition(":")
        words = ("timeout", str(REACH_S), "bash", "-c", _TRY, host.strip("[]"), port)
        status = self._transport.run(words).status
        return None if status in (126, 127) else status == 0

    def _tell(self, *words: str) -> "subprocess.CompletedProcess[bytes]":
        return _tell(self._transport.control_path, *words, self.host)


def drop_port(control_path: str, port: int, target: str) -> None:
    """Have whichever process holds a connection lead a port nowhere; where none does, it is led nowhere.

    Raises `EngineUnavailable` when it cannot be told.
    """
    _tell(control_path, "-O", "cancel", "-L", f"{LOOPBACK}:{port}:{target}", "there")


def _tell(control_path: str, *words: str) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(
            (*over_that(control_path), *words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=COMMAND_S,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise EngineUnavailable(
            f"carry replicas over SSH: {cause}", hint="`ssh` must be installed beside Moulin"
        ) from cause

"""What it takes to go into a running task: who wants what in there, and the process that does it."""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from moulin.domain.ids import StepId

# What a session's frames begin with, on the connection between a client and the API.
INPUT: Final = b"\x00"
OUTPUT: Final = b"\x01"
ERRORS: Final = b"\x02"


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryWanted:
    """A command to run inside a task, the user's shell when empty, or a port of it to reach.

    With a `terminal`, its name as in TERM, the command has one; without, three pipes.
    """

    command: tuple[str, ...] = ()
    terminal: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A program to run beside the control plane that reaches into a task; its pipes are the session's.

    It ends with the command's status, when the task ends, and when its standard input is hung up.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTicket:
    """A session on record: the task it goes into, and the pool whose engine has it."""

    session: str
    step: StepId
    pool: str


# Connections to a port share a session's pipes: stream, kind, and the length of the data that follows.
FRAME_HEAD: Final = struct.Struct(">IBI")


class FrameKind(IntEnum):
    """What a frame says of its stream: data of it, that it begins, that its sender has said all."""

    DATA = 0
    OPEN = 1
    END = 2


def frame(stream: int, kind: FrameKind, data: bytes = b"") -> bytes:
    """Return one frame."""
    return FRAME_HEAD.pack(stream, kind, len(data)) + data


class Frames:
    """Frames out of bytes that come in pieces of any size."""

    def __init__(self) -> None:
        self._pending = b""

    def add(self, data: bytes) -> Iterator[tuple[int, FrameKind, bytes]]:
        """Take more bytes and yield each frame that is whole now."""
        self._pending += data
        while len(self._pending) >= FRAME_HEAD.size:
            stream, kind, size = FRAME_HEAD.unpack_from(self._pending)
            end = FRAME_HEAD.size + size
            if len(self._pending) < end:
                return
            body, self._pending = self._pending[FRAME_HEAD.size : end], self._pending[end:]
            yield stream, FrameKind(kind), body

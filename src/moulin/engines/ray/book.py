"""Which node each step was given to, on this machine's disk: what the agent need not remember.

One small file a step, made once: the node, or nothing when a stop came before the start.
"""

import contextlib
import os
import re
from pathlib import Path
from typing import Final

from moulin.domain.errors import EngineRefused, InvalidSpec
from moulin.domain.ids import NodeId, StepId

_STEP: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,180}\.t[0-9]{1,6}")
FENCED: Final = NodeId("")


class StepBook:
    """The steps of one pool."""

    def __init__(self, directory: Path) -> None:
        """Open or make the book under `directory`, owner only."""
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def node_of(self, step: StepId) -> NodeId | None:
        """Return the node of a step, `FENCED` when it may never start, None when it has none.

        Raises `InvalidSpec` for an id that is no step's.
        """
        try:
            return NodeId(self._file(step).read_text(encoding="ascii"))
        except FileNotFoundError:
            return None

    def give(self, step: StepId, node: NodeId) -> None:
        """Record a step's node before it is started there.

        Raises `EngineRefused` when it was stopped before, or given to another node.
        """
        found = self._make(step, node)
        if found == FENCED:
            raise EngineRefused(
                f"start {step}: it was stopped before it started", hint="start a new attempt"
            )
        if found != node:
            raise EngineRefused(f"start {step}: it was given to node {found} before")

    def fence(self, step: StepId) -> NodeId:
        """Keep a step from ever starting; return its node when it was given to one before."""
        return self._make(step, FENCED)

    def drop(self, step: StepId) -> None:
        """Forget a step."""
        self._file(step).unlink(missing_ok=True)

    def _make(self, step: StepId, node: NodeId) -> NodeId:
        path = self._file(step)
        known = self.node_of(step)
        if known is not None:
            return known
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        with draft.open("w", encoding="ascii") as file:
            file.write(node)
            file.flush()
            os.fsync(file.fileno())
        try:
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(draft)
        finally:
            draft.unlink()
        self._sync()
        return NodeId(path.read_text(encoding="ascii"))

    def _sync(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _file(self, step: StepId) -> Path:
        if _STEP.fullmatch(step) is None:
            raise InvalidSpec(f"find step {step!r}", hint="step ids look like ATTEMPT.tRANK")
        return self._directory / step

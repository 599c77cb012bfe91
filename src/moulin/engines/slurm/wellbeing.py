"""What is known of a partition's nodes without a daemon: Slurm's own word, and readers beside tasks.

Only what Slurm calls down is down; what somebody drained is closed by its capacity and well. Facts of
a machine (`look.py` writes them where work runs) are partial: what they do not name says nothing.
"""

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from moulin.domain.errors import EngineError
from moulin.domain.health import NodeReading
from moulin.domain.ids import NodeId, StepId
from moulin.domain.told import joined, read_told, reading_of, skew_ns
from moulin.engines.slurm.formats import SlurmNode
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.slurm.watched import Watched
from moulin.engines.task.spool import make_directory, read_small
from moulin.ports.clock import Clock

FOLDER: Final = ".health"  # in the spool, where no attempt's name begins with a dot
PERIOD_S: Final = 2.0
# The reader as a file, to be put where nodes see it.
LOOK: Final = str(Path(__file__).parent.parent / "task" / "look.py")
# What was written so long ago was left behind by a reader that was killed.
OLD_S: Final = 90.0
# For how long a network file system may show a folder as it was.
CACHED_NS: Final = 60_000_000_000
DOWN: Final = frozenset({"down"})


@dataclass(frozen=True, slots=True)
class Told:
    """One reader's last word; `after_ns` is when its file was last seen unchanged before."""

    step: StepId
    written_ns: int
    after_ns: int
    before_ns: int
    facts: Mapping[str, Any]


class Wellbeing:
    """The readings of one pool's nodes."""

    def __init__(self, spool: Path, clock: Clock, settings: SlurmSettings, *, reader: str) -> None:
        """Make the folder in which readers write, programs at `reader`; raises `OSError`."""
        self.reader = reader
        self.folder = str(spool / FOLDER)
        self._clock = clock
        self._prefix = settings.prefix
        self._is_delegated = settings.is_delegated
        self._told: dict[str, Told] = {}
        self._looked_ns = 0
        make_directory(self.folder)
        self._files: Watched[Mapping[str, tuple[Told, ...]]] = Watched(self._look, PERIOD_S)

    def readings(
        self, nodes: Sequence[SlurmNode], wanted: Sequence[NodeId]
    ) -> tuple[NodeReading, ...]:
        """Return a reading of each machine, in order; of a delegated pool's places there is none."""
        if self._is_delegated and not self.reader:
            return ()
        told = self._files.read().value or {}
        found = ((NodeId(f"{self._prefix}{node.name}"), node) for node in nodes)
        return tuple(
            self._reading(name, node, told.get(node.name, ()))
            for name, node in found
            if not wanted or name in wanted
        )

    def _reading(self, name: NodeId, node: SlurmNode, told: Sequence[Told]) -> NodeReading:
        now_ns = self._clock.now_ns()
        if node.flags & DOWN:
            words = f"Slurm says down: {node.reason or 'no reason given'}"
            return NodeReading(node=name, at_ns=now_ns, down_because=words, is_partial=True)
        if not told:
            return NodeReading(node=name, at_ns=now_ns, is_partial=True)
        return joined(name, [self._of_reader(name, each) for each in told])

    def _of_reader(self, name: NodeId, told: Told) -> NodeReading:
        """Return what one reader says; where Slurm chose the devices, its task's are those it names."""
        found = reading_of(
            name,
            told.facts,
            skew_ns=skew_ns(told.facts["at_ns"], told.after_ns, told.before_ns),
            is_partial=True,
        )
        if not self._is_delegated or found.devices is None:
            return found
        devices = tuple(replace(each, steps=(told.step,)) for each in found.devices)
        return replace(found, devices=devices)

    def _look(self) -> Mapping[str, tuple[Told, ...]]:
        """Return the words of all readers by node, reading only what has changed since."""
        now_ns = self._clock.now_ns()
        found: dict[str, list[Told]] = {}
        kept: dict[str, Told] = {}
        try:
            for node in os.scandir(self.folder):
                for entry in os.scandir(node.path) if node.is_dir() else ():
                    told = self._of_file(entry, now_ns)
                    if told is not None:
                        kept[entry.path] = told
                        found.setdefault(node.name, []).append(told)
        except OSError as cause:
            raise EngineError(f"read {self.folder}: {cause.strerror}") from cause
        self._told, self._looked_ns = kept, now_ns
        return {
            node: tuple(sorted(each, key=lambda told: told.written_ns))
            for node, each in found.items()
        }

    def _of_file(self, entry: "os.DirEntry[str]", now_ns: int) -> Told | None:
        with contextlib.suppress(FileNotFoundError):
            written_ns = entry.stat().st_mtime_ns
            if time.time_ns() - written_ns > OLD_S * 1e9:
                os.unlink(entry.path)
                return None
            known = self._told.get(entry.path)
            if known is not None and known.written_ns == written_ns:
                return known
            facts = read_told(read_small(entry.path) or b"") if "." in entry.name else None
            if facts is not None:
                after_ns = self._looked_ns - CACHED_NS if known else 0
                return Told(StepId(entry.name), written_ns, after_ns, now_ns, facts)
        return None

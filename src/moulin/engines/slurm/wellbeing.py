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
from moulin.engines.slurm.watched import Question, Watched
from moulin.engines.task.spool import make_directory, read_small
from moulin.ports.clock import Clock

FOLDER: Final = ".health"  # in the spool, where no attempt's name begins with a dot
PERIOD_S: Final = 2.0
# The reader as a file, to be put where nodes see it.
LOOK: Final = str(Path(__file__).parent.parent / "task" / "look.py")
# What was written so long ago was left behind by a reader that has gone. The last word of a task counts for
# a moment after it was first read: no control plane may have been there when it was written.
OLD_S: Final = 90.0
UNREAD_S: Final = 30.0
GONE_S: Final = 3600.0
OWN_MAX: Final = 50_000
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
    read_s: float

    def is_believed(self) -> bool:
        """Say whether it still counts: it is new, or a last word that nobody was there to read in time.

        A last word speaks of broken devices alone, what else was read is not so any more.
        """
        if time.time_ns() - self.written_ns <= OLD_S * 1e9:
            return True
        is_last = self.facts.get("disk_free_bytes", -1) < 0 and bool(self.facts.get("devices"))
        return is_last and time.monotonic() - self.read_s <= UNREAD_S


class ToldFiles:
    """What readers last wrote in one folder, by machine; pools whose machines are the same share it."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        """Make the folder; raises `OSError`."""
        self.folder = str(folder)
        self._clock = clock
        self._told: dict[str, Told] = {}
        self._looked_ns = 0
        make_directory(self.folder)
        self.question: Question[Mapping[str, tuple[Told, ...]]] = Question(self._look)

    def _look(self) -> Mapping[str, tuple[Told, ...]]:
        """Return the words of all readers by node, reading only what has changed since."""
        now_ns = self._clock.now_ns()
        found: dict[str, list[Told]] = {}
        kept: dict[str, Told] = {}
        try:
            for node in os.scandir(self.folder):
                for entry in os.scandir(node.path) if _is_node(node) else ():
                    told = self._of_file(entry, now_ns)
                    if told is not None:
                        kept[entry.path] = told
                        if told.is_believed():
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
            if time.time_ns() - written_ns > GONE_S * 1e9:
                os.unlink(entry.path)
                return None
            known = self._told.get(entry.path)
            if known is not None and known.written_ns == written_ns:
                return known
            is_whole = entry.name.rpartition(".t")[2].isdigit()  # a draft has a number more
            facts = read_told(read_small(entry.path) or b"") if is_whole else None
            if facts is not None:
                after_ns = self._looked_ns - CACHED_NS if known else 0
                read_s = time.monotonic()
                return Told(StepId(entry.name), written_ns, after_ns, now_ns, facts, read_s)
        return None


class Wellbeing:
    """The readings of one pool's nodes."""

    def __init__(
        self, spool: Path, clock: Clock, settings: SlurmSettings, files: ToldFiles, *, reader: str
    ) -> None:
        """Take `files` for the words of readers, whose program is at `reader`."""
        self.reader = reader
        self.folder = files.folder
        self._spool = spool
        self._clock = clock
        self._prefix = settings.prefix
        self._is_delegated = settings.is_delegated
        self._own: dict[StepId, bool] = {}
        self._files: Watched[Mapping[str, tuple[Told, ...]]] = Watched(files.question, PERIOD_S)

    def readings(
        self, nodes: Sequence[SlurmNode], wanted: Sequence[NodeId]
    ) -> tuple[NodeReading, ...]:
        """Return a reading of each machine, in order; of a delegated pool's places there is none.

        Who names nodes wants what readers say now.
        """
        if self._is_delegated and not self.reader:
            return ()
        if wanted:
            self._files.doubt()
        told = self._files.read().value or {}
        if len(self._own) > OWN_MAX:
            self._own.clear()
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
        """Return what one reader says.

        Its numbers of devices are this pool's where this pool chose them; else its task has what it names.
        """
        found = reading_of(
            name,
            told.facts,
            skew_ns=skew_ns(told.facts["at_ns"], told.after_ns, told.before_ns),
            is_partial=True,
        )
        if found.devices is None or (not self._is_delegated and self._is_own(told.step)):
            return found
        devices = tuple(replace(each, steps=(told.step,)) for each in found.devices)
        return replace(found, devices=devices)

    def _is_own(self, step: StepId) -> bool:
        known = self._own.get(step)
        if known is None:
            known = os.path.exists(f"{self._spool}/{step.rpartition('.t')[0]}")
            self._own[step] = known
        return known


def _is_node(entry: "os.DirEntry[str]") -> bool:
    return entry.is_dir() and not entry.name.startswith(".")

"""What is known of the array jobs by which attempts of one workload are submitted at once.

`spool/.arrays/NAME/` holds

    members      the attempts, one on a line, in the order of their index        by the engine
    submitting   a submission is under way or was: only Slurm knows              by the engine
    job          the number that Slurm gave the array                            by the engine
    batch.INDEX  what the batch script of one attempt had to say                 by the job

An attempt's own `array` file says which array and index it has. It counts only once its array is
marked as being submitted, so one that was prepared in vain binds nobody.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from moulin.domain.ids import AttemptId
from moulin.engines.task.dropped import Dropped
from moulin.engines.task.spool import (
    is_there,
    make_directory,
    read_exact,
    read_small,
    write_once,
    write_whole,
)

ARRAYS: Final = ".arrays"  # no attempt's name begins with a dot


@dataclass(slots=True, kw_only=True)
class ArrayJob:
    """One array; `job` is empty until its number is known, `left` are members not yet forgotten."""

    name: str
    directory: str
    members: tuple[AttemptId, ...]
    job: str = ""
    is_submitted: bool = False
    retry_s: float = 0.0
    left: set[AttemptId] = field(default_factory=set)

    def path(self, name: str) -> str:
        """Return where one of the array's files is."""
        return f"{self.directory}/{name}"

    def key(self, index: int) -> str:
        """Return what Slurm calls the task of one member, empty until the array has a number."""
        return f"{self.job}_{index}" if self.job else ""

    def begin(self) -> None:
        """Put on record that from now on only Slurm knows whether it has this array."""
        write_once(self.path("submitting"), b"")
        self.is_submitted = True

    def number(self, job: int) -> None:
        """Put on record which number Slurm gave it."""
        self.job = str(job)
        write_whole(self.path("job"), b"%d\n" % job, is_durable=False)


class Arrays:
    """The arrays of one spool, each read once."""

    def __init__(self, spool: Path, dropped: Dropped) -> None:
        self._spool = spool
        self._folder = f"{spool}/{ARRAYS}"
        self._dropped = dropped
        self._known: dict[str, ArrayJob] = {}
        if os.path.isdir(self._folder):
            self._sweep()

    def make(self, members: Sequence[AttemptId]) -> ArrayJob:
        """Prepare an array of attempts that are on record and in none; it binds nobody yet."""
        name = f"{members[0]}.a"
        found = ArrayJob(
            name=name,
            directory=f"{self._folder}/{name}",
            members=tuple(members),
            left=set(members),
        )
        make_directory(found.directory)
        lines = "".join(f"{member}\n" for member in members)
        write_whole(found.path("members"), lines.encode(), is_durable=True)
        for index, member in enumerate(members):
            words = f"{name} {index}\n".encode()
            write_whole(f"{self._spool}/{member}/array", words, is_durable=False)
        self._known[name] = found
        return found

    def of(self, attempt: AttemptId, directory: str) -> tuple[ArrayJob, int] | None:
        """Return the array by which an attempt was submitted and its index, None without one."""
        words = (read_small(f"{directory}/array") or b"").decode().split()
        if len(words) != 2:
            return None
        name, index = words[0], int(words[1])
        array = self._known.get(name) or self._read(name)
        if (
            array is None
            or not array.is_submitted
            or array.members[index : index + 1] != (attempt,)
        ):
            return None
        return array, index

    def dissolve(self, array: ArrayJob) -> None:
        """Take back an array that Slurm refused: its members are in none again."""
        self._known.pop(array.name, None)
        self._dropped.take(array.directory)

    def forget(self, array: ArrayJob, attempt: AttemptId) -> None:
        """Let go of a member whose files are gone, and of the array with its last one."""
        array.left.discard(attempt)
        if not array.left:
            self.dissolve(array)

    def _sweep(self) -> None:
        """Drop the arrays whose last member was forgotten just before a crash."""
        for name in sorted(os.listdir(self._folder)):
            array = self._read(name)
            if array is None or not array.left:
                self._dropped.take(f"{self._folder}/{name}")
                self._known.pop(name, None)

    def _read(self, name: str) -> ArrayJob | None:
        directory = f"{self._folder}/{name}"
        lines = read_exact(f"{directory}/members")
        if lines is None:
            return None
        members = tuple(AttemptId(line) for line in lines.decode().split())
        found = ArrayJob(
            name=name,
            directory=directory,
            members=members,
            job=(read_small(f"{directory}/job") or b"").decode().strip(),
            is_submitted=is_there(f"{directory}/submitting"),
            left={member for member in members if os.path.isdir(f"{self._spool}/{member}")},
        )
        self._known[name] = found
        return found

"""What is known of the array jobs by which attempts of one workload are submitted at once.

`spool/.arrays/NAME/` holds

    members      the attempts, one on a line, in the order of their index,       by the engine
                 and where in `specs` is what each of them needs
    specs        what their shims need, one after the other                      by the engine
    submitting   a submission is under way or was: only Slurm knows              by the engine
    job          the number that Slurm gave the array                            by the engine
    batch.INDEX  what the batch script of one attempt had to say                 by the job
    forgotten    those of the members that are of no interest any more           by the engine

They are all read when the spool is opened. An array counts only once it is marked as being submitted:
one that was prepared in vain binds nobody. A member needs no directory of its own before its job begins,
which then makes it from `specs`: a thousand directories cost more than the submission does.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from moulin.domain.ids import AttemptId, StepId, step_id
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
    """The arrays of one spool, read when it is opened."""

    def __init__(self, spool: Path, dropped: Dropped) -> None:
        self._spool = spool
        self._folder = f"{spool}/{ARRAYS}"
        self._dropped = dropped
        self._places: dict[AttemptId, tuple[ArrayJob, int]] = {}
        if os.path.isdir(self._folder):
            for name in sorted(os.listdir(self._folder)):
                self._open(name)

    def make(self, specs: Mapping[AttemptId, bytes]) -> ArrayJob:
        """Prepare an array of attempts that are in none; it binds nobody yet.

        A member that has its specification on file already comes with an empty one.
        """
        members = tuple(specs)
        name = f"{members[0]}.a"
        found = ArrayJob(
            name=name,
            directory=f"{self._folder}/{name}",
            members=members,
            left=set(members),
        )
        lines, offset = [], 0
        for member, spec in specs.items():
            lines.append(f"{member} {offset} {len(spec)}\n")
            offset += len(spec)
        make_directory(found.directory)
        write_whole(found.path("specs"), b"".join(specs.values()), is_durable=True)
        write_whole(found.path("members"), "".join(lines).encode(), is_durable=True)
        self._keep(found)
        return found

    def of(self, attempt: AttemptId) -> tuple[ArrayJob, int] | None:
        """Return the array by which an attempt was submitted and its index, None without one."""
        found = self._places.get(attempt)
        return found if found is not None and found[0].is_submitted else None

    def steps(self) -> Iterator[StepId]:
        """Yield the only step of each member that was submitted and not forgotten."""
        for member, (array, _) in tuple(self._places.items()):
            if array.is_submitted:
                yield step_id(member, 0)

    def dissolve(self, array: ArrayJob) -> None:
        """Take back an array that Slurm refused or that nobody is in: its members are in none."""
        for member in array.members:
            self._places.pop(member, None)
        self._dropped.take(array.directory)

    def forget(self, array: ArrayJob, attempt: AttemptId) -> None:
        """Let go of a member whose files are gone, and of the array with its last one."""
        array.left.discard(attempt)
        self._places.pop(attempt, None)
        if not array.left:
            self.dissolve(array)
            return
        with open(array.path("forgotten"), "a", encoding="ascii") as file:
            file.write(f"{attempt}\n")

    def _open(self, name: str) -> None:
        """Read an array, or drop what a crash left of one that has no use any more."""
        directory = f"{self._folder}/{name}"
        lines = (read_exact(f"{directory}/members") or b"").decode().splitlines()
        members = tuple(AttemptId(line.partition(" ")[0]) for line in lines)
        forgotten = (read_exact(f"{directory}/forgotten") or b"").decode().split()
        left = set(members) - {AttemptId(name) for name in forgotten}
        if not left or not is_there(f"{directory}/submitting"):
            self._dropped.take(directory)
            return
        job = (read_small(f"{directory}/job") or b"").decode().strip()
        self._keep(
            ArrayJob(
                name=name,
                directory=directory,
                members=members,
                job=job,
                is_submitted=True,
                left=left,
            )
        )

    def _keep(self, array: ArrayJob) -> None:
        for index, member in enumerate(array.members):
            if member in array.left:
                self._places[member] = (array, index)

"""What is known of one attempt on Slurm, all of it read back from its directory.

Beside the ranks' own files (see `moulin.engines.task.spool`) an attempt's directory holds

    hosts       the gang's nodes in rank order, one on a line                 by the engine
    submitting  a submission is under way or was: only Slurm knows            by the engine
    job         the number that Slurm gave the job                            by the engine
    owner       who has the attempt, made once with link(2): the job that     by the job, or by a stop
                runs it (`12`, or `12_3` of an array), or `stop` or
                `refused`, so that no job ever runs it
    lease       there for leased nodes, on which people log in                by the engine
    batch       what the batch script itself had to say                       by the job

Of an element of an array `submitting`, `job` and `batch` are the array's, and it may have no directory
before its job begins: `moulin.engines.slurm.arrays`.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from moulin.domain.ids import AttemptId, StepId, step_id
from moulin.domain.observation import Claim, TaskPhase
from moulin.engines.slurm.arrays import ArrayJob, Arrays
from moulin.engines.task.dropped import Dropped
from moulin.engines.task.spool import (
    StepFiles,
    is_there,
    listed_steps,
    make_private,
    read_small,
    step_files,
    sync_directory,
    sync_file_system,
    write_once,
)

STOPPED: Final = b"stop"
REFUSED: Final = b"refused"
_SHOWN_BYTES_MAX: Final = 300


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One attempt; times ending in `_s` are monotonic.

    `own_job` is the number of a job of its own, empty until that is known or in an array. `spec` is what
    an element's shim needs, as long as it may have to be written for it alone. `open` are
    the steps whose end is not on record, `seen` what was last handed out of them. `missing` counts the
    readings in a row that did not list its job. `signs` has when the shim of a step last wrote, by the
    file system's clock, and since when that has been known.
    """

    id: AttemptId
    directory: str
    size: int = 0
    own_job: str = ""
    spec: bytes = b""
    array: ArrayJob | None = None
    index: int = 0
    is_submitted: bool = False
    is_endpoint: bool = False
    is_lease: bool = False
    submitted_s: float = 0.0
    retry_s: float = 0.0
    missing: int = 0
    missing_number: int = 0
    unrecorded_s: float = 0.0
    rung_s: float = 0.0
    ring_is_due: bool = False
    cancel_s: float = 0.0
    signature: tuple[object, ...] = ()
    open: set[StepId] = field(default_factory=set)
    seen: dict[StepId, tuple[TaskPhase, str, int]] = field(default_factory=dict)
    signs: dict[StepId, tuple[int, float]] = field(default_factory=dict)

    @property
    def claim(self) -> Claim:
        """The same for all tasks, before and after Slurm gave a number: the job carries this name."""
        return Claim(handle=f"slurm:{self.id}")

    @property
    def job(self) -> str:
        """What Slurm calls its job (`12`, or `12_3` of an array), empty until that is known."""
        return self.own_job or (self.array.key(self.index) if self.array is not None else "")

    @property
    def job_name(self) -> str:
        """What its job, or the array it is in, was called when it was submitted."""
        return self.array.name if self.array is not None else self.id

    def path(self, name: str) -> str:
        """Return where one of the attempt's own files is."""
        return f"{self.directory}/{name}"

    def owner(self) -> bytes:
        """Return who has the attempt, empty while nobody does."""
        return (read_small(self.path("owner")) or b"").strip()

    def is_owned(self) -> bool:
        """Say whether a job has taken it, and from then on hold that job to be its own.

        Of two jobs for it, if that ever happens, this is the one that runs it.
        """
        owner = self.owner()
        if not owner[:1].isdigit():
            return False
        self.own_job = owner.decode()
        return True

    def is_fenced(self) -> bool:
        """Say whether no job will ever run it."""
        return self.owner() in (STOPPED, REFUSED)

    def last_words(self) -> str:
        """Return the end of what the batch script had to say, on one line."""
        path = self.array.path(f"batch.{self.index}") if self.array else self.path("batch")
        said = (read_small(path) or b"")[-_SHOWN_BYTES_MAX:]
        return " ".join(said.decode(errors="replace").split())

    def join(self, array: ArrayJob, index: int) -> None:
        """Be one element of an array that was, or is now being, submitted."""
        self.array, self.index, self.is_submitted = array, index, True

    def leave(self) -> None:
        """Be in no array again, after Slurm refused it."""
        self.array, self.index, self.is_submitted = None, 0, False

    def steps(self) -> tuple[StepId, ...]:
        """Return the steps that were recorded, in rank order; reads the directory."""
        try:
            names = [entry.name for entry in os.scandir(self.directory)]
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return tuple(
            step_id(self.id, rank) for rank in sorted(int(n) for n in names if n.isdigit())
        )


def read_attempt(files: StepFiles, name: AttemptId, arrays: Arrays) -> Attempt:
    """Return what an attempt's directory says; nothing but its name when there is none."""
    found = Attempt(id=name, directory=files.attempt_directory)
    has_directory = os.path.isdir(found.directory)
    if has_directory:
        _read_directory(found)
    part = None if found.is_submitted else arrays.of(name)
    if part is None and not has_directory:
        return found
    if part is not None:
        found.join(*part)
    if not found.is_fenced():
        steps = {*found.steps(), *([step_id(name, 0)] if found.array is not None else ())}
        found.open = {
            step
            for step in steps
            if not is_there(f"{found.directory}/{step.rpartition('.t')[2]}/exit")
        }
    return found


def _read_directory(found: Attempt) -> None:
    found.size = len((read_small(found.path("hosts")) or b"").splitlines())
    found.own_job = (read_small(found.path("job")) or b"").decode().strip()
    found.is_submitted = read_small(found.path("submitting")) is not None
    found.is_lease = is_there(found.path("lease"))
    found.is_endpoint = is_there(f"{found.directory}/0/door")


class Attempts:
    """The attempts of one spool; those with an open step are kept, others are read when asked for."""

    def __init__(self, spool: Path, dropped: Dropped) -> None:
        self._spool = spool
        self._open: dict[AttemptId, Attempt] = {}
        self._is_unsettled = False
        self.arrays = Arrays(spool, dropped)

    def fence(self, attempt: Attempt) -> bool:
        """See to it that no job ever runs an attempt; return False when one has it already.

        It outlives this process at once, and a power cut from `settle` on: nobody is told before.
        """
        if attempt.is_owned():
            return False
        made = write_once(attempt.path("owner"), STOPPED, is_durable=False)
        self._is_unsettled = self._is_unsettled or made
        return made or attempt.is_fenced()

    def refuse(self, attempt: Attempt) -> None:
        """Hold that Slurm refused an attempt, so that no job ever runs it."""
        make_private(attempt.directory, f"{attempt.directory}/0")
        write_once(attempt.path("owner"), REFUSED)

    def settle(self) -> None:
        """Make all fences last, at once: a thousand of them cost what one does."""
        if self._is_unsettled:
            sync_file_system(str(self._spool))
            self._is_unsettled = False

    def open(self) -> tuple[Attempt, ...]:
        """Return the attempts that have a step whose end is not on record."""
        return tuple(self._open.values())

    def is_open(self, name: AttemptId) -> bool:
        """Say whether an attempt was started and has a step whose end is not on record."""
        return bool(self.of(step_id(name, 0)).open)

    def opened(self, step: StepId) -> Attempt | None:
        """Return the attempt of a step if it has one whose end is not on record; reads nothing."""
        return self._open.get(AttemptId(step.rpartition(".t")[0]))

    def of(self, step: StepId) -> Attempt:
        """Return the attempt of a step; raises `InvalidSpec` for an id that is no step's."""
        return self.get(AttemptId(step.rpartition(".t")[0]), step_files(self._spool, step))

    def get(self, name: AttemptId, files: StepFiles) -> Attempt:
        """Return an attempt as it is known or as its directory says."""
        found = self._open.get(name)
        if found is None:
            found = read_attempt(files, name, self.arrays)
            if found.open:
                self._open[name] = found
        return found

    def watch(self, attempt: Attempt) -> None:
        """Keep an attempt that has an open step from now on."""
        self._open[attempt.id] = attempt

    def close(self, attempt: Attempt, step: StepId) -> None:
        """Hold that a step has ended, and let go of its attempt with the last."""
        attempt.open.discard(step)
        attempt.seen.pop(step, None)
        if not attempt.open:
            self._open.pop(attempt.id, None)

    def listed(self) -> tuple[StepId, ...]:
        """Return every step that is on record, in step order."""
        return tuple(sorted({*listed_steps(self._spool), *self.arrays.steps()}))

    def files(self, step: StepId) -> StepFiles:
        """Return where a step's files are."""
        return step_files(self._spool, step)

    def make_names_durable(self) -> None:
        """Make the names of new attempts survive a power cut."""
        sync_directory(str(self._spool))

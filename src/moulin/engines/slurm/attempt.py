"""What is known of one attempt on Slurm, all of it read back from its directory.

Beside the ranks' own files (see `moulin.engines.task.spool`) an attempt's directory holds

    hosts       the gang's nodes in rank order, one on a line                 by the engine
    submitting  a submission is under way or was: only Slurm knows            by the engine
    job         the number that Slurm gave the job                            by the engine
    owner       who has the attempt, made once with link(2): the job that     by the job, or by a stop
                runs it by its number, or `stop` or `refused`, so that no
                job ever runs it
    batch       what the batch script itself had to say                       by the job
"""

import os
from dataclasses import dataclass, field
from typing import Final

from moulin.domain.ids import AttemptId, StepId, step_id
from moulin.domain.observation import Claim, TaskPhase
from moulin.engines.task.spool import StepFiles, is_there, read_small

STOPPED: Final = b"stop"
REFUSED: Final = b"refused"
_SHOWN_BYTES_MAX: Final = 300


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One attempt; times ending in `_s` are monotonic.

    `job` is 0 until its number is known. `open` are the steps whose end is not on record, `seen` what
    was last handed out of them. `missing` counts the readings in a row that did not list its job.
    """

    id: AttemptId
    directory: str
    size: int = 0
    job: int = 0
    is_submitted: bool = False
    is_endpoint: bool = False
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
    seen: dict[StepId, tuple[TaskPhase, str]] = field(default_factory=dict)

    @property
    def claim(self) -> Claim:
        """The same for all tasks, before and after Slurm gave a number: the job carries this name."""
        return Claim(handle=f"slurm:{self.id}")

    def path(self, name: str) -> str:
        """Return where one of the attempt's own files is."""
        return f"{self.directory}/{name}"

    def owner(self) -> bytes:
        """Return who has the attempt, empty while nobody does."""
        return (read_small(self.path("owner")) or b"").strip()

    def is_fenced(self) -> bool:
        """Say whether no job will ever run it."""
        return self.owner() in (STOPPED, REFUSED)

    def last_words(self) -> str:
        """Return the end of what the batch script had to say, on one line."""
        said = (read_small(self.path("batch")) or b"")[-_SHOWN_BYTES_MAX:]
        return " ".join(said.decode(errors="replace").split())

    def steps(self) -> tuple[StepId, ...]:
        """Return the steps that were recorded, in rank order; reads the directory."""
        try:
            names = [entry.name for entry in os.scandir(self.directory)]
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return tuple(
            step_id(self.id, rank) for rank in sorted(int(n) for n in names if n.isdigit())
        )


def read_attempt(files: StepFiles, name: AttemptId) -> Attempt:
    """Return what an attempt's directory says; nothing but its name when there is none."""
    found = Attempt(id=name, directory=files.attempt_directory)
    found.size = len((read_small(found.path("hosts")) or b"").splitlines())
    found.job = int((read_small(found.path("job")) or b"0").strip() or 0)
    found.is_submitted = read_small(found.path("submitting")) is not None
    if not found.is_fenced():
        found.open = {
            step
            for step in found.steps()
            if not is_there(f"{found.directory}/{step.rpartition('.t')[2]}/exit")
        }
    return found

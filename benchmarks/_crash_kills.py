"""Who may be killed, and the killing: SIGKILL to one process at a time, each noted."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks._moulin import wait_for
from moulin.app.datadir import read_run
from moulin.app.processes import ProcessMark, is_alive, mark_of
from moulin.domain.errors import LocalError
from moulin.engines.task.shim import read_spec
from moulin.engines.task.spool import read_record

CONTROL, GATEWAY, SHIM, REPLICA, REPLICA_SHIM = kinds = (
    "control", "gateway", "shim", "replica", "replica_shim",
)  # fmt: skip
SLURMD, SLURMCTLD = "slurmd", "slurmctld"
WEIGHTS = {CONTROL: 25, GATEWAY: 20, SHIM: 35, REPLICA: 10, REPLICA_SHIM: 10}
WEIGHTS |= {SLURMD: 25, SLURMCTLD: 15}
# Most kills find Moulin at work; the others come in the middle of its starting again.
WHOLE_BEFORE = 0.75
WHOLE_S_MAX = 30.0


@dataclass(frozen=True)
class Victim:
    """A process with what it is, and for a shim or replica the step it belongs to.

    A daemon of a cluster has its name in place of a step.
    """

    kind: str
    mark: ProcessMark
    step: str = ""


@dataclass(frozen=True)
class Kill:
    """A kill that hit, at the machine's monotonic time; `near` are steps it may have ended as well."""

    at_ns: int
    kind: str
    pid: int
    step: str
    near: tuple[str, ...] = ()


class Plant(Protocol):
    """Where tasks run, as far as it can be killed."""

    def spools(self) -> tuple[Path, ...]:
        """Return where the steps' files are."""
        ...

    def victims(self) -> Iterable[Victim]:
        """Return the daemons that live now."""
        ...

    def killed(self, victim: Victim) -> tuple[str, ...]:
        """See to it that a daemon comes back; return the steps that its end may end."""
        ...


@dataclass
class Killer:
    """Kills at random points; the order follows from the seed, the moments from the machine."""

    data: Path
    plant: Plant
    dice: random.Random
    is_whole: Callable[[], bool]
    report: Callable[[str], None]
    kills: list[Kill] = field(default_factory=list)

    def run(self, count: int, pause_s: tuple[float, float]) -> None:
        """Kill so many processes, with pauses in between."""
        while len(self.kills) < count:
            if self.dice.random() < WHOLE_BEFORE:
                wait_for(self.is_whole, WHOLE_S_MAX)
            time.sleep(self.dice.uniform(*pause_s))
            found = (*victims(self.data, *self.plant.spools()), *self.plant.victims())
            victim = self._choose(found)
            if victim is None or not is_alive(victim.mark):
                continue
            os.kill(victim.mark.pid, signal.SIGKILL)
            at_ns = time.monotonic_ns()
            near = self.plant.killed(victim)
            self.kills.append(Kill(at_ns, victim.kind, victim.mark.pid, victim.step, near))
            self.report(f"kill {len(self.kills)}/{count}: {victim.kind} {victim.step}")

    def _choose(self, found: tuple[Victim, ...]) -> Victim | None:
        present = sorted({victim.kind for victim in found})
        if not present:
            return None
        (kind,) = self.dice.choices(present, [WEIGHTS[each] for each in present])
        return self.dice.choice([victim for victim in found if victim.kind == kind])


def victims(data: Path, *spools: Path) -> Iterator[Victim]:
    """Yield everything of Moulin that lives now and may be killed."""
    try:
        run = read_run(data)
    except LocalError:
        return
    for kind, mark in ((CONTROL, run.control), (GATEWAY, run.gateway)):
        if mark is not None and is_alive(mark):
            yield Victim(kind, mark)
    for directory in step_directories(*(spools or (data / "spool",))):
        shim = shim_of(directory)
        if shim is None:
            continue
        step = f"{directory.parent.name}.t{directory.name}"
        if read_spec((directory / "spec").read_bytes()).get(b"endpoint") != [b"1"]:
            yield Victim(SHIM, shim, step)
            continue
        yield Victim(REPLICA_SHIM, shim, step)
        for child in _children(shim.pid):
            yield Victim(REPLICA, child, step)


def step_directories(*spools: Path) -> list[Path]:
    """Return the directories of all steps there are."""
    return [found for spool in spools for found in sorted(spool.glob("*/[0-9]*"))]


def shim_of(directory: Path) -> ProcessMark | None:
    """Return the living shim of a step directory, None when there is none."""
    record = read_record(str(directory / "started"))
    if record is None or record.get("by") != "shim":
        return None
    mark = mark_of(int(record["pid"]))
    same = mark is not None and mark.started_ticks == int(record["started_ticks"])
    return mark if same else None


def _children(pid: int) -> Iterator[ProcessMark]:
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for word in words:
        mark = mark_of(int(word))
        if mark is not None:
            yield mark

"""Judges tasks by what they wrote themselves: nothing lost, nothing twice, generations one by one."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks._crash_kills import Kill
from benchmarks._crash_load import ATTEMPTS_MAX, Job
from moulin.domain.views import WorkloadView
from moulin.scheduler import SchedulerPolicy

FINAL = ("succeeded", "failed")


@dataclass
class Life:
    """What one rank of one generation wrote. Times are monotonic ns of the machine."""

    starts: set[str] = field(default_factory=set)
    first_ns: int = 0
    last_ns: int = 0
    has_ended: bool = False
    has_failed: bool = False


Lives = Mapping[int, Mapping[int, Life]]
"""By generation, by rank."""


def read_lives(job: Job, effects: Path) -> Lives:
    """Return what all tasks of a job wrote."""
    lives: dict[int, dict[int, Life]] = {}
    for rank in range(job.ranks):
        file = job.file(effects, rank)
        for line in file.read_text().splitlines() if file.exists() else ():
            what, _, generation, pid, at_ns = line.split()
            life = lives.setdefault(int(generation), {}).setdefault(rank, Life())
            life.first_ns = life.first_ns or int(at_ns)
            life.last_ns = max(life.last_ns, int(at_ns))
            if what == "start":
                life.starts.add(pid)
            life.has_ended |= what == "end"
            life.has_failed |= what == "failed"
    return lives


def lost(
    job: Job, views: Sequence[WorkloadView], lives: Lives, kills: Sequence[Kill]
) -> Iterator[str]:
    """Yield why an acknowledged job counts as lost: no record, no end, no effect, no cause."""
    if not job.id:
        return
    view = next((view for view in views if view.id == job.id), None)
    if view is None:
        yield f"{job.name}: acknowledged as {job.id} and unknown"
    elif view.state not in FINAL:
        yield f"{job.name}: {view.state}, never ended"
    elif view.state == "succeeded":
        if job.mode == "fails" or not any(_is_whole(job, each) for each in lives.values()):
            yield f"{job.name}: succeeded without its effect"
    elif not _has_cause(job, lives, kills):
        words = "; ".join(f"{r.code} {dict(r.parameters)}" for r in view.reasons)
        yield f"{job.name} ({job.mode}): failed without cause: {words}"


def duplicated(
    job: Job, views: Sequence[WorkloadView], lives: Lives, kills: Sequence[Kill]
) -> Iterator[str]:
    """Yield what happened twice: a job, a generation, a time, a success."""
    if len(views) > 1:
        yield f"{job.name}: is {len(views)} jobs"
    for generation, by_rank in sorted(lives.items()):
        for rank, life in sorted(by_rank.items()):
            if len(life.starts) > 1:
                yield f"{job.name}: generation {generation} rank {rank} ran {len(life.starts)} times"
    order = sorted(lives)
    for former, latter in itertools.pairwise(order):
        ended_ns = max(life.last_ns for life in lives[former].values())
        began_ns = min(life.first_ns for life in lives[latter].values())
        if began_ns <= ended_ns:
            late_ms = (ended_ns - began_ns) // 10**6
            yield f"{job.name}: generations {former} and {latter} overlap by {late_ms} ms"
        if _is_whole(job, lives[former]) and not _kills_of(job, kills, former):
            yield f"{job.name}: generation {former} had succeeded, and {latter} ran"


def _is_whole(job: Job, by_rank: Mapping[int, Life]) -> bool:
    return len(by_rank) == job.ranks and all(life.has_ended for life in by_rank.values())


def _has_cause(job: Job, lives: Lives, kills: Sequence[Kill]) -> bool:
    """Whether the program failed as often as it may, or its shims were killed too often."""
    failures = sum(any(life.has_failed for life in by_rank.values()) for by_rank in lives.values())
    losses = _kills_of(job, kills) + _kills_near(job, kills)
    return failures >= ATTEMPTS_MAX or losses > SchedulerPolicy().losses_max


def _kills_of(job: Job, kills: Sequence[Kill], generation: int = 0) -> int:
    """Count kills of shims of a job, of one generation or of all."""
    mark = f".g{generation}." if generation else ""
    return sum(kill.step.startswith(job.id + ".") and mark in kill.step for kill in kills)


def _kills_near(job: Job, kills: Sequence[Kill]) -> int:
    """Count kills of daemons under which an attempt of a job was under way."""
    return sum(any(step.startswith(job.id + ".") for step in kill.near) for kill in kills)

"""Runs attempts as jobs of a Slurm cluster: one job for a whole gang, started at most once.

What a task leaves is in files on a file system that the nodes share, written by the same shim as on
one machine; what Slurm knows is read in one question for all jobs. A controller that cannot be asked
makes steps unreachable, never gone. It touches no job but those it submitted. Decision 0028.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from moulin.domain.errors import (
    EngineError,
    EngineRefused,
    EngineUnavailable,
    InUse,
    InvalidSpec,
    NotFound,
)
from moulin.domain.health import NodeReading, Quarantine
from moulin.domain.ids import AttemptId, NodeId, StepId
from moulin.domain.observation import (
    ENDED_PHASES,
    SEEN_PHASES,
    Claim,
    LogChunk,
    NodeCapacity,
    Observation,
    TaskPhase,
)
from moulin.domain.plan import StartStep
from moulin.domain.session import Entry, EntryWanted
from moulin.domain.standing import Standing
from moulin.engines.slurm.attempt import Attempt, Attempts
from moulin.engines.slurm.avoidance import Avoidance
from moulin.engines.slurm.client import SlurmClient
from moulin.engines.slurm.cluster import Cluster, Jobs
from moulin.engines.slurm.doors import SIDECAR, Doors
from moulin.engines.slurm.evidence import Case, Evidence
from moulin.engines.slurm.formats import PENDING, SlurmJob
from moulin.engines.slurm.forwards import Forwards
from moulin.engines.slurm.inside import entry_beside
from moulin.engines.slurm.places import calmed, places
from moulin.engines.slurm.readings import Readings
from moulin.engines.slurm.settings import OWNER, SlurmSettings
from moulin.engines.slurm.sought import Sought
from moulin.engines.slurm.starting import Starter
from moulin.engines.slurm.submission import install_program, shared_data
from moulin.engines.slurm.tunnel import Tunnel
from moulin.engines.slurm.waiting import standings
from moulin.engines.slurm.watched import Reading
from moulin.engines.slurm.wellbeing import FOLDER as HEALTH
from moulin.engines.slurm.wellbeing import LOOK, Wellbeing
from moulin.engines.task.dropped import Dropped
from moulin.engines.task.entering import PROGRAM as ENTER
from moulin.engines.task.handed import take_back_secrets
from moulin.engines.task.specification import LOGIN
from moulin.engines.task.spool import (
    StepFiles,
    format_record,
    is_there,
    look_again,
    make_directory,
    make_private,
    read_log,
    read_record,
    read_small,
    share_checkpoints,
    step_files,
    write_once,
    write_time_limit,
    write_whole,
)
from moulin.ports.clock import Clock
from moulin.ports.registrations import Registrations

RETRY_S: Final = 5.0
RING_S: Final = 1.0
# How long after a task's own grace the whole job is cancelled, if it has not ended by then.
CANCEL_AFTER_S: Final = 5.0
# Gangs are looked at task by task, as Slurm shows only the job; so many looks a second at most.
LOOKS_PER_S: Final = 2000
# What many stops have for Slurm is told at once, so often.
TELLING_S: Final = 0.2
# A start is looked for in files, more often than Slurm is asked, for so long and of so many at once.
FRESH_S: Final = 3.0
FRESH_MAX: Final = 64
_NS_PER_S: Final = 1_000_000_000


class SlurmEngine:
    """The engine of one partition; safe to construct anew at any time over the same directory."""

    def __init__(
        self,
        settings: SlurmSettings,
        client: SlurmClient,
        *,
        clock: Clock,
        registrations: Registrations | None = None,
        way: tuple[Tunnel, Path] | None = None,
        readings: Readings | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        """Open or make the spool under the settings' directory; Slurm is not asked yet.

        `readings` are those of the same client that other pools share. `before` is done once, when this
        engine is first asked to do something: some are made to see whether they can be, and no more.

        With `registrations` replicas stand behind doors of their own. A `way` to these is where they are
        reached over SSH: the connection, and the file on this machine that holds what goes over it.

        Raises `EngineUnavailable` when the directory cannot be made.
        """
        self._settings = settings
        self._clock = clock
        self._spool = settings.directory.resolve() / "spool"
        readings = readings if readings is not None else Readings(client)
        try:
            make_directory(str(self._spool))
            share_checkpoints(self._spool, settings.checkpoints)
            program, owner = install_program(self._spool), self._read_owner()
            sidecar, login = (install_program(self._spool, each) for each in (SIDECAR, LOGIN))
            self._enter = install_program(self._spool, ENTER)
            data = shared_data(self._spool, settings.python)
            reader = install_program(self._spool, LOOK) if settings.reads_nodes else ""
            told = readings.told((settings.health or self._spool / HEALTH).resolve(), clock)
            self._wellbeing = Wellbeing(self._spool, clock, settings, told, reader=reader)
            self._dropped = Dropped(self._spool)
            self._book = Attempts(self._spool, self._dropped)
            forwards = Forwards(*way, self._book.is_open) if way is not None else None
        except OSError as cause:
            raise EngineUnavailable(
                f"open {self._spool}: {cause.strerror}",
                hint="the pool's `directory` must be writable here and on every node",
            ) from cause
        self._cluster = Cluster(readings, settings, own_comment=f"moulin:{owner}:")
        self._evidence = Evidence(self._cluster)
        self._avoidance = Avoidance(self._wellbeing.folder, self._cluster, settings)
        self._doors: Doors | None = None
        if registrations is not None:
            self._doors = Doors(settings, registrations, clock, sidecar, forwards)
        self._starter = Starter(
            self._book,
            settings,
            self._cluster,
            program=program,
            login=login,
            doors=self._doors,
            wellbeing=self._wellbeing,
            avoidance=self._avoidance,
            data=data,
        )
        self._before = before
        self._nodes: dict[str, NodeCapacity] = {}
        self._stopping: dict[AttemptId, Attempt] = {}
        self._unwanted: set[str] = set()
        self._sought = Sought(self._cluster)
        self._fresh: dict[AttemptId, Attempt] = {}
        self._rung_s = float("-inf")
        self._has_told_all = False
        self._handed_number = -1
        self._looked_s = 0.0

    # The port.

    def start(self, step: StartStep) -> Claim:
        """Put a task on record, and submit its gang as one job with the last of its tasks.

        Raises `EngineRefused` when it can never start here or was stopped before it started, and
        `EngineUnavailable` when it cannot be known whether it did; calling again is then safe.
        """
        answer = self.start_many((step,))[0]
        if isinstance(answer, Claim):
            return answer
        raise answer

    def start_many(self, steps: Sequence[StartStep]) -> tuple[Claim | EngineError, ...]:
        """Do what `start` does for each step, elements of one array in one submission.

        Submits for two seconds or so; what is left then is unavailable, and may be started again.
        """
        answers: list[Claim | EngineError] = []
        waiting: dict[AttemptId, tuple[int, StartStep, Attempt]] = {}
        for step in steps:
            try:
                attempt = self._recorded(step)
                if not attempt.job and len(attempt.open) == len(step.nodes):
                    waiting[attempt.id] = (len(answers), step, attempt)
                answers.append(attempt.claim)
            except EngineError as failure:
                answers.append(failure)
        failures = self._starter.submit([(step, each) for _, step, each in waiting.values()])
        for name, why in failures.items():
            answers[waiting[name][0]] = why
        self._fresh.update((name, each) for name, (_, _, each) in waiting.items())
        return tuple(answers)

    def observe(self, steps: Sequence[StepId]) -> tuple[Observation, ...]:
        """Return one observation per step, in order; one question to Slurm for all of them."""
        self._tend()
        self._settle()
        jobs = self._cluster.jobs()
        return tuple(self._observe(step, jobs) for step in steps)

    def changes(self) -> tuple[Observation, ...]:
        """Return each step whose phase changed since the last call; the first time, all."""
        self._tend()
        self._settle()
        jobs = self._cluster.jobs()
        if jobs.number == self._handed_number:
            return tuple(self._just_begun(jobs))
        self._handed_number = jobs.number
        return tuple(self._changed(jobs) if self._has_told_all else self._tell_all(jobs))

    def stop(self, step: StepId, grace_s: int) -> None:
        """Ask a task's whole process tree to end, forced by its shim after `grace_s`.

        A job that has not begun never will, and is cancelled: its gang with it, of an array only
        that element. Slurm is told now or within a moment, of many at once; what it does not hear it
        is told again. Raises `EngineUnavailable` when the spool failed; stopping again is safe.
        """
        files = step_files(self._spool, step)
        try:
            attempt = self._book.of(step)
            make_private(files.attempt_directory, files.directory)
            if is_there(files.exit):
                return
            if self._has_begun(attempt, files):
                grace_ns = b"%d" % (grace_s * _NS_PER_S)
                write_whole(files.stop, grace_ns, is_durable=False)
                cancel_s = time.monotonic() + grace_s + CANCEL_AFTER_S
                attempt.cancel_s = min(attempt.cancel_s or cancel_s, cancel_s)
                attempt.ring_is_due = True
                self._stopping[attempt.id] = attempt
            else:
                take_back_secrets(files)
        except (OSError, ValueError) as cause:
            raise self._spool_failed("stop", step, cause) from cause
        self._tend()

    def extend(self, step: StepId, time_limit_s: int) -> None:
        """Have Slurm let a leased node's job last so long in all, and its program know.

        Raises `EngineRefused` when Slurm does not allow it, `EngineUnavailable` when it cannot be asked.
        """
        try:
            attempt = self._book.of(step)
            if attempt.job:
                self._cluster.extend(attempt.job, time_limit_s)
            write_time_limit(step_files(self._spool, step), time_limit_s)
        except OSError as cause:
            raise self._spool_failed("extend", step, cause) from cause

    def standings(self, steps: Sequence[StepId]) -> Mapping[StepId, Standing]:
        """Return what Slurm calls each step's job and why it waits, as it was read last."""
        return standings(self._cluster, self._book, steps, self._clock.now_ns())

    def capacity(self) -> tuple[NodeCapacity, ...]:
        """Return the partition's nodes, or a delegated pool's places, in a stable order.

        Raises `EngineUnavailable` while the controller cannot be asked.
        """
        self._tend()
        nodes = self._cluster.nodes().known()
        jobs = self._cluster.jobs().known()
        ours = frozenset(job.id for job in jobs.all() if self._cluster.is_ours(job))
        found = places(
            nodes,
            jobs.all(),
            ours,
            self._settings,
            partition=self._cluster.partition(),
            time_limit_s=self._cluster.offered_s(),
            lacks=self._starter.lacks(),
            avoided=self._avoidance.nodes,
        )
        calm = calmed(found, tuple(self._nodes.values()))
        self._nodes = {node.node: node for node in found}
        return calm

    def health(self, nodes: Sequence[NodeId] = ()) -> tuple[NodeReading, ...]:
        """Return what Slurm says of each machine, and those say that look after our work there.

        Raises `EngineUnavailable` while the controller cannot be asked.
        """
        return self._wellbeing.readings(self._cluster.nodes().known(), nodes)

    def avoid(self, nodes: Mapping[NodeId, Quarantine]) -> None:
        """Keep jobs away from machines in quarantine where Slurm chooses, and drain them if that is wanted.

        Raises `EngineUnavailable` when Slurm could not be told.
        """
        self._avoidance.avoid(nodes)

    def logs(self, step: StepId, cursor: int, limit_bytes: int) -> LogChunk:
        """Return at most `limit_bytes` (and 4 MiB) of output from byte `cursor`.

        Raises `NotFound` when no such step was started here.
        """
        files = step_files(self._spool, step)
        look_again(files.directory)
        attempt = self._book.of(step)
        if attempt.is_fenced():
            raise NotFound(f"read the log of {step}", hint="it was never started here")
        is_recorded = attempt.array is not None or is_there(files.spec)
        if is_recorded and not is_there(files.log):
            return LogChunk(data=b"", next_cursor=max(0, cursor), is_end=is_there(files.exit))
        return read_log(step, files, cursor, limit_bytes)

    def entry(self, step: StepId, wanted: EntryWanted) -> Entry:
        """Return the `srun` that goes into a task beside it; raises `NotFound` when it does not run.

        Raises `EngineRefused` where Slurm is reached in a way that nothing can be talked over.
        """
        return entry_beside(
            step,
            self._book.of(step),
            wanted,
            settings=self._settings,
            cluster=self._cluster,
            program=self._enter,
        )

    def steps(self) -> tuple[StepId, ...]:
        """Return every step that was submitted and whose end is not on record, in step order."""
        listed = self._book.listed()
        return tuple(seen.step for seen in self.observe(listed) if seen.phase not in ENDED_PHASES)

    def forget(self, step: StepId) -> None:
        """Delete the files of an ended or fenced step; its id could be started again afterwards.

        Raises `InUse` while its end is not known, `EngineUnavailable` when that cannot be known.
        """
        files = step_files(self._spool, step)
        phase = self.observe([step])[0].phase
        if phase is TaskPhase.UNREACHABLE:
            raise EngineUnavailable(f"forget {step}: Slurm cannot be asked", hint="try again later")
        if phase in SEEN_PHASES:
            raise InUse(f"forget {step}: its end is not on record", hint="stop it first")
        try:
            self._dropped.take(files.directory)
            attempt = self._book.of(step)
            self._close(attempt, step)
            if not attempt.steps():
                self._dropped.take(files.attempt_directory)
                self._dropped.take(files.checkpoint)
                if attempt.array is not None:
                    self._book.arrays.forget(attempt.array, attempt.id)
        except OSError as cause:
            raise self._spool_failed("forget", step, cause) from cause

    def _recorded(self, step: StartStep) -> Attempt:
        """Return a step's attempt, on record as far as its tasks were started."""
        files = step_files(self._spool, step.step)
        try:
            attempt = self._book.get(step.attempt, files)
            is_begun = os.path.isdir(files.attempt_directory)
            if is_begun and (attempt.is_fenced() or self._is_fenced(files)):
                raise EngineRefused(
                    f"start {step.step}: it was stopped before it started",
                    hint="start a new attempt",
                )
            if not attempt.job:
                self._starter.record(step, files, attempt, self._known_nodes())
            return attempt
        except (OSError, ValueError) as cause:
            raise self._spool_failed("start", step.step, cause) from cause

    def _known_nodes(self) -> dict[str, NodeCapacity]:
        if not self._nodes:
            self.capacity()
        return self._nodes

    # Stopping.

    def _has_begun(self, attempt: Attempt, files: StepFiles) -> bool:
        """Say whether a job runs the attempt; if not, see to it that none ever will."""
        if not self._book.fence(attempt):
            return True
        if attempt.is_submitted:
            self._unwanted |= self._numbers([attempt])
            self._sought.add(attempt)
        else:
            fence = format_record({"by": "stop", "at_ns": self._clock.now_ns()})
            write_once(files.started, fence)
        return False

    def _numbers(self, attempts: Iterable[Attempt]) -> set[str]:
        """Return what Slurm calls the jobs of attempts, without numbers that others have now."""
        jobs = self._cluster.jobs().value
        found = set()
        for attempt in attempts:
            job = jobs.get(attempt.job) if jobs is not None else None
            if attempt.job and (job is None or self._cluster.is_of(job, attempt.job_name)):
                found.add(attempt.job)
        return found

    def _settle(self) -> None:
        """Make what stops decided last, before anybody is told of it."""
        try:
            self._book.settle()
        except OSError as cause:
            raise self._spool_failed("sync", "the spool", cause) from cause

    def _tend(self) -> None:
        """Do what stops left for later: tell jobs again, and cancel those that did not end.

        A job that was stopped before Slurm's answer to its submission came, or instead, is found first.
        """
        if self._before is not None:
            before, self._before = self._before, None
            before()
        if self._doors is not None:
            self._doors.tend()
        now_s = time.monotonic()
        is_due = bool(self._unwanted or self._stopping or self._sought)
        if not is_due or now_s < self._rung_s + TELLING_S:
            return
        self._rung_s = now_s
        if self._cluster.hangs():
            return
        self._unwanted |= self._sought.found()
        late = [each for each in self._stopping.values() if now_s >= each.cancel_s]
        for attempt in late:
            attempt.cancel_s = now_s + RETRY_S
        unwanted = sorted(self._unwanted | self._numbers(late))
        with contextlib.suppress(EngineError):
            if unwanted:
                self._cluster.cancel(unwanted)
                self._unwanted.clear()
            for is_gang in (False, True):
                self._ring(now_s, is_gang=is_gang)

    def _ring(self, now_s: float, *, is_gang: bool) -> None:
        """Have the shims of jobs look at their files, now that one says `stop`."""
        due = [
            each
            for each in self._stopping.values()
            if each.ring_is_due and now_s >= each.rung_s + RING_S and (each.size > 1) is is_gang
        ]
        for attempt in due:
            attempt.rung_s = now_s
        if due:
            self._cluster.ring(sorted(self._numbers(due)), is_gang=is_gang)
        for attempt in due:
            attempt.ring_is_due = False

    # Observing.

    def _tell_all(self, jobs: Reading[Jobs]) -> Iterator[Observation]:
        """Yield every step there is; what has not ended is watched from then on."""
        try:
            listed = self._book.listed()
        except OSError as cause:
            raise self._spool_failed("list", "the spool", cause) from cause
        self._has_told_all = True
        for step in listed:
            attempt = self._book.of(step)
            self._sought.add(attempt)
            yield self._tell(attempt, step, jobs)

    def _changed(self, jobs: Reading[Jobs]) -> Iterator[Observation]:
        is_look_due = self._is_look_due()
        for attempt in self._book.open():
            job = jobs.value.get(attempt.job) if jobs.value is not None else None
            word = self._doors.word(attempt.id) if self._doors and attempt.is_endpoint else ""
            state = (job.state, job.is_completing, job.wall_ns) if job else ()
            signature = (jobs.value is None, state, word)
            is_settled = attempt.signature == signature and self._is_settled(attempt, job)
            if is_settled and not (attempt.size > 1 and is_look_due):
                continue
            attempt.signature = signature
            for step in sorted(attempt.open):
                told = attempt.seen.get(step)
                seen = self._tell(attempt, step, jobs)
                # ABSENT before its submission is no news, and the same word once it is fenced is.
                if told != _told(attempt, seen) or step not in attempt.open:
                    yield seen

    def _just_begun(self, jobs: Reading[Jobs]) -> Iterator[Observation]:
        """Yield what began since Slurm was asked last, of the few that were submitted just now."""
        too_old_s = time.monotonic() - FRESH_S
        if len(self._fresh) > FRESH_MAX:
            self._fresh.clear()
        for attempt in list(self._fresh.values()):
            begun = [s for s in sorted(attempt.open) if is_there(self._book.files(s).started)]
            if len(begun) == len(attempt.open) or attempt.submitted_s < too_old_s:
                del self._fresh[attempt.id]
            for step in begun:
                told = attempt.seen.get(step)
                seen = self._tell(attempt, step, jobs)
                if told != _told(attempt, seen):
                    yield seen

    def _tell(self, attempt: Attempt, step: StepId, jobs: Reading[Jobs]) -> Observation:
        """Return what is seen of a step, and remember that it was told."""
        seen = self._observe(step, jobs)
        attempt.seen[step] = _told(attempt, seen)
        if seen.phase in ENDED_PHASES and (attempt.is_submitted or attempt.is_fenced()):
            self._close(attempt, step)
        return seen

    def _close(self, attempt: Attempt, step: StepId) -> None:
        self._book.close(attempt, step)
        if not attempt.open:
            self._stopping.pop(attempt.id, None)
            if self._doors is not None:
                self._doors.release(attempt.id)

    def _is_look_due(self) -> bool:
        """Say whether gangs are looked at this time: at least every second, more rarely if many."""
        now_s = time.monotonic()
        looks = sum(len(each.open) for each in self._book.open() if each.size > 1)
        if now_s < self._looked_s + looks / LOOKS_PER_S:
            return False
        self._looked_s = now_s
        return True

    @staticmethod
    def _is_settled(attempt: Attempt, job: SlurmJob | None) -> bool:
        """Say whether nothing is to come before Slurm shows another state."""
        seen = [attempt.seen.get(step) for step in attempt.open]
        if job is not None and job.state in PENDING:
            return all(told is not None and told[0] is TaskPhase.STARTING for told in seen)
        return all(
            told is not None
            and told[0] is TaskPhase.RUNNING
            and (bool(told[1]) or not (attempt.is_endpoint or attempt.is_lease))
            for told in seen
        )

    def _observe(self, step: StepId, jobs: Reading[Jobs]) -> Observation:
        now_ns = self._clock.now_ns()
        try:
            attempt = self._book.of(step)
            files = step_files(self._spool, step)
            prefix = self._settings.prefix if self._settings.is_delegated else None
            case = Case(step, attempt, files, now_ns, self._doors, prefix)
            return self._evidence.observe(case, jobs)
        except InvalidSpec as cause:
            return Observation(
                step=step, phase=TaskPhase.ABSENT, at_ns=now_ns, evidence=cause.message
            )
        except (OSError, KeyError, ValueError) as cause:
            words = f"the spool cannot be read: {getattr(cause, 'strerror', None) or cause!r}"
            return Observation(step=step, phase=TaskPhase.UNREACHABLE, at_ns=now_ns, evidence=words)

    # Files.

    @staticmethod
    def _is_fenced(files: StepFiles) -> bool:
        started = read_record(files.started)
        return started is not None and started.get("by") == "stop"

    def _read_owner(self) -> str:
        """Return the name under which this directory's jobs are known, making it the first time."""
        path = str(self._spool / OWNER)
        write_once(path, os.urandom(6).hex().encode())
        return (read_small(path) or b"").decode()

    def _spool_failed(self, verb: str, step: str, cause: Exception) -> EngineUnavailable:
        return EngineUnavailable(
            f"{verb} {step}: the spool failed with {cause!r}",
            hint=f"check the file system under {self._spool}; trying again is safe",
        )


def _told(attempt: Attempt, seen: Observation) -> tuple[TaskPhase, str, int]:
    """Return what of an observation is told again when it changes; only replicas follow Slurm's end."""
    return seen.phase, seen.address, seen.wall_ns if attempt.is_endpoint else 0

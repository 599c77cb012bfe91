"""Concludes what became of one task, from its own records first and from Slurm's words second.

An end is concluded only from a record, from a job that Slurm says has ended, or from a controller
that answers and has dropped the job; and never while the task's shim still writes, which it does about
once a second: Slurm calls a task gone when its node does not answer, and a controller that crashed
forgets its newest jobs. Whatever is concluded is put on record beside the task, so that Slurm may
forget, and what had not begun by then never will.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from moulin.domain.errors import EngineError
from moulin.domain.ids import NodeId, StepId
from moulin.domain.observation import Observation, TaskPhase
from moulin.engines.slurm.attempt import Attempt
from moulin.engines.slurm.cluster import Cluster, Jobs
from moulin.engines.slurm.doors import Doors
from moulin.engines.slurm.formats import COMPLETED, LOST, PENDING, STARTING, SlurmJob
from moulin.engines.slurm.watched import Reading
from moulin.engines.task.handed import take_back_secrets
from moulin.engines.task.shim import BEGUN_BEFORE
from moulin.engines.task.spool import (
    StepFiles,
    format_record,
    is_there,
    last_written_ns,
    look_again,
    make_private,
    read_address,
    read_end,
    read_login,
    read_record,
    read_usage,
    write_once,
)

# How long a record that a node has written may take to show here, on a slow shared file system.
RECORD_S: Final = 3.0
_MISSING_MIN: Final = 2
# What a shim records of a signal that no `stop` file announced.
ASKED_TO_END: Final = "shim was asked to end"


@dataclass(frozen=True, slots=True)
class Case:
    """One step to conclude about, at one time.

    Where Slurm chose its machine that is told, under its name with `host_prefix` before it.
    """

    step: StepId
    attempt: Attempt
    files: StepFiles
    now_ns: int
    doors: Doors | None = None
    host_prefix: str | None = None

    def recorded(self) -> Observation | None:
        """Return the end that is on record, looked for where another machine may have written it."""
        look_again(self.files.directory)
        return read_end(self.step, self.files, self.attempt.claim, self.now_ns)

    def absent(self, words: str) -> Observation:
        """Say that the engine never started it."""
        return self._bare(TaskPhase.ABSENT, words)

    def unreachable(self, words: str) -> Observation:
        """Say that nothing is known."""
        return self._bare(TaskPhase.UNREACHABLE, words)

    def live(self, words: str, wall_ns: int = 0) -> Observation:
        """Say that it is there: running from when its shim has taken it, until Slurm ends it at `wall_ns`."""
        cpu_ns, memory_bytes_max = read_usage(self.files)
        is_found = self.attempt.is_endpoint or self.attempt.is_lease
        address = self.address() if is_found else ""
        trouble = self.doors.trouble(self.attempt.id) if self.doors is not None and is_found else ""
        if trouble and not address:
            words = f"{trouble}; {words}"
        started = self._started()
        started_ns = int(started.get("at_ns", "0"))
        return Observation(
            step=self.step,
            phase=TaskPhase.RUNNING if started_ns else TaskPhase.STARTING,
            at_ns=self.now_ns,
            claim=self.attempt.claim,
            started_at_ns=started_ns,
            address=address,
            is_ready=bool(address),
            cpu_ns=cpu_ns,
            memory_bytes_max=memory_bytes_max,
            evidence=words,
            host=self._host(started.get("host", "")),
            wall_ns=wall_ns if started_ns else 0,
        )

    def address(self) -> str:
        """Return where a replica answers, or one logs in, empty while that is not known."""
        if self.attempt.is_lease:
            return read_login(self.files)
        if self.doors is None:
            return read_address(self.files)
        return self.doors.address(self.attempt.id, self.files)

    def has_begun(self) -> bool:
        """Say whether its shim took it; if not, see to it that none ever will."""
        if not self.started_ns():
            make_private(self.files.attempt_directory, self.files.directory)
            write_once(self.files.started, format_record({"by": "stop", "at_ns": self.now_ns}))
        return self.started_ns() > 0

    def is_quiet(self) -> bool:
        """Say whether its shim has written nothing for a while, by looking more than once."""
        at_ns, now_s = last_written_ns(self.files.usage), time.monotonic()
        known_ns, since_s = self.attempt.signs.get(self.step, (-1, now_s))
        if at_ns != known_ns:
            since_s = now_s
        self.attempt.signs[self.step] = (at_ns, since_s)
        return now_s >= since_s + RECORD_S

    def bury(self, phase: TaskPhase, code: int, words: str, ended_ns: int = 0) -> Observation:
        """Put on record how it ended, when it could not say so itself."""
        cpu_ns, memory_bytes_max = read_usage(self.files)
        written_ns = last_written_ns(self.files.usage, self.files.log) or self.now_ns
        started_ns = self.started_ns()
        record = {
            "phase": phase.value,
            "exit_code": code,
            "started_at_ns": started_ns,
            "ended_at_ns": max(started_ns, ended_ns or min(self.now_ns, written_ns)),
            "cpu_ns": cpu_ns,
            "memory_bytes_max": memory_bytes_max,
            "evidence": words,
        }
        take_back_secrets(self.files)
        write_once(self.files.exit, format_record(record))
        return self.recorded() or self.unreachable("its records vanished")

    def started_ns(self) -> int:
        """Return when the shim took it, 0 before."""
        return int(self._started().get("at_ns", "0"))

    def _started(self) -> Mapping[str, str]:
        """Return what its shim wrote when it took it, nothing before."""
        started = read_record(self.files.started) or {}
        return started if started.get("by") == "shim" else {}

    def _host(self, name: str) -> NodeId | None:
        is_known = bool(name) and self.host_prefix is not None
        return NodeId(f"{self.host_prefix}{name}") if is_known else None

    def _bare(self, phase: TaskPhase, words: str) -> Observation:
        return Observation(step=self.step, phase=phase, at_ns=self.now_ns, evidence=words)


class Evidence:
    """What is known of steps on one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def observe(self, case: Case, jobs: Reading[Jobs]) -> Observation:
        """Return the step's phase; raises `OSError`, `KeyError`, `ValueError` for a broken spool."""
        attempt = case.attempt
        end = read_end(case.step, case.files, attempt.claim, case.now_ns)
        if end is not None and end.evidence != ASKED_TO_END:
            return end
        words = _why_absent(case)
        if words:
            return case.absent(words)
        if not attempt.is_owned() and not attempt.job:
            return case.unreachable("it is not known whether Slurm took the job")
        if jobs.value is None:
            failure = jobs.failure
            return case.unreachable(failure.message if failure else "Slurm was not asked yet")
        job = jobs.value.get(attempt.job)
        if job is None or not self._cluster.is_of(job, attempt.job_name):
            return self._missing(case, jobs)
        attempt.missing = 0
        if job.has_ended and job.state in LOST:
            self._cluster.doubt_nodes()
        return _ended(case, job) if job.has_ended else _live(case, job)

    def _missing(self, case: Case, jobs: Reading[Jobs]) -> Observation:
        """Conclude from a job that an answering controller does not list, not once but twice."""
        attempt, end = case.attempt, case.recorded()
        if end is not None:
            return end
        if jobs.asked_s > attempt.submitted_s and jobs.number != attempt.missing_number:
            attempt.missing += 1
            attempt.missing_number = jobs.number
            self._cluster.miss(attempt.job)
        if not attempt.missing:
            return case.live(f"Slurm took it as job {attempt.job}")
        words = f"Slurm does not list job {attempt.job}"
        if attempt.missing < _MISSING_MIN:
            return case.unreachable(words)
        try:
            recalled = self._cluster.recall(attempt.job)
        except EngineError:
            return case.unreachable(words)
        if recalled is None:
            words = f"Slurm has no job {attempt.job} any more, and it left no record"
            if case.has_begun() and not case.is_quiet():
                return case.unreachable(f"Slurm has no job {attempt.job}, but its task lives")
            return case.bury(TaskPhase.GONE, 0, words)
        if not recalled.has_ended:
            return case.unreachable(f"accounting has job {attempt.job} as {recalled.state}")
        return _ended(case, recalled)


def _why_absent(case: Case) -> str:
    """Return why no job ever had the step, empty when one may have."""
    if case.attempt.array is None and not is_there(case.files.spec):
        has_fence = read_record(case.files.started) is not None
        return "stopped before it started" if has_fence else "never started"
    if case.attempt.is_fenced():
        return f"never started: {case.attempt.owner().decode()}"
    return "" if case.attempt.is_submitted else "not submitted yet"


def _live(case: Case, job: SlurmJob) -> Observation:
    if job.state in PENDING or job.state in STARTING:
        return case.live(f"Slurm job {job.key} waits: {job.reason or job.state.lower()}")
    words = f"Slurm job {job.key} on {job.nodes}; memory limit by rss-watch"
    end = case.recorded()
    if end is not None and end.evidence == ASKED_TO_END:
        return case.live(f"Slurm is ending job {job.key}; why will be known then")
    return end or case.live(words, job.wall_ns)


def _ended(case: Case, job: SlurmJob) -> Observation:
    """Return how a task of an ended job ended: by its own record, or by Slurm's word for the job.

    A task that somebody else than Moulin asked to end is gone through no fault of its own where
    Slurm says that its node was lost or its job preempted, or ran the job once more.
    """
    is_lost = job.state in LOST or job.exit_code == BEGUN_BEFORE
    end = case.recorded()
    if end is not None:
        if end.evidence != ASKED_TO_END or not is_lost:
            return end
        os.unlink(case.files.exit)
        words = f"Slurm job {job.key}: {job.state}"
        return case.bury(TaskPhase.GONE, 0, words, end.ended_at_ns)
    now_s, attempt = time.monotonic(), case.attempt
    attempt.unrecorded_s = attempt.unrecorded_s or now_s
    if not case.is_quiet() or now_s < attempt.unrecorded_s + RECORD_S:
        return case.unreachable(f"Slurm job {job.key} has ended; its record is awaited")
    words = f"Slurm job {job.key}: {job.state}"
    if job.reason:
        words += f" ({job.reason})"
    has_begun = case.has_begun()
    if not has_begun and attempt.last_words():
        words += f"; {attempt.last_words()}"
    code = 128 + job.signal if job.signal else job.exit_code
    # A job that Slurm ended by itself has no status of its own: 0 is then no success.
    is_gone = is_lost or not has_begun or (code == 0 and job.state != COMPLETED)
    return case.bury(TaskPhase.GONE if is_gone else TaskPhase.EXITED, code, words, job.ended_at_ns)

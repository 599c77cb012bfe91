"""Runs attempts as jobs of a Slurm cluster: one job for a whole gang, started at most once.

What a task leaves is in files on a file system that the nodes share, written by the same shim as on
one machine; what Slurm knows is read in one question for all jobs. A controller that cannot be asked
makes steps unreachable, never gone. It touches no job but those it submitted. Decision 0028.
"""

import contextlib
import os
import time
import zlib
from collections.abc import Iterator, Sequence
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
from moulin.domain.ids import AttemptId, StepId
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
from moulin.engines.slurm.attempt import REFUSED, STOPPED, Attempt, read_attempt
from moulin.engines.slurm.cluster import Cluster, Jobs
from moulin.engines.slurm.evidence import Case, Evidence
from moulin.engines.slurm.places import calmed, places
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.slurm.submission import (
    batch_script,
    install_program,
    refuse_what_slurm_cannot_run,
    sbatch_command,
    task_specification,
    whole_cpus,
)
from moulin.engines.slurm.transport import Transport
from moulin.engines.slurm.watched import Reading
from moulin.engines.task.dropped import Dropped
from moulin.engines.task.handed import take_back_secrets
from moulin.engines.task.spool import (
    StepFiles,
    format_record,
    is_there,
    listed_steps,
    look_again,
    make_directory,
    read_log,
    read_record,
    read_small,
    step_files,
    write_once,
    write_whole,
)
from moulin.ports.clock import Clock

RETRY_S: Final = 5.0
RING_S: Final = 1.0
# How long after a task's own grace the whole job is cancelled, if it has not ended by then.
CANCEL_AFTER_S: Final = 5.0
# Gangs are looked at task by task, as Slurm shows only the job; so many looks a second at most.
LOOKS_PER_S: Final = 2000
_PORT_FIRST: Final = 20_000
_PORT_COUNT: Final = 10_000
_NS_PER_S: Final = 1_000_000_000


class SlurmEngine:
    """The engine of one partition; safe to construct anew at any time over the same directory."""

    def __init__(self, settings: SlurmSettings, transport: Transport, *, clock: Clock) -> None:
        """Open or make the spool under the settings' directory; Slurm is not asked yet.

        Raises `EngineUnavailable` when the directory cannot be made.
        """
        self._settings = settings
        self._clock = clock
        self._spool = settings.directory.resolve() / "spool"
        try:
            make_directory(str(self._spool))
            self._program = install_program(self._spool)
            self._owner = self._read_owner()
        except OSError as cause:
            raise EngineUnavailable(
                f"open {self._spool}: {cause.strerror}",
                hint="the pool's `directory` must be writable here and on every node",
            ) from cause
        self._cluster = Cluster(transport, settings, own_comment=f"moulin:{self._owner}:")
        self._evidence = Evidence(self._cluster)
        self._dropped = Dropped(self._spool)
        self._attempts: dict[AttemptId, Attempt] = {}
        self._nodes: dict[str, NodeCapacity] = {}
        self._has_told_all = False
        self._handed_number = -1
        self._looked_s = 0.0

    # The port.

    def start(self, step: StartStep) -> Claim:
        """Put a task on record, and submit its gang as one job with the last of its tasks.

        Raises `EngineRefused` when it can never start here or was stopped before it started, and
        `EngineUnavailable` when it cannot be known whether it did; calling again is then safe.
        """
        files = step_files(self._spool, step.step)
        try:
            attempt = self._attempt(step.attempt, files)
            if attempt.is_fenced() or self._is_fenced(files):
                raise EngineRefused(
                    f"start {step.step}: it was stopped before it started",
                    hint="start a new attempt",
                )
            if not attempt.job:
                refuse_what_slurm_cannot_run(step, self._known_nodes())
                self._record(step, files, attempt)
                self._attempts[attempt.id] = attempt
                if len(attempt.open) == len(step.nodes):
                    self._submit(step, attempt)
        except (OSError, ValueError) as cause:
            raise self._spool_failed("start", step.step, cause) from cause
        return attempt.claim

    def observe(self, steps: Sequence[StepId]) -> tuple[Observation, ...]:
        """Return one observation per step, in order; one question to Slurm for all of them."""
        self._tend()
        jobs = self._cluster.jobs()
        return tuple(self._observe(step, jobs) for step in steps)

    def changes(self) -> tuple[Observation, ...]:
        """Return each step whose phase changed since the last call; the first time, all."""
        self._tend()
        jobs = self._cluster.jobs()
        if jobs.number == self._handed_number:
            return ()
        self._handed_number = jobs.number
        return tuple(self._changed(jobs) if self._has_told_all else self._tell_all(jobs))

    def stop(self, step: StepId, grace_s: int) -> None:
        """Ask a task's whole process tree to end, forced by its shim after `grace_s`.

        A job that has not begun never will, and is cancelled: its gang with it. Raises
        `EngineUnavailable` when Slurm could not be told; stopping again is safe.
        """
        files = step_files(self._spool, step)
        try:
            make_directory(files.directory)
            if is_there(files.exit):
                return
            attempt = self._book.of(step)
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
        now_s = time.monotonic()
        cancel_s = now_s + grace_s + CANCEL_AFTER_S
        attempt.cancel_s = min(attempt.cancel_s or cancel_s, cancel_s)
        attempt.ring_is_due = True
        if now_s >= attempt.rung_s + RING_S:
            self._ring(attempt)

    def capacity(self) -> tuple[NodeCapacity, ...]:
        """Return the partition's nodes, or a delegated pool's places, in a stable order.

        Raises `EngineUnavailable` while the controller cannot be asked.
        """
        self._tend()
        nodes = self._cluster.nodes().known()
        jobs = self._cluster.jobs().known()
        ours = frozenset(job.id for job in jobs.values() if self._cluster.is_ours(job))
        found = places(nodes, tuple(jobs.values()), ours, self._settings)
        calm = calmed(found, tuple(self._nodes.values()))
        self._nodes = {node.node: node for node in found}
        return calm

    def logs(self, step: StepId, cursor: int, limit_bytes: int) -> LogChunk:
        """Return at most `limit_bytes` (and 4 MiB) of output from byte `cursor`.

        Raises `NotFound` when no such step was started here.
        """
        files = step_files(self._spool, step)
        look_again(files.directory)
        if self._attempt_of(step).is_fenced():
            raise NotFound(f"read the log of {step}", hint="it was never started here")
        return read_log(step, files, cursor, limit_bytes)

    def steps(self) -> tuple[StepId, ...]:
        """Return every step that was submitted and whose end is not on record, in step order."""
        listed = listed_steps(self._spool)
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
            attempt = self._attempt_of(step)
            self._close(attempt, step)
            if not attempt.steps():
                self._dropped.take(files.attempt_directory)
                self._dropped.take(files.checkpoint)
        except OSError as cause:
            raise self._spool_failed("forget", step, cause) from cause

    # Starting.

    def _record(self, step: StartStep, files: StepFiles, attempt: Attempt) -> None:
        """Write what one task of the gang needs; safe to repeat until the gang is submitted."""
        make_directory(files.shared)
        make_directory(files.checkpoint)
        make_directory(files.directory)
        nodes = [self._nodes[node] for node in step.nodes]
        spec = task_specification(
            step,
            files,
            nodes[step.rank],
            addresses=[node.address for node in nodes],
            port=_port_of(step),
            is_delegated=self._settings.is_delegated,
        )
        write_whole(files.spec, spec, is_durable=False)
        Path(files.log).touch(0o600)  # it can be followed before its first line
        if not attempt.size:
            hosts = "".join(f"{self._host(node)}\n" for node in step.nodes)
            write_whole(attempt.path("hosts"), hosts.encode(), is_durable=False)
            attempt.size = len(step.nodes)
        attempt.is_endpoint = step.endpoint is not None
        attempt.open.add(step.step)

    def _submit(self, step: StartStep, attempt: Attempt) -> None:
        """Submit the gang's job unless it was ever submitted; Slurm is asked where that is unsure."""
        now_s = time.monotonic()
        if now_s < attempt.retry_s:
            raise EngineUnavailable(f"start {step.step}: Slurm did not take it a moment ago")
        attempt.retry_s = now_s + RETRY_S
        self._cluster.require()
        if attempt.is_submitted:
            attempt.job = self._cluster.find(attempt.id)
        if not attempt.job:
            try:
                attempt.job = self._submit_now(step, attempt)
            except EngineRefused as refused:
                write_once(attempt.path("owner"), REFUSED)
                raise refusal(step, refused.message, refused.hint) from refused
        write_whole(attempt.path("job"), b"%d\n" % attempt.job, is_durable=False)
        attempt.submitted_s = time.monotonic()
        self._cluster.hurry()

    def _submit_now(self, step: StartStep, attempt: Attempt) -> int:
        settings = self._settings
        size, hosts = len(step.nodes), [self._host(node) for node in step.nodes]
        command = sbatch_command(
            step,
            settings,
            comment=f"moulin:{self._owner}:{attempt.id}",
            directory=attempt.directory,
            hosts=() if settings.is_delegated else hosts,
            gres_type=self._cluster.gres_type(step.resources),
            time_limit_s=self._cluster.time_limit_s(step),
        )
        script = batch_script(
            size,
            attempt.directory,
            program=self._program,
            python=settings.python,
            cpus=whole_cpus(step.resources.cpu_milli),
            is_delegated=settings.is_delegated,
        )
        write_once(attempt.path("submitting"), b"")
        attempt.is_submitted = True
        return self._cluster.submit(command, script)

    def _host(self, node: str) -> str:
        return node if self._settings.is_delegated else node.removeprefix(self._settings.prefix)

    def _known_nodes(self) -> dict[str, NodeCapacity]:
        if not self._nodes:
            self.capacity()
        return self._nodes

    # Stopping.

    def _has_begun(self, attempt: Attempt, files: StepFiles) -> bool:
        """Say whether a job runs the attempt; if not, see to it that none ever will."""
        fence = format_record({"by": "stop", "at_ns": self._clock.now_ns()})
        if not attempt.is_submitted:
            write_once(attempt.path("owner"), STOPPED)
            write_once(files.started, fence)
            return False
        if write_once(attempt.path("owner"), STOPPED) or attempt.is_fenced():
            if attempt.job:
                self._cluster.cancel(attempt.job)
            return False
        return True

    def _tend(self) -> None:
        """Do what stops left for later: tell jobs again, and cancel those that did not end."""
        now_s = time.monotonic()
        for attempt in list(self._attempts.values()):
            with contextlib.suppress(EngineError):
                if attempt.ring_is_due and now_s >= attempt.rung_s + RING_S:
                    self._ring(attempt)
                if attempt.cancel_s and now_s >= attempt.cancel_s:
                    attempt.cancel_s = now_s + RETRY_S
                    self._cluster.cancel(attempt.job)

    def _ring(self, attempt: Attempt) -> None:
        """Have the shims of a job look at their files, now that one says `stop`."""
        attempt.rung_s = time.monotonic()
        self._cluster.ring(attempt.job, is_gang=attempt.size > 1)
        attempt.ring_is_due = False

    # Observing.

    def _tell_all(self, jobs: Reading[Jobs]) -> Iterator[Observation]:
        """Yield every step there is; what has not ended is watched from then on."""
        try:
            listed = listed_steps(self._spool)
        except OSError as cause:
            raise self._spool_failed("list", "the spool", cause) from cause
        self._has_told_all = True
        for step in listed:
            yield self._tell(self._attempt_of(step), step, jobs)

    def _changed(self, jobs: Reading[Jobs]) -> Iterator[Observation]:
        is_look_due = self._is_look_due()
        for attempt in list(self._attempts.values()):
            job = jobs.value.get(attempt.job) if jobs.value is not None else None
            signature = (jobs.value is None, job.state if job else "", job and job.is_completing)
            is_settled = attempt.signature == signature and self._is_settled(attempt)
            if is_settled and not (attempt.size > 1 and is_look_due):
                continue
            attempt.signature = signature
            for step in sorted(attempt.open):
                told = attempt.seen.get(step)
                seen = self._tell(attempt, step, jobs)
                # ABSENT before its submission is no news, and the same word once it is fenced is.
                if told != (seen.phase, seen.address) or step not in attempt.open:
                    yield seen

    def _tell(self, attempt: Attempt, step: StepId, jobs: Reading[Jobs]) -> Observation:
        """Return what is seen of a step, and remember that it was told."""
        seen = self._observe(step, jobs)
        attempt.seen[step] = (seen.phase, seen.address)
        if seen.phase in ENDED_PHASES and (attempt.is_submitted or attempt.is_fenced()):
            self._close(attempt, step)
        return seen

    def _close(self, attempt: Attempt, step: StepId) -> None:
        attempt.open.discard(step)
        attempt.seen.pop(step, None)
        if not attempt.open:
            self._attempts.pop(attempt.id, None)

    def _is_look_due(self) -> bool:
        """Say whether gangs are looked at this time: at least every second, more rarely if many."""
        now_s = time.monotonic()
        looks = sum(len(each.open) for each in self._attempts.values() if each.size > 1)
        if now_s < self._looked_s + looks / LOOKS_PER_S:
            return False
        self._looked_s = now_s
        return True

    @staticmethod
    def _is_settled(attempt: Attempt) -> bool:
        """Say whether nothing is to come before Slurm shows another state."""
        seen = [attempt.seen.get(step) for step in attempt.open]
        return all(
            told is not None
            and told[0] is TaskPhase.RUNNING
            and (bool(told[1]) or not attempt.is_endpoint)
            for told in seen
        )

    def _observe(self, step: StepId, jobs: Reading[Jobs]) -> Observation:
        now_ns = self._clock.now_ns()
        try:
            attempt = self._attempt_of(step)
            case = Case(step, attempt, step_files(self._spool, step), now_ns)
            return self._evidence.observe(case, jobs)
        except InvalidSpec as cause:
            return Observation(
                step=step, phase=TaskPhase.ABSENT, at_ns=now_ns, evidence=cause.message
            )
        except (OSError, KeyError, ValueError) as cause:
            words = f"the spool cannot be read: {getattr(cause, 'strerror', None) or cause!r}"
            return Observation(step=step, phase=TaskPhase.UNREACHABLE, at_ns=now_ns, evidence=words)

    # Files.

    def _attempt_of(self, step: StepId) -> Attempt:
        files = step_files(self._spool, step)
        return self._attempt(AttemptId(step.rpartition(".t")[0]), files)

    def _attempt(self, name: AttemptId, files: StepFiles) -> Attempt:
        found = self._attempts.get(name)
        if found is None:
            found = read_attempt(files, name)
            if found.open:
                self._attempts[name] = found
        return found

    @staticmethod
    def _is_fenced(files: StepFiles) -> bool:
        started = read_record(files.started)
        return started is not None and started.get("by") == "stop"

    def _read_owner(self) -> str:
        """Return the name under which this directory's jobs are known, making it the first time."""
        path = str(self._spool / ".owner")
        write_once(path, os.urandom(6).hex().encode())
        return (read_small(path) or b"").decode()

    def _spool_failed(self, verb: str, step: str, cause: Exception) -> EngineUnavailable:
        return EngineUnavailable(
            f"{verb} {step}: the spool failed with {cause!r}",
            hint=f"check the file system under {self._spool}; trying again is safe",
        )


def _port_of(step: StartStep) -> int:
    """Return the gang's port: the control plane's choice, else one that follows from its name."""
    written = step.env.get("MASTER_PORT", "")
    if written.isdigit():
        return int(written)
    return _PORT_FIRST + zlib.crc32(step.attempt.encode()) % _PORT_COUNT

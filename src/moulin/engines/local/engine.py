"""Runs tasks as processes of this machine, each beside a shim that outlives the control plane.

Everything it knows is on disk in the spool, so a fresh instance adopts what an earlier one
started. It never retries, never decides policy, and calls a step gone only after ending whatever
the step left running. Decision rules: DESIGN rule 7.
"""

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from moulin.domain.errors import EngineRefused, EngineUnavailable, InUse, InvalidSpec, NotFound
from moulin.domain.health import NodeReading
from moulin.domain.ids import NodeId, StepId
from moulin.domain.observation import Claim, LogChunk, NodeCapacity, Observation, TaskPhase
from moulin.domain.plan import StartStep
from moulin.domain.session import Entry, EntryWanted
from moulin.domain.words import moment
from moulin.engines.local.cgroup import CgroupBase
from moulin.engines.local.launch import (
    launch,
    refuse_what_cannot_run,
    rendezvous_port,
)
from moulin.engines.local.nodes import machine_devices
from moulin.engines.local.survivors import end_survivors
from moulin.engines.task.containers import TOOLS_OWN, contained_here, find_tools, images_lacking
from moulin.engines.task.data import BESIDE, MOVER, Beside, data_lacking, placed, refuse_bad_data
from moulin.engines.task.dropped import Dropped
from moulin.engines.task.entering import entering
from moulin.engines.task.handed import hand_secrets, take_back_secrets
from moulin.engines.task.shim import read_spec, stat_fields
from moulin.engines.task.specification import LOGIN, specification, with_login
from moulin.engines.task.spool import (
    StepFiles,
    format_record,
    last_written_ns,
    listed_steps,
    make_directory,
    read_address,
    read_end,
    read_exact,
    read_log,
    read_login,
    read_record,
    read_small,
    read_usage,
    step_files,
    write_once,
    write_time_limit,
    write_whole,
)
from moulin.engines.task.task_env import clean_environment, task_environment
from moulin.ports.clock import Clock

# How often it is looked for what may be installed meanwhile: tools for images, libraries for copies.
LOOK_NS: Final = 10 * 10**9


@dataclass(slots=True)
class _Known:
    """A step this machine started; `final` once its end is known."""

    step: StepId
    files: StepFiles
    claim: Claim
    started_at_ns: int
    cgroup: str
    is_endpoint: bool
    is_contained: bool
    is_lease: bool
    evidence: str
    final: Observation | None = None


class LocalEngine:
    """The engine of one machine; safe to construct anew at any time over the same directory."""

    def __init__(
        self,
        data_dir: Path,
        *,
        clock: Clock,
        nodes: Sequence[NodeCapacity],
        cgroup: CgroupBase | None = None,
        environment: Mapping[str, str] | None = None,
        booted_at_ns: int = 0,
        read_health: Callable[[], NodeReading] | None = None,
    ) -> None:
        """Open or make the spool under `data_dir`.

        `nodes` come from `divide_machine`, `cgroup` from `find_cgroup_base` (None: no groups).
        `environment` offers PATH, HOME and the like to tasks; the rest of it is not passed on.
        `read_health` reads the machine as a whole, None where nobody does.
        No task of an earlier boot is believed to have lived past `booted_at_ns` (0: not known).
        """
        self._spool = (data_dir / "spool").resolve()
        make_directory(str(self._spool))
        self._spool_inode = os.stat(self._spool).st_ino
        self._clock = clock
        self._nodes = tuple(nodes)
        self._node_by_id = {node.node: node for node in self._nodes}
        self._cgroup = cgroup
        self._booted_at_ns = booted_at_ns
        self._read_health = read_health
        self._dropped = Dropped(self._spool)
        found = os.environ if environment is None else environment
        self._base_env = clean_environment(found)
        self._tools_env = {name: found[name] for name in TOOLS_OWN if name in found}
        self._known: dict[StepId, _Known] = {}
        self._ports: set[int] = set()
        self._look_at_ns = 0

    @property
    def memory_limit_method(self) -> str:
        """How memory limits are enforced: `cgroup-v2` by the kernel, `rss-watch` by the shim."""
        return "cgroup-v2" if self._cgroup and self._cgroup.limits_memory else "rss-watch"

    def start(self, step: StartStep) -> Claim:
        """Start the step unless it was ever started; a repeated call returns the same claim.

        Raises `EngineRefused` when it can never start here or was stopped before it started, and
        `EngineUnavailable` when it cannot be known whether it did; calling again is then safe.
        """
        files = step_files(self._spool, step.step)
        try:
            known = self._known.get(step.step) or self._adopt(step.step, files)
            if known is None:
                refuse_bad_data(step)
                refuse_what_cannot_run(step, self._nodes, self._base_env["PATH"])
                known = self._start_fresh(step, files)
        except (OSError, KeyError, ValueError) as cause:
            raise EngineUnavailable(
                f"start {step.step}: the spool failed with {cause!r}",
                hint=f"check the disk under {self._spool}; starting again is safe",
            ) from cause
        return known.claim

    def observe(self, steps: Sequence[StepId]) -> tuple[Observation, ...]:
        """Return one observation per step, in order; never raises for a single bad step."""
        now_ns = self._clock.now_ns()
        return tuple(self._observe(step, now_ns) for step in steps)

    def stop(self, step: StepId, grace_s: int) -> None:
        """Ask the whole process tree to end, forced after `grace_s`, by its shim.

        A step that was never started is fenced. Raises `EngineUnavailable` when the request
        could not be put on disk.
        """
        files = step_files(self._spool, step)
        fence = format_record({"by": "stop", "at_ns": self._clock.now_ns()})
        try:
            make_directory(files.directory)
            if os.path.exists(files.exit):
                return
            if write_once(files.started, fence):
                take_back_secrets(files)
                return
            known = self._known.get(step) or self._adopt(step, files)
            write_whole(files.stop, b"%d" % (grace_s * 1_000_000_000), is_durable=False)
        except EngineRefused:
            return  # fenced before
        except (OSError, KeyError, ValueError) as cause:
            raise EngineUnavailable(
                f"stop {step}: the spool failed with {cause!r}",
                hint=f"check the disk under {self._spool}; stopping again is safe",
            ) from cause
        if known is not None:
            _wake(known.claim)

    def extend(self, step: StepId, time_limit_s: int) -> None:
        """Tell a leased node how long it may last in all; raises `EngineUnavailable`."""
        try:
            write_time_limit(step_files(self._spool, step), time_limit_s)
        except OSError as cause:
            raise EngineUnavailable(
                f"extend {step}: the spool failed with {cause!r}",
                hint=f"check the disk under {self._spool}; extending again is safe",
            ) from cause

    def capacity(self) -> tuple[NodeCapacity, ...]:
        """Return this machine's nodes by number, with what is not installed for their tasks."""
        now_ns = self._clock.now_ns()
        if now_ns >= self._look_at_ns:
            self._look_at_ns = now_ns + LOOK_NS
            lacks = (*images_lacking(find_tools(self._base_env["PATH"])), *data_lacking())
            if lacks != self._nodes[0].lacks:
                self._nodes = tuple(replace(node, lacks=lacks) for node in self._nodes)
        return self._nodes

    def health(self, nodes: Sequence[NodeId] = ()) -> tuple[NodeReading, ...]:
        """Return a reading of each node: its own devices, and what all nodes share."""
        if self._read_health is None:
            return ()
        found, read = self._read_health(), []
        first = 0
        for node in self._nodes:
            devices = found.devices
            own = tuple(
                replace(each, index=each.index - first)
                for each in devices or ()
                if first <= each.index < first + node.accelerators
            )
            first += node.accelerators
            known = None if devices is None else own
            if not nodes or node.node in nodes:
                read.append(replace(found, node=node.node, devices=known))
        return tuple(read)

    def logs(self, step: StepId, cursor: int, limit_bytes: int) -> LogChunk:
        """Return at most `limit_bytes` (and 4 MiB) of output from byte `cursor`.

        Raises `NotFound` when no such step was started here.
        """
        return read_log(step, step_files(self._spool, step), cursor, limit_bytes)

    def entry(self, step: StepId, wanted: EntryWanted) -> Entry:
        """Return the program that goes into a task of this machine; raises `NotFound` for no such."""
        files = step_files(self._spool, step)
        if not self._is_open(step):
            raise NotFound(
                f"enter {step}: it does not run here", hint="only what runs can be entered"
            )
        return Entry(argv=entering(files.directory, wanted), env=self._base_env)

    def steps(self) -> tuple[StepId, ...]:
        """Return every step that was started and whose end is not on record, in step order."""
        return tuple(step for step in listed_steps(self._spool) if self._is_open(step))

    def forget(self, step: StepId) -> None:
        """Delete the files of an ended or fenced step; its id could be started again afterwards.

        The last task of an attempt takes the directory that its tasks shared along. Raises `InUse`
        while the end of a started step is not on record, and `EngineUnavailable` when the files
        could not be taken out of the spool; forgetting again is then safe.
        """
        files = step_files(self._spool, step)
        try:
            if self._is_open(step):
                self.observe([step])  # what died without a record gets one now
            if self._is_open(step):
                raise InUse(f"forget {step}: its end is not on record", hint="stop it first")
            self._drop(files)
        except BlockingIOError as cause:
            raise InUse(f"forget {step}: a start is under way", hint="try again later") from cause
        except OSError as cause:
            raise EngineUnavailable(
                f"forget {step}: the spool failed with {cause!r}",
                hint=f"check the disk under {self._spool}; forgetting again is safe",
            ) from cause
        self._known.pop(step, None)

    def _drop(self, files: StepFiles) -> None:
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            _starting(files.directory, is_waiting=False),
        ):
            self._dropped.take(files.directory)
        if not any(entry.name.isdigit() for entry in _scan(files.attempt_directory)):
            self._dropped.take(files.attempt_directory)
            # Steps are forgotten only when their workload has ended: no attempt is still to come.
            self._dropped.take(files.checkpoint)

    def _is_open(self, step: StepId) -> bool:
        files = step_files(self._spool, step)
        started = read_record(files.started)
        return (
            started is not None and started.get("by") == "shim" and not os.path.exists(files.exit)
        )

    def _start_fresh(self, step: StartStep, files: StepFiles) -> _Known:
        make_directory(files.shared)
        make_directory(files.checkpoint)
        make_directory(files.directory)
        with _starting(files.directory, is_waiting=True) as starting_fd:
            known = self._adopt(step.step, files)
            if known is None:
                write_whole(files.spec, self._specification(step, files), is_durable=False)
                hand_secrets(step, files)
                launch(files, starting_fd)
                known = self._adopt(step.step, files)
        if known is None:
            raise EngineUnavailable(
                f"start {step.step}: its shim left no record",
                hint=f"check the disk under {self._spool}; starting again is safe",
            )
        return known

    def _specification(self, step: StartStep, files: StepFiles) -> bytes:
        node = self._node_by_id[step.nodes[step.rank]]
        python = os.path.realpath(sys.executable)
        step = placed(with_login(step, python, LOGIN, node.address), files)
        beside = Beside(
            python=(python,), program=BESIDE, mover_python=(sys.executable,), mover=MOVER
        )
        env = task_environment(
            step,
            files,
            base=self._base_env,
            addresses=[self._node_by_id[name].address for name in step.nodes],
            port=rendezvous_port(files, self._ports),
            devices=machine_devices(self._nodes, node.node, step.devices),
        )
        return specification(
            step,
            files,
            env=env,
            node=node,
            memory_method=self.memory_limit_method,
            cgroup=self._cgroup.group(files.directory) if self._cgroup else "",
            contained=contained_here(step, files, env, self._base_env, self._tools_env),
            beside=beside.words(step, files),
        )

    def _adopt(self, step: StepId, files: StepFiles) -> _Known | None:
        """Return a started step from its records; None when it was not started."""
        started = read_record(files.started)
        if started is None:
            return None
        if started.get("by") != "shim":
            raise EngineRefused(
                f"start {step}: it was stopped before it started", hint="start a new attempt"
            )
        spec = read_spec(read_exact(files.spec) or b"")
        known = _Known(
            step=step,
            files=files,
            claim=Claim(
                pid=int(started["pid"]),
                pid_started_ticks=int(started["started_ticks"]),
                boot_id=started["boot_id"],
            ),
            started_at_ns=int(started["at_ns"]),
            cgroup=spec.get(b"cgroup", [b""])[0].decode(),
            is_endpoint=spec.get(b"endpoint") == [b"1"],
            is_contained=spec.get(b"container", [b""]) != [b""],
            is_lease=spec.get(b"lease") == [b"1"],
            evidence="memory limit by " + spec.get(b"memory_method", [b"unknown"])[0].decode(),
        )
        self._known[step] = known
        return known

    def _observe(self, step: StepId, now_ns: int) -> Observation:
        try:
            known = self._known.get(step)
            if known is None:
                files = step_files(self._spool, step)
                known = self._adopt(step, files)
                if known is None:
                    return self._observe_unstarted(step, files, now_ns)
            return self._read(known, now_ns)
        except InvalidSpec as cause:
            return _without_process(step, TaskPhase.ABSENT, now_ns, cause.message)
        except EngineRefused:
            return _without_process(step, TaskPhase.ABSENT, now_ns, "stopped before it started")
        except (OSError, KeyError, ValueError) as cause:
            words = f"the spool cannot be read: {getattr(cause, 'strerror', None) or cause!r}"
            return _without_process(step, TaskPhase.UNREACHABLE, now_ns, words)

    def _observe_unstarted(self, step: StepId, files: StepFiles, now_ns: int) -> Observation:
        # A spool that was unmounted or replaced proves nothing about what ran from it.
        if os.stat(self._spool).st_ino != self._spool_inode:
            words = "the spool directory was replaced"
            return _without_process(step, TaskPhase.UNREACHABLE, now_ns, words)
        try:
            with _starting(files.directory, is_waiting=False):
                known = self._adopt(step, files)
        except (FileNotFoundError, NotADirectoryError):
            return _without_process(step, TaskPhase.ABSENT, now_ns, "never started")
        except BlockingIOError:
            return _without_process(step, TaskPhase.STARTING, now_ns, "a start is under way")
        if known is not None:
            return self._read(known, now_ns)
        return _without_process(step, TaskPhase.ABSENT, now_ns, "never started")

    def _read(self, known: _Known, now_ns: int) -> Observation:
        if known.final is not None:
            return replace(known.final, at_ns=now_ns)
        final = self._read_exit(known, now_ns)
        if final is not None:
            return final
        if known.claim.boot_id != self._boot_id():
            return self._bury(known, now_ns, "the machine was restarted (boot id changed)")
        if _is_held(known.files.lock):
            return self._running(known, now_ns)
        # The shim may have written its record and ended between the two looks.
        return self._read_exit(known, now_ns) or self._bury(known, now_ns, "its shim died")

    def _boot_id(self) -> str:
        return self._nodes[0].boot_id

    def _read_exit(self, known: _Known, now_ns: int) -> Observation | None:
        known.final = read_end(known.step, known.files, known.claim, now_ns)
        return known.final

    def _running(self, known: _Known, now_ns: int) -> Observation:
        cpu_ns, memory_bytes_max = _usage(known)
        address = read_address(known.files) if known.is_endpoint else ""
        if known.is_lease:
            address = read_login(known.files)
        return Observation(
            step=known.step,
            phase=TaskPhase.RUNNING,
            at_ns=now_ns,
            claim=known.claim,
            started_at_ns=known.started_at_ns,
            address=address,
            is_ready=bool(address),
            cpu_ns=cpu_ns,
            memory_bytes_max=memory_bytes_max,
            evidence=known.evidence,
        )

    def _bury(self, known: _Known, now_ns: int, cause: str) -> Observation:
        """End what is left of a step without a shim, then put on record that it is gone.

        It ended when it was last known to live, not when somebody looked.
        """
        cpu_ns, memory_bytes_max = _usage(known)
        is_same_boot = known.claim.boot_id == self._boot_id()
        found = left = 0
        if is_same_boot:
            found, left = end_survivors(
                known.files.directory, known.cgroup, is_contained=known.is_contained
            )
        if left:
            words = f"{cause}; {left} of its processes do not end"
            return _without_process(known.step, TaskPhase.UNREACHABLE, now_ns, words)
        until_ns = now_ns if is_same_boot else self._booted_at_ns or now_ns
        ended_at_ns = now_ns if found else _last_life_ns(known, until_ns)
        take_back_secrets(known.files)
        record = {
            "phase": TaskPhase.GONE.value,
            "started_at_ns": known.started_at_ns,
            "ended_at_ns": ended_at_ns,
            "cpu_ns": cpu_ns,
            "memory_bytes_max": memory_bytes_max,
            "evidence": f"{cause}; last known to live on {moment(ended_at_ns)}",
        }
        write_once(known.files.exit, format_record(record))
        final = self._read_exit(known, now_ns)
        if final is None:
            return _without_process(known.step, TaskPhase.UNREACHABLE, now_ns, "records vanished")
        return final


@contextlib.contextmanager
def _starting(directory: str, *, is_waiting: bool) -> Iterator[int]:
    """Hold the lock that covers a start, also after the death of this process, by its starter."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if is_waiting else fcntl.LOCK_NB))
        yield fd
    finally:
        os.close(fd)


def _is_held(lock: str) -> bool:
    fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.lockf(fd, os.F_TEST, 0)
    except (BlockingIOError, PermissionError):
        return True
    finally:
        os.close(fd)
    return False


def _wake(claim: Claim) -> None:
    """Tell a shim to look at its directory; it looks once a second in any case."""
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(claim.pid)
        try:
            fields = stat_fields(claim.pid)
            if fields and int(fields[19]) == claim.pid_started_ticks:
                signal.pidfd_send_signal(pidfd, signal.SIGUSR1)
        finally:
            os.close(pidfd)


def _usage(known: _Known) -> tuple[int, int]:
    """Return cumulative CPU ns and peak bytes; of a group now, else as of the last second."""
    cpu_ns, memory_bytes_max = read_usage(known.files)
    if known.cgroup:
        data = read_small(f"{known.cgroup}/cpu.stat") or b""
        if data.startswith(b"usage_usec "):
            cpu_ns = max(cpu_ns, int(data[11 : data.index(b"\n")]) * 1000)
    return cpu_ns, memory_bytes_max


def _last_life_ns(known: _Known, until_ns: int) -> int:
    """Return when a step whose processes are gone was last known to live, at most `until_ns`.

    Its shim writes a reading about once a second, and only its program writes to its log. These
    times are of the machine's clock and may be lost with its power, never later than the truth.
    """
    written_ns = last_written_ns(known.files.usage, known.files.log)
    return max(known.started_at_ns, min(written_ns, until_ns))


def _without_process(step: StepId, phase: TaskPhase, at_ns: int, evidence: str) -> Observation:
    return Observation(step=step, phase=phase, at_ns=at_ns, evidence=evidence)


def _scan(directory: str) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(directory))
    except FileNotFoundError:
        return []

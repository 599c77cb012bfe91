"""Puts attempts on record and submits them, each at most once as far as Slurm can be asked.

Attempts of one workload that ask for the same, on the same nodes where Moulin places, become one array
job: one `sbatch` for all of them. Decision 0037.
"""

import os
import time
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Final

from moulin.domain.errors import EngineError, EngineRefused, EngineUnavailable
from moulin.domain.ids import AttemptId
from moulin.domain.needs import Need
from moulin.domain.observation import NodeCapacity
from moulin.domain.plan import StartStep
from moulin.engines.slurm.arrays import ArrayJob
from moulin.engines.slurm.attempt import Attempt, Attempts
from moulin.engines.slurm.avoidance import Avoidance
from moulin.engines.slurm.client import Crowded, JobRequest
from moulin.engines.slurm.cluster import Cluster
from moulin.engines.slurm.doors import Doors
from moulin.engines.slurm.images import Images
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.slurm.submission import (
    Launch,
    array_script,
    batch_script,
    job_request,
    refuse_what_slurm_cannot_run,
    task_specification,
    whole_cpus,
)
from moulin.engines.slurm.wellbeing import Wellbeing
from moulin.engines.task.bundle_shelf import SharedData
from moulin.engines.task.data import needs_data, refuse_bad_data
from moulin.engines.task.handed import hand_secrets
from moulin.engines.task.image import ContainerTool
from moulin.engines.task.specification import refusal, with_login
from moulin.engines.task.spool import StepFiles, make_private, write_once, write_whole

RETRY_S: Final = 5.0
# How long one call goes on submitting before the rest is left to the next.
SUBMITTING_S: Final = 2.0
# Slurm takes submissions side by side; the client's own start is most of each.
SIDE_BY_SIDE: Final = 4
# How long attempts are submitted one by one after Slurm refused an array and took one of it alone.
ALONE_S: Final = 60.0
_PORT_FIRST: Final = 20_000
_PORT_COUNT: Final = 10_000

Waiting = tuple[StartStep, Attempt]
Failures = Mapping[AttemptId, EngineError]


class Starter:
    """What starting needs to know of one pool."""

    def __init__(
        self,
        book: Attempts,
        settings: SlurmSettings,
        cluster: Cluster,
        *,
        program: str,
        login: str,
        doors: Doors | None,
        wellbeing: Wellbeing,
        avoidance: Avoidance,
        data: SharedData,
    ) -> None:
        """`program` is the path of the shim, `login` of what leased nodes run, as the nodes see it."""
        self._login = login
        self._data = data
        self._images = Images(cluster, settings.images)
        self._wellbeing = wellbeing
        self._avoidance = avoidance
        self._doors = doors
        self._book = book
        self._settings = settings
        self._cluster = cluster
        self._program = program
        self._alone_until_s = 0.0

    def lacks(self) -> tuple[Need, ...]:
        """Return what no node of the partition can carry, as far as that is known."""
        return self._images.lacks()

    def record(
        self, step: StartStep, files: StepFiles, attempt: Attempt, nodes: Mapping[str, NodeCapacity]
    ) -> None:
        """Put on record what one task of the gang needs; safe to repeat until it is submitted.

        What may become an element of an array is written with the array. Raises `EngineRefused` when
        it can never start on these nodes, and `OSError`.
        """
        refuse_what_slurm_cannot_run(step, nodes)
        refuse_bad_data(step)
        tool = self._images.tool_for(step)
        if _is_element(step) and not _has_files(step):
            attempt.spec = self._specification(step, files, nodes, tool)
            attempt.size = 1
        else:
            make_private(files.attempt_directory, files.directory)
            spec = self._specification(step, files, nodes, tool)
            hand_secrets(step, files)
            _write(files.spec, spec, is_new=not attempt.is_submitted)
            self._record_gang(step, attempt)
        attempt.open.add(step.step)
        self._book.watch(attempt)

    def _specification(
        self,
        step: StartStep,
        files: StepFiles,
        nodes: Mapping[str, NodeCapacity],
        tool: ContainerTool | None,
    ) -> bytes:
        """Return what the shim reads, beside which a replica's door and a task's data are prepared."""
        chosen = [nodes[node] for node in step.nodes]
        step = with_login(step, self._settings.python, self._login, chosen[step.rank].address)
        if self._doors is not None:
            step = self._doors.behind(step, files, chosen[step.rank])
        step, beside = self._data.prepared(step, files)
        return task_specification(
            step,
            files,
            chosen[step.rank],
            addresses=[node.address for node in chosen],
            port=_port_of(step),
            is_delegated=self._settings.is_delegated,
            beside=beside,
            tool=tool,
        )

    def _record_gang(self, step: StartStep, attempt: Attempt) -> None:
        """Write what a job needs to know of all its tasks, with the first of them."""
        if not attempt.size:
            attempt.size = len(step.nodes)
            if attempt.size > 1:
                names = job_request(step, self._settings).hosts or step.nodes
                hosts = "".join(f"{name}\n" for name in names)
                write_whole(attempt.path("hosts"), hosts.encode(), is_durable=False)
        attempt.is_endpoint = step.endpoint is not None
        if step.lease is not None:
            attempt.is_lease = True
            write_whole(attempt.path("lease"), b"", is_durable=False)

    def submit(self, waiting: Sequence[Waiting]) -> Failures:
        """Submit attempts that are on record, and return why some were not.

        What takes too long is left to the next call, as are those whose last try is too young.
        """
        now_s = time.monotonic()
        young = [attempt for _, attempt in waiting if now_s < attempt.retry_s]
        failures: dict[AttemptId, EngineError] = {
            attempt.id: EngineUnavailable("Slurm did not take it a moment ago") for attempt in young
        }
        waiting = [each for each in waiting if each[1].id not in failures]
        if not waiting:
            return failures
        try:
            self._cluster.require()
            self._book.make_names_durable()
        except (EngineError, OSError) as cause:
            failed = _named(cause)
            return {**failures, **{attempt.id: failed for _, attempt in waiting}}
        calls = [partial(self._try, *call) for call in self._calls(waiting)]
        deadline_s = time.monotonic() + SUBMITTING_S
        if len(calls) == 1:
            done = [calls[0](deadline_s)]
        else:
            with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="sbatch") as pool:
                done = list(pool.map(lambda call: call(deadline_s), calls))
        self._cluster.hurry()
        for failed_here in done:
            failures.update(failed_here)
        return failures

    def _calls(self, waiting: Sequence[Waiting]) -> list[tuple[ArrayJob | None, list[Waiting]]]:
        """Divide attempts into submissions: of an array that there is, or of those that will be one."""
        alone: list[Waiting] = []
        old: dict[str, list[Waiting]] = {}
        alike: dict[object, list[Waiting]] = {}
        size_max = self._cluster.array_max() if len(waiting) > 1 else 0
        if time.monotonic() < self._alone_until_s:
            size_max = 0
        for step, attempt in waiting:
            if attempt.array is not None:
                old.setdefault(attempt.array.name, []).append((step, attempt))
            elif attempt.is_submitted or size_max < 2 or not _is_element(step):
                alone.append((step, attempt))
            else:
                alike.setdefault(self._likeness(step), []).append((step, attempt))
        calls: list[tuple[ArrayJob | None, list[Waiting]]] = [
            (some[0][1].array, some) for some in old.values()
        ]
        for some in alike.values():
            parts = range(0, len(some), size_max)
            calls.extend((None, some[first : first + size_max]) for first in parts)
        return [*calls, *((None, [each]) for each in alone)]

    def _likeness(self, step: StartStep) -> object:
        """Return what steps have in common that Slurm can be told of once."""
        nodes = len(step.nodes) if self._settings.is_delegated else step.nodes
        return (step.workload, step.time_limit_s, step.stop_grace_s, step.resources, nodes)

    def _try(self, array: ArrayJob | None, some: Sequence[Waiting], deadline_s: float) -> Failures:
        """Submit one job or array and return why not, for each attempt it was for."""
        now_s = time.monotonic()
        try:
            if array is not None and now_s < array.retry_s:
                raise EngineUnavailable("Slurm did not take it a moment ago")
            if now_s > deadline_s:
                raise EngineUnavailable("Slurm is told of more in a moment")
            if array is None and len(some) > 1:
                array = self._book.arrays.make({each.id: each.spec for _, each in some})
            if array is not None:
                return self._submit_array(array, some)
            self._submit_one(*some[0])
        except EngineRefused as refused:
            hint = refused.hint
            return {each.id: refusal(step, refused.message, hint) for step, each in some}
        except (EngineError, OSError) as cause:
            failed = _named(cause)
            return {each.id: failed for _, each in some}
        return {}

    def _submit_one(self, step: StartStep, attempt: Attempt) -> None:
        """Submit a gang's job unless it was ever submitted; Slurm is asked where that is unsure."""
        attempt.retry_s = time.monotonic() + RETRY_S
        number = self._cluster.find(attempt.id) if attempt.is_submitted else 0
        if not number:
            try:
                job = self._request(step, attempt.id)
                files = self._book.files(step.step)
                make_private(files.attempt_directory, files.directory, files.shared)
                make_private(os.path.dirname(files.checkpoint), files.checkpoint)
                if attempt.spec:
                    _write(files.spec, attempt.spec, is_new=not attempt.is_submitted)
                write_once(attempt.path("submitting"), b"")
                attempt.is_submitted = True
                script = batch_script(attempt.directory, self._launch(step))
                number = self._cluster.submit(
                    replace(
                        job,
                        directory=attempt.directory,
                        output=attempt.path("batch"),
                        script=script,
                    )
                )
            except EngineRefused:
                self._book.refuse(attempt)
                raise
        attempt.own_job, attempt.spec = str(number), b""
        write_whole(attempt.path("job"), b"%d\n" % number, is_durable=False)
        attempt.submitted_s = time.monotonic()

    def _submit_array(self, array: ArrayJob, some: Sequence[Waiting]) -> Failures:
        """Submit attempts as one array; those of its members that were stopped will not run."""
        array.retry_s = time.monotonic() + RETRY_S
        number = self._cluster.find(array.name) if array.is_submitted else 0
        indexes = {name: index for index, name in enumerate(array.members)}
        if not number:
            try:
                job = self._request(some[0][0], array.name)
                array.begin()
                for _, attempt in some:
                    attempt.join(array, indexes[attempt.id])
                script = array_script(array, self._launch(some[0][0]))
                number = self._cluster.submit(
                    replace(
                        job,
                        directory=array.directory,
                        output=array.path("batch.%a"),
                        script=script,
                        array_size=len(array.members),
                    )
                )
            except (EngineRefused, Crowded):
                return self._submit_instead(array, some)
        array.number(number)
        now_s = time.monotonic()
        for _, attempt in some:
            attempt.submitted_s, attempt.spec = now_s, b""
        return {}

    def _submit_instead(self, array: ArrayJob, some: Sequence[Waiting]) -> Failures:
        """Find out by one attempt whether Slurm refuses each of them, or only so many at once."""
        self._book.arrays.dissolve(array)
        retry_s = time.monotonic() + RETRY_S
        for _, attempt in some:
            attempt.leave()
            attempt.retry_s = retry_s
        try:
            self._submit_one(*some[0])
        except EngineRefused:
            for _, attempt in some[1:]:
                self._book.refuse(attempt)
            raise
        for _, attempt in some:
            attempt.retry_s = 0.0
        self._alone_until_s = time.monotonic() + ALONE_S
        later = EngineUnavailable("Slurm takes them one by one, but not as an array")
        return {attempt.id: later for _, attempt in some[1:]}

    def _request(self, step: StartStep, name: str) -> JobRequest:
        """Return the job to submit under a name; raises `EngineRefused` for too long a limit."""
        cluster = self._cluster
        job = job_request(
            step,
            self._settings,
            gres_type=cluster.gres_type(step),
            time_limit_s=cluster.time_limit_s(step),
            avoided=self._avoidance.hosts(),
        )
        return replace(
            job,
            name=name,
            comment=f"{cluster.own_comment}{name}",
            is_unlimited=cluster.outlasts_default(step),
        )

    def _launch(self, step: StartStep) -> Launch:
        return Launch(
            size=len(step.nodes),
            cpus=whole_cpus(step.resources.cpu_milli),
            program=self._program,
            python=self._settings.python,
            is_delegated=self._settings.is_delegated,
            reader=self._wellbeing.reader,
            health=self._wellbeing.folder,
        )


def _named(cause: EngineError | OSError) -> EngineError:
    if isinstance(cause, EngineError):
        return cause
    return EngineUnavailable(f"submit: the spool failed with {cause!r}")


def _write(path: str, data: bytes, *, is_new: bool) -> None:
    """Write a file, at once where nobody can be reading it: that is half of what a start costs."""
    if not is_new:
        write_whole(path, data, is_durable=False)
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb", buffering=0) as file:
        file.write(data)


def _is_element(step: StartStep) -> bool:
    """Say whether a step may share a submission: replicas come and go one by one, and do not."""
    return step.endpoint is None and "MOULIN_ARRAY_INDEX" in step.env


def _has_files(step: StartStep) -> bool:
    """Say whether anything but its specification is to lie ready for a step, or for its gang."""
    return bool(needs_data(step) or step.secrets or step.secret_files or len(step.nodes) > 1)


def _port_of(step: StartStep) -> int:
    """Return the gang's port: the control plane's choice, else one that follows from its name."""
    written = step.env.get("MASTER_PORT", "")
    if written.isdigit():
        return int(written)
    return _PORT_FIRST + zlib.crc32(step.attempt.encode()) % _PORT_COUNT

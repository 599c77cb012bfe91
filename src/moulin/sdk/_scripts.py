"""What takes several requests, as scripts without I/O: each step is a request, a pause or a result.

A script is a generator; the shells run it, plainly or with asyncio, and send back what a request
answered or throw what it raised.
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from moulin.domain.control import FetchStatus, ModelInfo, WorkloadPage
from moulin.domain.errors import DeadlineExceeded, NotFound, error_by_code
from moulin.domain.objects import FINAL_BATCH_STATES, BatchJob, BatchPage, StoredPage
from moulin.domain.observation import LogChunk
from moulin.domain.reasons import sentence
from moulin.domain.views import WorkloadView
from moulin.domain.workload import FINAL_WORKLOAD_STATES
from moulin.sdk import _requests as requests
from moulin.sdk._core import Call

BATCH_PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
PAUSES_S: Final = (0.05, 0.1, 0.2, 0.5)
LOG_BYTES: Final = 2**18


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds."""

    wait_s: float


@dataclass(frozen=True, slots=True)
class Give:
    """Hand one result to the caller."""

    value: Any


Step = Call[Any] | Pause | Give
Script = Generator[Step, Any, None]


def is_final(view: WorkloadView) -> bool:
    """Say whether a workload has its final state."""
    return view.state in FINAL_WORKLOAD_STATES


def is_ready(view: WorkloadView) -> bool:
    """Say whether some replica of an endpoint is ready."""
    return any(task.is_ready for unit in view.units for task in unit.tasks)


def wait_for_end(id: str, timeout_s: float) -> Script:
    """Give the workload's view once its state is final; raise `DeadlineExceeded` after the time."""
    pause = _Pauses(timeout_s, f"wait for {id} to end")
    while True:
        view: WorkloadView = yield requests.workload(id)
        if is_final(view):
            yield Give(view)
            return
        yield pause.next(f"it is {view.state}")


def wait_until_ready(id: str, timeout_s: float) -> Script:
    """Give the endpoint's view once a replica is ready or the endpoint has ended."""
    pause = _Pauses(timeout_s, f"wait for {id} to be ready")
    while True:
        view: WorkloadView = yield requests.workload(id)
        if is_ready(view) or is_final(view):
            yield Give(view)
            return
        why = "; ".join(sentence(reason) for reason in view.reasons)
        yield pause.next(f"it is {view.state}" + (f": {why}" if why else ""))


def follow_logs(id: str, unit: int, rank: int) -> Script:
    """Give the bytes of a task's log as they come, until no more can."""
    cursor = 0
    pause = _Pauses(0.0, f"read the log of {id}")
    while True:
        try:
            chunk: LogChunk | None = yield requests.logs(id, unit, rank, cursor, LOG_BYTES)
        except NotFound:
            # Either there is no such workload, which the next request says, or nothing started yet.
            view: WorkloadView = yield requests.workload(id)
            if is_final(view):
                return
            chunk = None
        if chunk is not None and chunk.data:
            cursor = chunk.next_cursor
            pause.restart()
            yield Give(chunk.data)
        elif chunk is not None and chunk.is_end:
            return
        else:
            yield pause.next("")


def every_workload(project: str, kind: str, states: tuple[str, ...], limit: int) -> Script:
    """Give workloads, newest first, page by page; at most `limit` (0: all)."""
    cursor = ""
    given = 0
    while True:
        size = min(limit - given, 100) if limit else 100
        page: WorkloadPage = yield requests.workloads(project, kind, states, None, (cursor, size))
        for view in page.items:
            yield Give(view)
        given += len(page.items)
        cursor = page.next
        if not cursor or (limit and given >= limit):
            return


def every_file(purpose: str, limit: int) -> Script:
    """Give files, newest first, page by page; at most `limit` (0: all)."""
    yield from _pages(lambda page: requests.files(purpose, page), limit)


def every_batch(limit: int) -> Script:
    """Give batches, newest first, page by page; at most `limit` (0: all)."""
    yield from _pages(requests.batches, limit)


def follow_batch(id: str, timeout_s: float) -> Script:
    """Give the batch each time it is further, the last time as it ended."""
    pause = _Pauses(timeout_s, f"wait for {id} to end", BATCH_PAUSES_S)
    seen: BatchJob | None = None
    while True:
        batch: BatchJob = yield requests.batch(id)
        if batch != seen:
            seen = batch
            pause.restart()
            yield Give(batch)
        if batch.state in FINAL_BATCH_STATES:
            return
        yield pause.next(f"{batch.completed + batch.failed} of {batch.lines} lines are done")


def _pages(call: Callable[[tuple[str, int]], Call[Any]], limit: int) -> Script:
    cursor, given = "", 0
    while True:
        size = min(limit - given, 100) if limit else 100
        page: StoredPage | BatchPage = yield call((cursor, size))
        for item in page.items:
            yield Give(item)
        given += len(page.items)
        cursor = page.next
        if not cursor or (limit and given >= limit):
            return


def fetch_model(name: str, variant: str, source: str, timeout_s: float) -> Script:
    """Give the fetch's status as it moves, the last one `ready`; raise what stopped it."""
    pause = _Pauses(timeout_s, f"fetch {name}")
    status: FetchStatus = yield requests.fetch_model(name, variant, source)
    while True:
        yield Give(status)
        if status.state == "ready":
            return
        if status.state == "failed":
            raise error_by_code(status.code)(status.message, hint=status.hint)
        yield pause.next(f"it is {status.stage or status.state}")
        info: ModelInfo = yield requests.model(name)
        status = info.fetch


class _Pauses:
    """Pauses that grow while nothing happens, up to a deadline (0: none)."""

    def __init__(
        self, timeout_s: float, attempted: str, pauses_s: Sequence[float] = PAUSES_S
    ) -> None:
        self._attempted = attempted
        self._pauses_s = pauses_s
        self._timeout_s = timeout_s
        self._deadline_s = time.monotonic() + timeout_s
        self._count = 0

    def restart(self) -> None:
        self._count = 0

    def next(self, seen: str) -> Pause:
        """Return the next pause; raises `DeadlineExceeded`."""
        if self._timeout_s and time.monotonic() >= self._deadline_s:
            raise DeadlineExceeded(
                f"{self._attempted}: after {self._timeout_s:g} s {seen}",
                hint="`moulin why` says what it waits for",
            )
        wait_s = self._pauses_s[min(self._count, len(self._pauses_s) - 1)]
        self._count += 1
        return Pause(wait_s)

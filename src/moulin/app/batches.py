"""Carries tenants' batches out: lines in, answers of the gateway out, files at the end.

It decides what is asked next and when a batch is over. A line goes to the gateway under its own
name, so that it is charged once however often a crash has it carried out again. Nothing here
prices, and nothing is kept in memory that the folder does not have.
"""

import asyncio
import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

from moulin.app.lines import Answer, Lines
from moulin.app.results import Results
from moulin.app.room import Room
from moulin.controlplane.commands import Command, DeleteObject, EndBatch
from moulin.controlplane.shelf import Shelf
from moulin.domain.errors import InUse, MoulinError, NotFound
from moulin.domain.ids import KeyId, OrganisationId, ProjectId, make_id
from moulin.domain.objects import (
    FILE_KEPT_S,
    FINAL_BATCH_STATES,
    BatchJob,
    BatchState,
    LineError,
    StoredKind,
    StoredObject,
)
from moulin.domain.principal import Principal, Role
from moulin.domain.units import NS_PER_S
from moulin.ports.clock import Clock, IdSource
from moulin.routing.batches import (
    EXPIRED,
    RETRIED_STATUSES,
    Line,
    answered,
    check_lines,
    line_id,
    not_answered,
    read_lines,
)

LOOK_S: Final = 5.0
SWEEP_S: Final = 60.0
ORPHAN_S: Final = 3600
TRIES_MAX: Final = 5
NO_ROOM: Final = 503
STOP_WAIT_S: Final = 5.0
DESK: Final = Principal(
    key=KeyId("batches"),
    name="batches",
    role=Role.OPERATOR,
    organisation=OrganisationId(""),
    project=ProjectId(""),
)
_LOG: Final = logging.getLogger(__name__)


class ObjectFiles(Protocol):
    """The folder of tenants' bytes."""

    def path(self, name: str) -> Path:
        """Return where an object's file is, or would be."""
        ...

    def put(self, name: str, pieces: Iterable[bytes]) -> tuple[int, str]:
        """Store an object whole; return its size in bytes and SHA-256."""
        ...

    def delete(self, name: str) -> None:
        """Delete an object's bytes."""
        ...

    def sweep(self, keep: frozenset[str], before_s: float) -> int:
        """Delete old files that are none of `keep`; return how many."""
        ...


@dataclass(slots=True)
class Running:
    """A batch under way."""

    batch: BatchJob
    results: Results
    lines: int = 0
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)


class BatchDesk:
    """All batches of a factory, in a thread and an event loop of their own."""

    def __init__(
        self,
        *,
        shelf: Callable[[], Shelf],
        files: ObjectFiles,
        call: Callable[[Command], "Future[Any]"],
        clock: Clock,
        ids: IdSource,
        lines: Lines,
    ) -> None:
        self._shelf = shelf
        self._files = files
        self._call = call
        self._clock = clock
        self._ids = ids
        self._lines = lines
        self._running: dict[str, Running] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken: asyncio.Event | None = None
        self._is_stopping = False
        self._swept_ns = 0
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)

    # -- from any thread ----------------------------------------------------------------------

    def start(self) -> None:
        """Carry on with whatever is open, and with what comes."""
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing more; what is under way is carried out again by the next process."""
        self._is_stopping = True
        self.wake()
        if self._thread.is_alive():
            self._thread.join(STOP_WAIT_S)

    def wake(self) -> None:
        """A batch was opened or cancelled."""
        loop, woken = self._loop, self._woken
        if loop is not None and woken is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(woken.set)

    def progress(self, batch: BatchJob) -> BatchJob:
        """Return the batch with its counts as of now."""
        running = self._running.get(batch.id)
        if running is None or batch.state in FINAL_BATCH_STATES:
            return batch
        done = running.results
        return replace(batch, lines=running.lines, completed=done.completed, failed=done.failed)

    # -- the loop -----------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._woken = asyncio.get_running_loop(), asyncio.Event()
        room = Room()
        tasks: dict[str, asyncio.Task[None]] = {}
        while not self._is_stopping:
            self._woken.clear()
            for name, batch in list(self._shelf().batches.items()):
                if batch.state not in FINAL_BATCH_STATES and name not in tasks:
                    tasks[name] = asyncio.ensure_future(self._carry_out(batch, room))
            tasks = {name: task for name, task in tasks.items() if not task.done()}
            await self._sweep()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._woken.wait()
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        self._lines.close()

    async def _carry_out(self, batch: BatchJob, room: Room) -> None:
        """Carry a batch out to its end; what stops it is tried again at the next look."""
        results = Results(self._results_path(batch.id))
        running = Running(batch, results)
        self._running[batch.id] = running
        try:
            running.lines, errors = await asyncio.to_thread(check_lines, batch, self._raw(batch))
            if not errors:
                await self._ask_all(running, room)
            if not self._is_stopping:
                await self._end(running, errors)
        except (MoulinError, OSError) as error:
            _LOG.warning("batch %s is tried again: %s", batch.id, error)
        finally:
            for task in tuple(running.tasks):
                task.cancel()
            await asyncio.gather(*running.tasks, return_exceptions=True)
            del self._running[batch.id]
            results.close()

    async def _ask_all(self, running: Running, room: Room) -> None:
        for line in read_lines(running.batch, self._raw(running.batch)):
            if line.index in running.results:
                continue
            await room.enter()
            if self._is_over(running.batch):
                await room.leave(is_welcome=True)
                break
            task = asyncio.ensure_future(self._ask(running, line, room))
            running.tasks.add(task)
            task.add_done_callback(running.tasks.discard)
        while running.tasks:
            await asyncio.wait(set(running.tasks))

    async def _ask(self, running: Running, line: Line, room: Room) -> None:
        """Have one line answered, from a place in the room; leaves the place."""
        batch, tries = running.batch, 0
        while True:
            answer = await self._answer(batch, line, room)
            is_lasting = answer is not None and answer.status not in RETRIED_STATUSES
            tries += answer is not None and answer.status != NO_ROOM
            if answer is not None and (is_lasting or tries >= TRIES_MAX):
                name = line_id(batch.id, line.index)
                text = answered(line, name, answer.status, answer.request, answer.body)
                running.results.add(line.index, text, is_good=answer.status == 200)
                return
            if self._is_over(batch):
                return
            await room.enter()

    async def _answer(self, batch: BatchJob, line: Line, room: Room) -> Answer | None:
        is_welcome = False
        try:
            name = line_id(batch.id, line.index)
            answer = await self._lines.ask(batch.key, name, batch.endpoint, line.body)
            is_welcome = answer is not None and answer.status not in RETRIED_STATUSES
            return answer
        finally:
            await room.leave(is_welcome=is_welcome)

    def _is_over(self, batch: BatchJob) -> bool:
        now = self._shelf().batches.get(batch.id)
        is_wanted = now is not None and now.state is BatchState.RUNNING
        return self._is_stopping or not is_wanted or self._is_late(batch)

    def _is_late(self, batch: BatchJob) -> bool:
        return self._clock.now_ns() >= batch.deadline_at_ns

    # -- ends ---------------------------------------------------------------------------------

    async def _end(self, running: Running, errors: Sequence[LineError]) -> None:
        batch, results = running.batch, running.results
        state = self._final_state(running, errors)
        good: Iterable[bytes] = results.lines(is_good=True)
        bad: Iterable[bytes] = results.lines(is_good=False)
        left = 0
        if state is BatchState.EXPIRED:
            left = running.lines - results.completed - results.failed
            bad = itertools.chain(bad, self._left_out(running))
        output = await self._write(batch, "output", good) if results.completed else None
        wrong = await self._write(batch, "error", bad) if results.failed or left else None
        ended = replace(
            batch,
            state=state,
            lines=running.lines,
            completed=results.completed,
            failed=results.failed + left,
            output_file=output.id if output else "",
            error_file=wrong.id if wrong else "",
            errors=tuple(errors),
        )
        files = tuple(each for each in (output, wrong) if each is not None)
        command = EndBatch(principal=DESK, batch=ended, files=files)
        await asyncio.wrap_future(self._call(command))
        results.drop()

    def _final_state(self, running: Running, errors: Sequence[LineError]) -> BatchState:
        if errors:
            return BatchState.FAILED
        if running.results.completed + running.results.failed >= running.lines:
            return BatchState.COMPLETED
        now = self._shelf().batches.get(running.batch.id)
        is_cancelled = now is not None and now.state is BatchState.CANCELLING
        return BatchState.CANCELLED if is_cancelled else BatchState.EXPIRED

    def _left_out(self, running: Running) -> Iterator[bytes]:
        """Yield what is said of the lines that the window did not reach."""
        said = "the batch's window ended before this line was carried out"
        for line in read_lines(running.batch, self._raw(running.batch)):
            if line.index not in running.results:
                name = line_id(running.batch.id, line.index)
                yield not_answered(line.custom_id, name, EXPIRED, said)

    async def _write(self, batch: BatchJob, what: str, lines: Iterable[bytes]) -> StoredObject:
        now_ns = self._clock.now_ns()
        name = make_id("file", now_ns, self._ids.entropy())
        size_bytes, sha256 = await asyncio.to_thread(self._files.put, name, lines)
        return StoredObject(
            id=name,
            kind=StoredKind.FILE,
            organisation=batch.organisation,
            project=batch.project,
            key=batch.key,
            name=f"{batch.id}_{what}.jsonl",
            purpose="batch_output",
            size_bytes=size_bytes,
            sha256=sha256,
            created_at_ns=now_ns,
            expires_at_ns=now_ns + FILE_KEPT_S * NS_PER_S,
        )

    # -- files --------------------------------------------------------------------------------

    def _raw(self, batch: BatchJob) -> Iterator[bytes]:
        """Yield the lines of the batch's input; raises `NotFound` for a file that is gone."""
        for name in batch.input_files:
            try:
                with self._files.path(name).open("rb") as file:
                    yield from file
            except FileNotFoundError:
                raise NotFound(f"read {name} of {batch.id}: it is gone") from None

    def _results_path(self, batch: str) -> Path:
        return self._files.path(batch).with_name(f".{batch}.results")

    async def _sweep(self) -> None:
        """Let what has expired go, and files that belong to nothing."""
        now_ns = self._clock.now_ns()
        if now_ns - self._swept_ns < SWEEP_S * NS_PER_S:
            return
        self._swept_ns = now_ns
        shelf = self._shelf()
        open_batches = [
            b for b in list(shelf.batches.values()) if b.state not in FINAL_BATCH_STATES
        ]
        used = {name for batch in open_batches for name in batch.input_files}
        for stored in list(shelf.stored.values()):
            if 0 < stored.expires_at_ns <= now_ns and stored.id not in used:
                await self._forget(stored.id)
        for batch in list(shelf.batches.values()):
            if 0 < batch.ended_at_ns <= now_ns - FILE_KEPT_S * NS_PER_S:
                await self._forget(batch.id)
        kept = {*shelf.stored, *(self._results_path(each.id).name for each in open_batches)}
        before_s = now_ns / NS_PER_S - ORPHAN_S
        await asyncio.to_thread(self._files.sweep, frozenset(kept), before_s)

    async def _forget(self, name: str) -> None:
        command = DeleteObject(principal=DESK, object=name, cause="expired")
        try:
            await asyncio.wrap_future(self._call(command))
        except InUse:
            return
        except MoulinError as error:
            _LOG.warning("%s stays for now: %s", name, error)
            return
        await asyncio.to_thread(self._files.delete, name)

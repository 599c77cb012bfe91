"""Carries answers from the control plane's thread to the event loop that waits for them.

A cycle answers hundreds of calls at once; the loop is woken once for all of them. A future of the
control plane is never cancelled from here: what was asked may still happen.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from moulin.controlplane.commands import Answer, Command
from moulin.domain.errors import DeadlineExceeded, Unavailable

T = TypeVar("T")


@dataclass(slots=True)
class _Waiting:
    future: "asyncio.Future[Any]"
    timer: asyncio.TimerHandle


class Bridge:
    """Awaitable calls to the control plane, for one event loop."""

    def __init__(self, call: Callable[[Command], "Future[Answer]"], wait_s: float) -> None:
        self._call = call
        self._wait_s = wait_s
        self._arrived: deque[tuple[_Waiting, Future[Answer]]] = deque()
        self._is_waking = False
        self._waiting: set[asyncio.Future[Any]] = set()

    async def ask(self, command: Command, answer: type[T]) -> T:
        """Return the control plane's answer, which is of type `answer`.

        Raises what the command raised; `DeadlineExceeded` when no cycle answered in time: the
        command may still be carried out.
        """
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Any] = loop.create_future()
        timer = loop.call_later(self._wait_s, _expire, found, self._wait_s)
        waiting = _Waiting(found, timer)
        self._call(command).add_done_callback(lambda done: self._arrive(loop, waiting, done))
        self._waiting.add(found)
        try:
            return cast("T", await found)
        finally:
            self._waiting.discard(found)
            timer.cancel()

    def close(self) -> None:
        """Tell everybody who waits that no answer will come; called on the event loop."""
        for found in tuple(self._waiting):
            if not found.done():
                found.set_exception(
                    Unavailable(
                        "wait for the control plane: it is stopping",
                        hint="it may still be carried out; repeat it with the same Idempotency-Key",
                    )
                )

    def _arrive(
        self, loop: asyncio.AbstractEventLoop, waiting: _Waiting, done: "Future[Answer]"
    ) -> None:
        """Take one answer, in the thread that gave it."""
        self._arrived.append((waiting, done))
        if not self._is_waking:
            self._is_waking = True
            loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        # Lowered first: what arrives during the loop below wakes again, or is taken by it.
        self._is_waking = False
        while self._arrived:
            waiting, done = self._arrived.popleft()
            if waiting.future.done():
                continue
            error = done.exception()
            if error is not None:
                waiting.future.set_exception(error)
            else:
                waiting.future.set_result(done.result())


def _expire(found: "asyncio.Future[Any]", wait_s: float) -> None:
    if not found.done():
        found.set_exception(
            DeadlineExceeded(
                f"wait for the control plane: no answer in {wait_s:g} s",
                hint="it may still be carried out; repeat it with the same Idempotency-Key",
            )
        )

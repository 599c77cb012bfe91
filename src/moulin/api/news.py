"""Tells waiting requests that the log has grown: one look for all of them, none while nobody waits.

It carries no events; who is told reads them from the store.
"""

import asyncio
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool


class News:
    """The log's last sequence, watched while somebody waits."""

    def __init__(self, last_sequence: Callable[[], int], period_s: float) -> None:
        self._last_sequence = last_sequence
        self._period_s = period_s
        self._latest = 0
        self._waiters: set[asyncio.Future[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        self.is_closed = False

    async def latest(self) -> int:
        """Return the last committed sequence now; whoever waits for it is told."""
        found = await run_in_threadpool(self._last_sequence)
        if found > self._latest:
            self._latest = found
            self._tell()
        return self._latest

    async def after(self, sequence: int, wait_s: float) -> int:
        """Return the last sequence as soon as it passes `sequence`, at the latest after `wait_s`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while self._latest <= sequence and not self.is_closed:
            left_s = deadline - loop.time()
            if left_s <= 0:
                break
            await self._next(left_s)
        return self._latest

    def close(self) -> None:
        """Let everybody who waits go, now and from now on."""
        self.is_closed = True
        self._tell()

    async def _next(self, wait_s: float) -> None:
        """Wait for the log to grow, or for `wait_s`."""
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(told)
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look())
        try:
            await asyncio.wait((told,), timeout=wait_s)
        finally:
            self._waiters.discard(told)

    async def _look(self) -> None:
        while self._waiters:
            await self.latest()
            await asyncio.sleep(self._period_s)

    def _tell(self) -> None:
        for told in tuple(self._waiters):
            if not told.done():
                told.set_result(None)

"""How many lines of batches may be under way: as many as find a free slot, learnt by trying.

The gateway refuses a line at once when only slots for people are free. Each refusal takes one off
and lets everybody wait a little longer, each answer adds one: batches fill what is idle and make
room within a line's time.
"""

import asyncio
from typing import Final

LIMIT_MAX: Final = 64
PAUSE_S: Final = 0.05
PAUSE_S_MAX: Final = 2.0


class Room:
    """Shared by all batches of one control process; first come, first served."""

    def __init__(self) -> None:
        self.limit = 1
        self.inside = 0
        self._pause_s = PAUSE_S
        self._not_before_s = 0.0
        self._changed = asyncio.Condition()

    async def enter(self) -> None:
        """Wait for a place."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.inside < self.limit)
            self.inside += 1
        wait_s = self._not_before_s - asyncio.get_running_loop().time()
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    async def leave(self, *, is_welcome: bool) -> None:
        """Give the place back; say whether there was room for what was done in it."""
        async with self._changed:
            self.inside -= 1
            if is_welcome:
                self.limit = min(LIMIT_MAX, self.limit + 1)
                self._pause_s = PAUSE_S
            else:
                self.limit = max(1, min(self.limit - 1, self.inside))
                self._not_before_s = asyncio.get_running_loop().time() + self._pause_s
                self._pause_s = min(PAUSE_S_MAX, 2 * self._pause_s)
            self._changed.notify_all()

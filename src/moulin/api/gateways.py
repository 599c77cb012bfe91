"""Knows which gateways are connected and whether they serve from what is true now.

It learns only from their own exchanges: a gateway that asks after a change and is told that its
snapshot is the present one has taken the change over. It decides nothing about them.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

CONNECTED_S: Final = 5.0
"""A gateway that runs is heard every two seconds at least (`moulin.gateway.control`)."""


@dataclass(slots=True)
class _Heard:
    at_s: float
    current_at_s: float = float("-inf")


class Gateways:
    """Gateways by name. Times are the event loop's."""

    def __init__(self) -> None:
        self._heard: dict[str, _Heard] = {}
        self._changed = asyncio.Condition()

    async def hear(self, gateway: str, asked_at_s: float, *, is_current: bool) -> None:
        """Note an exchange that the control plane was asked for at `asked_at_s`, and its outcome."""
        now_s = asyncio.get_running_loop().time()
        self._forget(now_s)
        heard = self._heard.setdefault(gateway, _Heard(now_s))
        heard.at_s = now_s
        if is_current:
            heard.current_at_s = max(heard.current_at_s, asked_at_s)
            async with self._changed:
                self._changed.notify_all()

    async def caught_up(self, since_s: float, wait_s: float) -> bool:
        """Return whether all that are connected took over what was true at `since_s`.

        Waits up to `wait_s` for those that did not yet; False as well when none is connected.
        """
        try:
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: not self._is_any_behind(since_s))
        except TimeoutError:
            return False
        return bool(self._heard)

    def _is_any_behind(self, since_s: float) -> bool:
        self._forget(asyncio.get_running_loop().time())
        return any(heard.current_at_s < since_s for heard in self._heard.values())

    def _forget(self, now_s: float) -> None:
        self._heard = {
            name: heard for name, heard in self._heard.items() if now_s - heard.at_s <= CONNECTED_S
        }

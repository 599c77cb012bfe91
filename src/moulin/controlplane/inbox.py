"""The door of the control plane: commands wait here until the next cycle takes them.

Any thread may call; one thread, the cycle's, takes. Nothing is decided here, and nothing is
answered before it is durable.
"""

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

from moulin.controlplane.commands import Answer, Command
from moulin.domain.errors import StoreUnavailable

WAITING_MAX: Final = 10_000


@dataclass(slots=True)
class Call:
    """One command with the caller's future."""

    command: Command
    future: "Future[Answer]" = field(default_factory=Future)


class Inbox:
    """A bounded queue of calls with one taker."""

    def __init__(self) -> None:
        self._calls: deque[Call] = deque()
        self._ready = threading.Condition()
        self._is_closed = False

    def call(self, command: Command) -> "Future[Answer]":
        """Queue a command and return the future of its answer.

        The future raises `StoreUnavailable` when the queue is full or closing, or whatever error
        the command meets.
        """
        waiting = Call(command)
        with self._ready:
            if self._is_closed or len(self._calls) >= WAITING_MAX:
                waiting.future.set_exception(
                    StoreUnavailable(
                        f"take a command while {len(self._calls)} wait",
                        hint="try again in a moment; nothing was recorded",
                    )
                )
                return waiting.future
            self._calls.append(waiting)
            self._ready.notify()
        return waiting.future

    def take(self, wait_s: float, calls_max: int) -> list[Call]:
        """Return waiting calls, oldest first, after at most `wait_s` of waiting for the first."""
        with self._ready:
            if not self._calls and not self._is_closed:
                self._ready.wait(wait_s)
            return [self._calls.popleft() for _ in range(min(calls_max, len(self._calls)))]

    def close(self) -> None:
        """Refuse further calls, and those that nobody took: no cycle will."""
        with self._ready:
            self._is_closed = True
            left = list(self._calls)
            self._calls.clear()
            self._ready.notify()
        for call in left:
            if call.future.set_running_or_notify_cancel():
                call.future.set_exception(
                    StoreUnavailable(
                        "take a command: the control plane stops",
                        hint="try again when it is back; nothing was recorded",
                    )
                )

"""Passing a stream of server-sent events on while reading the one event that holds the usage.

It decides which bytes go to the client: all of them, except the usage event a client did not ask
for and, held back for the end, `[DONE]`. Events are not parsed unless they can hold `"usage"`:
inside a JSON string the quotes of that word are escaped, so a model's text cannot imitate it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

DONE: Final = b"data: [DONE]\n\n"
_DONE_MARK: Final = b"data: [DONE]"
_USAGE: Final = b'"usage"'
_EVENT_BYTES_MAX: Final = 1 << 20


Added = Callable[[Mapping[str, Any]], Mapping[str, object]]


class EventTooLong(Exception):
    """One event of a replica is longer than a mebibyte."""


class EventFilter:
    """State of one stream. `usage` is the last usage object seen, `events` what was delivered.

    `added` returns what a shown usage says besides.
    """

    __slots__ = ("_added", "_partial", "_shows_usage", "events", "is_done", "usage")

    def __init__(self, *, shows_usage: bool, added: Added | None = None) -> None:
        self._partial = b""
        self._shows_usage = shows_usage
        self._added = added
        self.usage: dict[str, Any] | None = None
        self.events = 0
        self.is_done = False

    def pass_on(self, data: bytes) -> bytes:
        """Return the bytes for the client: whole events only, so nothing is half inspected.

        Raises `EventTooLong` when an event does not end.
        """
        if self._partial:
            data = self._partial + data
        end = data.rfind(b"\n\n") + 2
        if b"\r\n\r\n" in data:
            end = max(end, data.rfind(b"\r\n\r\n") + 4)
        elif end == 1:
            end = 0
        if end == len(data):
            self._partial = b""
        else:
            self._partial = data[end:]
            data = data[:end]
            if len(self._partial) > _EVENT_BYTES_MAX:
                raise EventTooLong
        if _USAGE in data or _DONE_MARK in data:
            return self._inspect(data)
        self.events += data.count(b"data:")
        return data

    def _inspect(self, data: bytes) -> bytes:
        kept = []
        for event in data.replace(b"\r\n", b"\n").split(b"\n\n"):
            if event.startswith(_DONE_MARK):
                self.is_done = True
            elif event:
                shown = self._shown(event) if _USAGE in event else event
                if shown:
                    kept.append(shown + b"\n\n")
                    self.events += event.startswith(b"data:")
        return b"".join(kept)

    def _shown(self, event: bytes) -> bytes:
        """Return what the client gets of an event that may hold a usage, nothing if not asked for."""
        try:
            chunk = orjson.loads(event.removeprefix(b"data:"))
        except orjson.JSONDecodeError:
            return event
        usage = chunk.get("usage") if isinstance(chunk, dict) else None
        if not isinstance(usage, dict):
            return event
        self.usage = usage
        if self._added is not None:
            return b"data: " + orjson.dumps({**chunk, "usage": {**usage, **self._added(usage)}})
        return event if self._shows_usage or chunk.get("choices") else b""

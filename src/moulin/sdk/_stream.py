"""Reads the event stream: lines of server-sent events in, events of the log out."""

import json
from collections.abc import Iterator
from typing import Any

from moulin.domain.errors import InvalidSpec, StoreCorrupt
from moulin.domain.event_wire import decode_event
from moulin.domain.events import Event
from moulin.domain.units import parse_time


class EventReader:
    """Collects the lines of a stream into events; `after` is the last sequence it gave.

    Comments (heartbeats) and fields it does not know are passed over, as the format asks for.
    """

    def __init__(self, after: int) -> None:
        self.after = after
        self._data: list[str] = []

    def feed(self, line: str) -> Iterator[Event]:
        """Take one line without its end and yield the event it completes, if any."""
        if line:
            name, _, value = line.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            return
        if self._data:
            found = event_of(json.loads("\n".join(self._data)))
            self._data.clear()
            self.after = found.sequence
            yield found


def event_of(data: dict[str, Any]) -> Event:
    """Return the event of one message; raises `InvalidSpec` for what this version cannot read."""
    envelope = {name: value for name, value in data.items() if name != "at"}
    try:
        return decode_event({**envelope, "at_ns": str(parse_time(data["at"]))})
    except (StoreCorrupt, KeyError) as error:
        raise InvalidSpec(
            f"read event {data.get('sequence')} of kind {data.get('kind')!r} from the stream",
            hint="the server may be newer: update this client",
        ) from error

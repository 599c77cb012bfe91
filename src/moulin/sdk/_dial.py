"""How both shells begin a session inside a task: the address, the words, and errors as the server's."""

import json
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from moulin.domain.addresses import is_loopback
from moulin.domain.errors import Conflict, MoulinError, Unavailable
from moulin.domain.session import EntryWanted
from moulin.sdk._core import PREFIX, Answer, error_of
from moulin.sdk.credentials import Credentials, trust_of

OPEN_S: Final = 30.0


def address(credentials: Credentials, id: str, unit: int, rank: int) -> str:
    """Return the address of a task's door."""
    url = "ws" + credentials.control_url.removeprefix("http")
    return f"{url}{PREFIX}/workloads/{id}/enter?{urlencode({'unit': unit, 'rank': rank})}"


def options(credentials: Credentials) -> dict[str, Any]:
    """Return the keyword arguments of either client's `connect`."""
    url = credentials.control_url
    trust = trust_of(credentials, url)
    found: dict[str, Any] = {
        "additional_headers": {"authorization": f"Bearer {credentials.api_key}"},
        "open_timeout": OPEN_S,
        "max_size": None,
        "compression": None,
    }
    if trust is not True:
        found["ssl"] = trust
    if is_loopback(urlsplit(url).hostname or ""):
        found["proxy"] = None  # one of the environment cannot reach this machine's own loopback
    return found


def first_message(wanted: EntryWanted, size: tuple[int, int] | None) -> str:
    """Return what a client says first; `size` is rows and columns."""
    said: dict[str, Any] = {
        "command": list(wanted.command),
        "terminal": wanted.terminal,
        "port": wanted.port,
    }
    if size is not None:
        said["resize"] = list(size)
    return json.dumps(said)


def resize_message(rows: int, columns: int) -> str:
    """Return what tells of a terminal's new size."""
    return json.dumps({"resize": [rows, columns]})


def end_message() -> str:
    """Return what says that no more input comes."""
    return json.dumps({"eof": True})


def read_message(text: str) -> int | None:
    """Return the status of a program that has ended, None for other news; raises what the server did."""
    said = json.loads(text)
    if "error" in said:
        problem = said["error"]
        raise refused(int(problem["status"]), json.dumps(problem).encode())
    status = said.get("exit")
    return status if isinstance(status, int) else None


def refused(status: int, body: bytes | None) -> MoulinError:
    """Return the error of a server that did not open the door."""
    return error_of(Answer(status=status, headers={}, body=body or b""))


def cut(words: str) -> MoulinError:
    """Return the error of a session that ended without a status."""
    return Unavailable(
        f"stay in the task: the session was cut ({words or 'no reason given'})",
        hint="the task goes on; enter it again",
    )


def no_way(words: bytes) -> MoulinError:
    """Return the error of a port that is not reached, in the far end's words."""
    said = words.decode(errors="replace").strip().removeprefix("moulin: ")
    return Conflict(
        f"reach a port of the task: {said or 'it let nobody in'}",
        hint="the program must listen there already; `moulin logs` shows what it says",
    )


def command_of(command: Sequence[str]) -> tuple[str, ...]:
    """Return the words of a command; a text alone would be taken apart into letters."""
    return (command,) if isinstance(command, str) else tuple(command)

"""How commands speak: data on stdout, messages on stderr, one JSON document where it is asked for.

It decides words, columns and rounding for people; programs get exact values in the public wire
form. No meaning is carried by colour alone, and NO_COLOR is respected.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console

    from moulin.domain.errors import MoulinError
    from moulin.domain.reasons import Reason
    from moulin.domain.views import WorkloadView

PIPE_COLUMNS: Final = 400
DETACHED_STATUS: Final = 130


def console(*, is_error: bool = False) -> "Console":
    """Return a console on stdout or stderr; wide where nobody looks, so that nothing is cut."""
    from rich.console import Console

    stream = sys.stderr if is_error else sys.stdout
    return Console(
        file=stream,
        highlight=False,
        markup=False,
        emoji=False,
        width=None if stream.isatty() else PIPE_COLUMNS,
    )


def answer(value: object, *, is_json: bool, show: Callable[[], None]) -> None:
    """Write the one answer of a command: a JSON document, or what `show` shows."""
    if is_json:
        write_json(value)
    else:
        show()


def write_json(value: object) -> None:
    """Write one JSON document on stdout; values of the domain in their public form."""
    sys.stdout.write(f"{json.dumps(_public(value), ensure_ascii=False)}\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Write a message for people on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def write(text: str) -> None:
    """Write a line of data on stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def say_error(error: "MoulinError", *, is_json: bool) -> None:
    """Write `error: …` and `hint: …` on stderr, and the same as JSON on stdout where asked for."""
    say(f"error: {error.message}")
    if error.hint:
        say(f"\nhint: {error.hint}")
    if is_json:
        problem = {"code": error.code, "message": error.message, "hint": error.hint}
        write_json({"error": {**problem, "details": dict(error.details)}})


def write_bytes(piece: bytes, *, is_error: bool = False) -> None:
    """Write what a task wrote, untouched, on stdout (or stderr) at once."""
    stream = sys.stderr if is_error else sys.stdout
    stream.buffer.write(piece)
    stream.flush()


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str = "nothing") -> None:
    """Show rows in columns; a head that ends with `>` is set flush right."""
    from rich import box
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in heads:
        drawn.add_column(
            head.removesuffix(">"),
            justify="right" if head.endswith(">") else "left",
            overflow="fold",
        )
    count = 0
    for row in rows:
        drawn.add_row(*row)
        count += 1
    if count:
        console().print(drawn)
    else:
        say(empty)


def sentences(reasons: "Sequence[Reason]") -> list[str]:
    """Return reasons in words."""
    from moulin.domain.reasons import sentence

    return [sentence(reason) for reason in reasons]


def ran(view: "WorkloadView") -> str:
    """Return how long a workload has run, a dash before it does."""
    if not view.started_at_ns:
        return "-"
    import time

    from moulin.domain.words import duration

    return duration((view.ended_at_ns or time.time_ns()) - view.started_at_ns)


def _public(value: object) -> Any:
    from moulin.domain.wire import encode_public

    if isinstance(value, dict):
        return {name: _public(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    return encode_public(value)

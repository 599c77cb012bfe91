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
MICRO_NEUR: Final = 1_000
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


def euros(amount_neur: int) -> str:
    """Return an amount for people, to the micro-euro; smaller amounts are shown exactly."""
    from moulin.domain.units import divide_round_half_even, format_euros

    if 0 < abs(amount_neur) < MICRO_NEUR:
        return f"{format_euros(amount_neur)} €"
    return f"{format_euros(divide_round_half_even(amount_neur, MICRO_NEUR) * MICRO_NEUR)} €"


def energy(amount_mj: int) -> str:
    """Return energy in the unit that people would choose.

    >>> energy(1500), energy(7_200_000_000)
    ('1.5 J', '2 kWh')
    """
    for unit, size in (("kWh", 3_600_000_000), ("kJ", 1_000_000), ("J", 1_000)):
        if amount_mj >= size:
            return f"{amount_mj / size:.4g} {unit}"
    return f"{amount_mj} mJ"


def carbon(amount_ng: int) -> str:
    """Return a mass of CO2e in the unit that people would choose."""
    for unit, size in (("kg", 10**12), ("g", 10**9), ("mg", 10**6), ("µg", 10**3)):
        if amount_ng >= size:
            return f"{amount_ng / size:.4g} {unit} CO2e"
    return f"{amount_ng} ng CO2e"


def memory(amount_bytes: int) -> str:
    """Return bytes in decimal units.

    >>> memory(64_000_000_000), memory(1500)
    ('64 GB', '1.5 kB')
    """
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if amount_bytes >= size:
            return f"{amount_bytes / size:.4g} {unit}"
    return f"{amount_bytes} B"


def cpus(amount_milli: int) -> str:
    """Return milli-CPUs as CPUs."""
    return f"{amount_milli / 1000:g}"


def duration(amount_ns: int) -> str:
    """Return a span as people say it.

    >>> duration(3_200_000_000), duration(3_725_000_000_000)
    ('3.2s', '1h2m5s')
    """
    seconds = amount_ns / 1_000_000_000
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"


def moment(at_ns: int) -> str:
    """Return a time in UTC to the second, a dash for one that has not come."""
    from moulin.domain.units import format_time

    return f"{format_time(at_ns)[:19].replace('T', ' ')}Z" if at_ns else "-"


def sentences(reasons: "Sequence[Reason]") -> list[str]:
    """Return reasons in words."""
    from moulin.domain.reasons import sentence

    return [sentence(reason) for reason in reasons]


def ran(view: "WorkloadView") -> str:
    """Return how long a workload has run, a dash before it does."""
    if not view.started_at_ns:
        return "-"
    import time

    return duration((view.ended_at_ns or time.time_ns()) - view.started_at_ns)


def _public(value: object) -> Any:
    from moulin.domain.wire import encode_public

    if isinstance(value, dict):
        return {name: _public(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    return encode_public(value)

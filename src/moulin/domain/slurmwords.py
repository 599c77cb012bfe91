"""Slurm's ways of writing things: times, memory and lists of hosts; turns texts into values only."""

import re
from typing import Final

from moulin.domain.errors import InvalidSpec

HOSTS_MAX: Final = 200_000
_UNLIMITED: Final = ("", "UNLIMITED", "INFINITE", "NONE", "N/A", "NOT_SET", "(NULL)")
_TIME: Final = re.compile(r"(?:([0-9]{1,6})-)?([0-9]{1,9})(?::([0-9]{1,4}))?(?::([0-9]{1,4}))?")
_MEMORY: Final = re.compile(r"([0-9]{1,12})\s*([KMGT]?)B?(?:c|n)?", re.IGNORECASE)
_SCALE: Final = {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_RANGES: Final = re.compile(r"\[([0-9,\s-]+)\]")


def parse_slurm_time_s(written: str) -> int:
    """Read a time limit in any of Slurm's forms; 0 is no limit.

    `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours`, `days-hours:minutes` and
    `days-hours:minutes:seconds`. Raises `InvalidSpec` for another form.

    >>> [parse_slurm_time_s(t) for t in ("90", "1:30", "2:00:00", "1-12", "1-0:30", "UNLIMITED")]
    [5400, 90, 7200, 129600, 88200, 0]
    """
    text = written.strip()
    if text.upper() in _UNLIMITED:
        return 0
    found = _TIME.fullmatch(text)
    if found is None:
        raise InvalidSpec(
            f"read {text[:60]!r} as a time", hint="write minutes, H:MM:SS or D-HH:MM:SS"
        )
    days, *parts = (int(part) if part is not None else None for part in found.groups())
    if days is not None or parts[2] is not None:
        hours, minutes, seconds = (part or 0 for part in parts)
    else:
        hours, minutes, seconds = 0, parts[0] or 0, parts[1] or 0
    return (days or 0) * 86_400 + hours * 3600 + minutes * 60 + seconds


def parse_slurm_memory_bytes(written: str) -> int:
    """Read an amount of memory; a bare number is in MiB, as Slurm takes it.

    Raises `InvalidSpec` for another form.

    >>> parse_slurm_memory_bytes("4G"), parse_slurm_memory_bytes("500")
    (4294967296, 524288000)
    """
    found = _MEMORY.fullmatch(written.strip())
    if found is None:
        raise InvalidSpec(f"read {written[:60]!r} as memory", hint="write for example 4000M or 64G")
    return int(found[1]) * _SCALE[found[2].upper()]


def expand_hosts(written: str) -> tuple[str, ...]:
    """Return the names in a list of hosts, in its order.

    Raises `InvalidSpec` for a list that is broken, or longer than any cluster.

    >>> expand_hosts("n[1-2,09-10]-ib,login")
    ('n1-ib', 'n2-ib', 'n09-ib', 'n10-ib', 'login')
    """
    names: list[str] = []
    for part in re.split(r",(?![^\[]*\])", written.strip()):
        if part and part != "(null)":
            names.extend(_expand(part))
        if len(names) > HOSTS_MAX:
            raise InvalidSpec(f"read a list of more than {HOSTS_MAX} hosts", hint="shorten it")
    return tuple(names)


def _expand(part: str) -> list[str]:
    found = _RANGES.search(part)
    if found is None:
        return [part]
    head, tail = part[: found.start()], part[found.end() :]
    return [f"{head}{value}{rest}" for value in _values(part, found[1]) for rest in _expand(tail)]


def _values(part: str, ranges: str) -> list[str]:
    values: list[str] = []
    for piece in ranges.split(","):
        first, _, last = piece.strip().partition("-")
        end = last or first
        if not first.isdigit() or not end.isdigit() or int(end) - int(first) > HOSTS_MAX:
            raise InvalidSpec(f"read {part[:60]!r} as hosts", hint="write for example n[1-4,7]")
        values.extend(str(value).zfill(len(first)) for value in range(int(first), int(end) + 1))
    return values

"""What went to replicas within the last minute, so that a rate outlives the process that counts it.

It reads the journals that earlier processes left and keeps a file of what it found, because journals
go when the leader has them. It decides nothing: `moulin.gateway.quotas` counts.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import orjson

from moulin.domain.units import NS_PER_S
from moulin.gateway.journal import JournalReader, predecessors
from moulin.routing.rates import SLOTS

FILE: Final = "rates"
READ_BYTES: Final = 1024 * 1024
_KEPT_NS: Final = SLOTS * NS_PER_S
_LOG: Final = logging.getLogger(__name__)


class Counted(NamedTuple):
    """Requests that began at one time with one key, and the tokens they used or may still use."""

    at_ns: int
    organisation: str
    project: str
    key: str
    requests: int
    tokens: int


class Recalled(NamedTuple):
    """What was counted by processes up to an epoch."""

    through_epoch: int
    counts: tuple[Counted, ...]


def recall(folder: Path, now_ns: int) -> Recalled:
    """Return what began within the last minute, and keep it for the next process.

    Every journal in the folder must be finished. Damage in a file hides what is behind it. A disk
    that takes no file leaves the counts of this process alone: nothing new begins on it either.
    """
    since_ns = now_ns - _KEPT_NS
    epoch, kept = _read(folder / FILE)
    journals = [each for each in predecessors(folder) if each.epoch > epoch]
    found = [each for each in kept if each.at_ns > since_ns]
    for journal in journals:
        found += _begun(journal, since_ns)
    recalled = Recalled(max([epoch, *(each.epoch for each in journals)]), _summed(found))
    try:
        _keep(folder / FILE, recalled)
    except OSError as cause:
        _LOG.warning("the last minute's rates cannot be kept: %s", cause.strerror)
    return recalled


def _begun(journal: JournalReader, since_ns: int) -> Iterator[Counted]:
    """Yield the requests of one journal with what they used, or hold where they have no end."""
    begun: dict[str, Counted] = {}
    for line in _tail(journal.path, since_ns):
        request = str(line.get("request"))
        tokens = int(line.get("tokens_input", 0)) + int(line.get("tokens_output", 0))
        known = begun.get(request)
        if line.get("kind") == "end" and known is not None:
            begun[request] = known._replace(tokens=min(known.tokens, tokens))
        elif line.get("kind") == "begin" and known is None:
            begun[request] = Counted(
                at_ns=_at_ns(line),
                organisation=str(line.get("organisation", "")),
                project=str(line.get("project", "")),
                key=str(line.get("key", "")),
                requests=1,
                tokens=tokens,
            )
    yield from begun.values()


def _tail(path: Path, since_ns: int) -> Iterator[Mapping[str, Any]]:
    """Yield a journal's whole lines from a time on, reading no more of the file than about that."""
    with path.open("rb") as file:
        file.seek(_place(file, since_ns))
        yield from (line for line in _lines(file) if _at_ns(line) > since_ns)


def _place(file: BinaryIO, since_ns: int) -> int:
    """Return where a line begins before which all is older, found by one line of each block."""
    start = file.seek(0, os.SEEK_END)
    while start > 0:
        start = max(0, start - READ_BYTES)
        file.seek(start)
        if start:
            file.readline()  # the rest of a line that began before
        place = file.tell()
        first = next(_lines(file), None)
        if first is not None and _at_ns(first) <= since_ns:
            return place
    return 0


def _lines(file: Iterable[bytes]) -> Iterator[Mapping[str, Any]]:
    """Yield lines until one is not whole: what follows it was never answered for."""
    for line in file:
        try:
            found = orjson.loads(line)
            int(found["at_ns"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return
        if not line.endswith(b"\n"):
            return
        yield found


def _at_ns(line: Mapping[str, Any]) -> int:
    return int(line["at_ns"])


def _summed(found: Iterable[Counted]) -> tuple[Counted, ...]:
    """Return one count for all that began within one second with one key, at the latest of them."""
    sums: dict[tuple[int, str, str, str], Counted] = {}
    for each in found:
        name = (each.at_ns // NS_PER_S, each.organisation, each.project, each.key)
        known = sums.get(name)
        if known is not None:
            each = each._replace(  # noqa: PLW2901 - the same count, grown
                at_ns=max(each.at_ns, known.at_ns),
                requests=each.requests + known.requests,
                tokens=each.tokens + known.tokens,
            )
        sums[name] = each
    return tuple(sums[name] for name in sorted(sums))


def _read(path: Path) -> Recalled:
    """Return what the file knows; nothing of a damaged one."""
    try:
        found = orjson.loads(path.read_bytes())
        counts = tuple(Counted(*each) for each in found["counts"])
        return Recalled(int(found["through_epoch"]), counts)
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return Recalled(0, ())


def _keep(path: Path, recalled: Recalled) -> None:
    told = {"through_epoch": recalled.through_epoch, "counts": [*map(list, recalled.counts)]}
    beside = path.with_suffix(".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(orjson.dumps(told))
    beside.replace(path)

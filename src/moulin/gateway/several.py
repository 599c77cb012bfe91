"""One request for several completions: an exchange for each, one answer to the client.

It decides how answers become choices of one, and what happens when one of them fails: the others
are cancelled and the client is told of the failure. It never looks at money: every exchange holds,
journals and settles its own, so each completion is counted and charged, and has a receipt.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, Protocol

import orjson

from moulin.domain.errors import EngineUnavailable
from moulin.gateway import answers
from moulin.gateway.exchange import Client
from moulin.gateway.sse import DONE
from moulin.routing.figures import sum_figures

_HEAD_END: Final = b"\r\n\r\n"
_RECEIPT: Final = "x-moulin-receipt"
_SUMMED: Final = frozenset({"x-moulin-cost-eur", "x-moulin-energy-j", "x-moulin-co2e-g"})
_WORST: Final = frozenset({"x-moulin-energy-class", "x-moulin-energy-uncertainty"})
_OWN: Final = frozenset({"content-type", "content-length"})


class Step(Protocol):
    """What is asked of the exchanges."""

    def start(self) -> None:
        """Begin."""
        ...

    def cancel(self) -> None:
        """End: the client went away."""
        ...

    def pause(self) -> None:
        """Stop reading from the replica."""
        ...

    def resume(self) -> None:
        """Read on."""
        ...


class Several:
    """See the module; to the client's connection it is one exchange."""

    __slots__ = (
        "_answers", "_client", "_exchanges", "_has_begun", "_id", "_is_over", "_left", "_receipts",
        "_running", "_shows_usage", "_usages",
    )  # fmt: skip

    def __init__(self, client: Client, identifiers: list[bytes], *, shows_usage: bool) -> None:
        self._shows_usage = shows_usage
        self._client = client
        self._exchanges: list[Step] = []
        self._running: list[Step] = []
        self._answers: dict[int, bytes] = {}
        self._usages: list[dict[str, Any]] = []
        self._receipts = ", ".join(f"rcp_req_{each.decode()}" for each in identifiers)
        self._left = len(identifiers)
        self._id: Any = None
        self._has_begun = False
        self._is_over = False

    def add(self, exchange: Step) -> None:
        """Take an exchange whose client is a part of this one."""
        self._exchanges.append(exchange)

    # -- what the client's connection asks ------------------------------------------------------

    def start(self) -> None:
        """Begin all of them; each holds its own upper bound."""
        for exchange in self._exchanges:
            if self._is_over:
                break
            self._running.append(exchange)
            exchange.start()

    def cancel(self) -> None:
        """Free all replicas: the client went away."""
        self._is_over = True
        self._cancel_others()

    def pause(self) -> None:
        """Stop reading from all replicas: the client is slow."""
        for exchange in self._running:
            exchange.pause()

    def resume(self) -> None:
        """Read on."""
        for exchange in self._running:
            exchange.resume()

    # -- what the parts tell --------------------------------------------------------------------

    def finished(self, number: int, answer: bytes) -> None:
        """Keep a complete answer; give all of them when the last is there, or the first failure."""
        if self._is_over:
            return
        if not answer.startswith(b"HTTP/1.1 200 "):
            self._fail(answer)
            return
        self._answers[number] = answer
        self._left -= 1
        if not self._left:
            self._is_over = True
            self._client.finish(_joined([self._answers[each] for each in sorted(self._answers)]))

    def began(self, headers: bytes) -> None:
        """Send the head of the stream once, with the receipts of all its completions."""
        if self._is_over or self._has_begun:
            return
        self._has_begun = True
        lines = headers.split(b"\r\n")
        receipt = f"{_RECEIPT}: {self._receipts}".encode()
        told = [receipt if line.startswith(_RECEIPT.encode()) else line for line in lines]
        self._client.begin_stream(b"\r\n".join(told))

    def streamed(self, number: int, data: bytes) -> None:
        """Pass events on under the number of their choice; usages are kept for the end."""
        if self._is_over:
            return
        passed = b"".join(self._renumbered(number, event) for event in data.split(b"\n\n") if event)
        if passed:
            self._client.send_piece(passed)

    def ended(self, number: int, data: bytes, *, is_whole: bool) -> None:
        """End with the last of them, or with the first that was cut."""
        if self._is_over:
            return
        if not is_whole:
            self._is_over = True
            self._client.end_stream(data, is_whole=False)
            self._cancel_others()
            return
        self._left -= 1
        last = b"".join(
            self._renumbered(number, event)
            for event in data.removesuffix(DONE).split(b"\n\n")
            if event
        )
        if self._left:
            if last:
                self._client.send_piece(last)
            return
        self._is_over = True
        self._client.end_stream(self._usage() + last + DONE, is_whole=True)

    # -- internal -------------------------------------------------------------------------------

    def _fail(self, answer: bytes) -> None:
        self._is_over = True
        if not self._has_begun:
            self._client.finish(answer)
        else:
            _, _, body = answer.partition(_HEAD_END)
            self._client.end_stream(b"data: " + body + b"\n\n", is_whole=False)
        self._cancel_others()

    def _cancel_others(self) -> None:
        for exchange in self._running:
            exchange.cancel()

    def _renumbered(self, number: int, event: bytes) -> bytes:
        chunk = _loads(event.removeprefix(b"data:")) if event.startswith(b"data:") else None
        if type(chunk) is not dict:
            return event + b"\n\n"
        if self._id is None:
            self._id = chunk.get("id")
        chunk["id"] = self._id
        choices = chunk.get("choices")
        if type(chunk.get("usage")) is dict:
            self._usages.append({**chunk, "choices": []})
            del chunk["usage"]
            if not choices:
                return b""
        for choice in choices or ():
            choice["index"] = number
        return b"data: " + orjson.dumps(chunk) + b"\n\n"

    def _usage(self) -> bytes:
        if not self._usages or not self._shows_usage:
            return b""
        total = _sum([chunk["usage"] for chunk in self._usages])
        return b"data: " + orjson.dumps({**self._usages[0], "usage": total}) + b"\n\n"


class Part:
    """The client of one exchange: it tells `Several` what comes, under its number."""

    __slots__ = ("_number", "_several")

    def __init__(self, several: Several, number: int) -> None:
        self._several = several
        self._number = number

    def finish(self, answer: bytes) -> None:
        """Tell of a complete answer."""
        self._several.finished(self._number, answer)

    def begin_stream(self, headers: bytes) -> None:
        """Tell of the head of a stream."""
        self._several.began(headers)

    def send_piece(self, data: bytes) -> None:
        """Tell of a piece of a stream."""
        self._several.streamed(self._number, data)

    def end_stream(self, data: bytes, *, is_whole: bool) -> None:
        """Tell of the end of a stream."""
        self._several.ended(self._number, data, is_whole=is_whole)


def _joined(parts: list[bytes]) -> bytes:
    """Return one complete answer out of several."""
    heads: list[dict[str, str]] = []
    bodies: list[dict[str, Any]] = []
    for part in parts:
        head, _, body = part.partition(_HEAD_END)
        lines = (line.decode("latin-1").partition(": ") for line in head.split(b"\r\n")[1:])
        heads.append({name: value for name, _, value in lines})
        answer = _loads(body)
        if type(answer) is not dict or not answer.get("choices"):
            return answers.failure(EngineUnavailable("join the completions: one is not readable"))
        bodies.append(answer)
    whole = bodies[0]
    whole["choices"] = [
        {**body["choices"][0], "index": number} for number, body in enumerate(bodies)
    ]
    if all(type(body.get("usage")) is dict for body in bodies):
        whole["usage"] = _sum([body["usage"] for body in bodies])
    return answers.whole(200, orjson.dumps(whole), headers=_headers(heads))


def _headers(heads: list[dict[str, str]]) -> bytes:
    lines = []
    for name, value in heads[0].items():
        if name in _OWN:
            continue
        values = [head.get(name, "0") for head in heads]
        if name == _RECEIPT:
            text = ", ".join(values)
        elif name in _WORST:
            # Of the classes A to E, and `estimated`, the last; of shares, the largest.
            text = max(values, key=lambda value: (len(value), value))
        else:
            text = f"{sum(map(Decimal, values)):f}" if name in _SUMMED else value
        lines.append(f"{name}: {text}\r\n")
    return "".join(lines).encode("latin-1")


def _sum(usages: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the usages as one; what is neither a count nor a figure is left out."""
    names = [name for name, value in usages[0].items() if type(value) is int]
    counts = {name: sum(usage.get(name, 0) for usage in usages) for name in names}
    return {**counts, **(sum_figures(usages) if "carbon" in usages[0] else {})}


def _loads(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None

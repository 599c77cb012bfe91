"""Calls found in the words of an answer while they come.

It decides, piece by piece, which words a client may see at once and which are held back because
they may be a call: JSON at the beginning, a fenced block that begins with JSON, or `<tool_call>`.
What turns out to be no call of a known tool with arguments that fit goes on as the words it was.
Where a call is forced, everything is held until the end.
"""

import re
from enum import Enum, auto
from typing import Final

from moulin.routing.tools import Call, Offer, bare_values

_FENCE: Final = "```"
_OPEN: Final = "<tool_call>"
_CLOSE: Final = "</tool_call>"
_UNDECIDED_CHARACTERS_MAX: Final = 64
"""White space, or a fence's first line, longer than this begins no call."""
_BARE: Final = re.compile(r"\s*(?:\{\s*\"|\[\s*\{)")
_MAYBE_BARE: Final = re.compile(r"\s*[\[{]?\s*")


class _Mode(Enum):
    TEXT = auto()
    CODE = auto()
    """Inside a fenced block that is no call."""
    BLOCK = auto()
    """Inside a block that may be a call, until its end."""
    REST = auto()
    """In what may be a call, to the end of the answer."""


class CallReader:
    """State of one answer: `calls` found so far. What `read` and `end` return is for the client.

    Cost: each word is looked at a bounded number of times, however long the answer is.
    """

    __slots__ = (
        "_closing",
        "_has_shown",
        "_held",
        "_is_behind_call",
        "_mode",
        "_offer",
        "_opening",
        "_parts",
        "calls",
    )

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self._mode = _Mode.REST if offer.is_forced else _Mode.TEXT
        self._held = ""
        self._parts: list[str] = []
        self._opening = self._closing = ""
        self._has_shown = False
        self._is_behind_call = False
        self.calls: list[Call] = []

    def read(self, text: str) -> str:
        """Take the next words and return those that cannot be part of a call."""
        self._held += text
        shown = ""
        while self._held:
            words = self._step()
            if words is None:
                break
            shown += words
            self._has_shown = self._has_shown or bool(words.strip())
        return shown

    def end(self) -> str:
        """Judge what is held and return what is no call: the answer is complete."""
        held = "".join(self._parts) + self._held
        opening = self._opening if self._mode is _Mode.BLOCK else ""
        self._held = ""
        self._parts.clear()
        calls, rest = self._split(held)
        self._add(calls)
        return rest if calls else opening + held

    def _step(self) -> str | None:
        """Return words to show, "" after words were put aside, None when more are needed."""
        if self._mode is _Mode.TEXT:
            return self._text()
        if self._mode is _Mode.CODE:
            return self._code()
        if self._mode is _Mode.REST:
            self._parts.append(self._held)
            self._held = ""
            return ""
        return self._block()

    def _text(self) -> str | None:
        if self._is_behind_call:
            self._held = self._held.lstrip("\n")
            self._is_behind_call = not self._held
        held = self._held
        if not held:
            return None
        if not self._has_shown and not self.calls:
            if _BARE.match(held):
                self._mode = _Mode.REST
                return ""
            if len(held) <= _UNDECIDED_CHARACTERS_MAX and _MAYBE_BARE.fullmatch(held):
                return None
        at = _first_mark(held)
        if at > 0:
            self._held = held[at:]
            return held[:at]
        if held.startswith(_FENCE):
            return self._fence()
        return self._enter(_OPEN, _CLOSE) if held.startswith(_OPEN) else None

    def _fence(self) -> str | None:
        """Tell a fenced block that begins with JSON from other code, by its first lines."""
        info, newline, content = self._held[len(_FENCE) :].partition("\n")
        begin = content.strip()
        if begin.startswith(("{", "[")):
            return self._enter(f"{_FENCE}{info}\n", _FENCE)
        if not begin and len(info) + len(content) <= _UNDECIDED_CHARACTERS_MAX:
            return None
        self._mode = _Mode.CODE
        self._held = info + newline + content
        return _FENCE

    def _enter(self, opening: str, closing: str) -> str:
        self._mode = _Mode.BLOCK
        self._opening, self._closing = opening, closing
        self._held = self._held[len(opening) :]
        return ""

    def _code(self) -> str | None:
        at = self._held.find(_FENCE)
        if at < 0:
            at = len(self._held) - _begun(self._held, _FENCE)
            shown, self._held = self._held[:at], self._held[at:]
            return shown or None
        self._mode = _Mode.TEXT
        end = at + len(_FENCE)
        shown, self._held = self._held[:end], self._held[end:]
        return shown

    def _block(self) -> str | None:
        """Take a finished block as calls, else show all of it."""
        at = self._held.find(self._closing)
        if at < 0:
            at = len(self._held) - _begun(self._held, self._closing)
            self._parts.append(self._held[:at])
            self._held = self._held[at:]
            return "" if at else None
        content = "".join(self._parts) + self._held[:at]
        self._parts.clear()
        self._held = self._held[at + len(self._closing) :]
        self._mode = _Mode.TEXT
        calls, rest = self._split(content)
        if not calls or rest:
            return self._opening + content + self._closing
        self._add(calls)
        self._is_behind_call = True
        return ""

    def _split(self, text: str) -> tuple[list[Call], str]:
        """Return the calls a text begins with and the words behind them."""
        found: list[Call] = []
        end = 0
        for value, at in bare_values(text):
            calls = self._offer.calls_of(value)
            if not calls:
                break
            found += calls
            end = at
        return found, text[end:].strip() if found else text

    def _add(self, calls: list[Call]) -> None:
        for call in calls:
            # Small models say the same call again and again.
            if call not in self.calls and (self._offer.is_parallel or not self.calls):
                self.calls.append(call)


def _first_mark(text: str) -> int:
    """Return where a fence or a tag begins, or may begin; the length of the text when nowhere."""
    ends = [at for at in (text.find(_FENCE), text.find(_OPEN)) if at >= 0]
    if ends:
        return min(ends)
    return len(text) - max(_begun(text, _FENCE), _begun(text, _OPEN))


def _begun(text: str, mark: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a mark."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0

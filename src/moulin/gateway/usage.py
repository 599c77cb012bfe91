"""What an answer used: read from the replica's usage, or estimated where none was seen.

Never above what was reserved, so a charge cannot exceed its hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

BYTES_PER_TOKEN: Final = 4
"""What an estimate takes for one token of a prompt or an answer: about what English text has."""


@dataclass(slots=True)
class Bounds:
    """The reservation in tokens, and the size of the body the input bound came from.

    Not frozen, as other values of each request: freezing makes the making four times as dear.
    """

    tokens_input: int
    tokens_output: int
    prompt_bytes: int


@dataclass(slots=True)
class Used:
    """Tokens to charge; `is_above` when the replica reported more than was reserved."""

    tokens_input: int
    tokens_output: int
    is_estimated: bool = False
    is_above: bool = False


NOTHING: Final = Used(0, 0)


def usage_of(body: bytes) -> Mapping[str, Any] | None:
    """Return the usage object of a JSON answer, or None."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    usage = answer.get("usage") if isinstance(answer, dict) else None
    return usage if isinstance(usage, dict) else None


def with_figures(body: bytes, figures: Mapping[str, object]) -> bytes:
    """Return a JSON answer whose usage has the figures as well; one without usage as it is."""
    answer = orjson.loads(body)
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return body
    usage.update(figures)
    return orjson.dumps(answer)


def used(usage: Mapping[str, Any] | None, bounds: Bounds, delivered: int) -> Used:
    """Return what to charge; `delivered` is the estimate of output tokens for an answer cut short."""
    if usage is not None:
        tokens_input = usage.get("prompt_tokens")
        tokens_output = usage.get("completion_tokens", 0)
        if type(tokens_input) is int and type(tokens_output) is int:
            if (
                0 <= tokens_input <= bounds.tokens_input
                and 0 <= tokens_output <= bounds.tokens_output
            ):
                return Used(tokens_input, tokens_output)
            return Used(
                max(0, min(tokens_input, bounds.tokens_input)),
                max(0, min(tokens_output, bounds.tokens_output)),
                is_above=True,
            )
    return Used(
        min(bounds.prompt_bytes // BYTES_PER_TOKEN + 1, bounds.tokens_input),
        min(delivered, bounds.tokens_output),
        is_estimated=True,
    )

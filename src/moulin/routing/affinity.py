"""Which replica has most likely seen the beginning of a prompt before.

It decides by rendezvous hashing of a keyed hash of the prompt's leading part: nothing is remembered,
gateways with the same key agree, and a replica that comes or goes moves only its own share. It never
keeps a word of a prompt, and a preference is given up when the replica is clearly busier.

Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998; Mirrokni
et al., "Consistent hashing with bounded loads", 2018.
"""

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any, Final

LEADING_CHARACTERS: Final = 4096
"""What of a prompt is hashed: longer than most system prompts, short enough to cost little."""
NO_PREFIX: Final = 0
_MASK: Final = (1 << 64) - 1
# Multipliers of splitmix64, whose outputs differ in half their bits when one input bit does.
_MIX_1: Final = 0xBF58476D1CE4E5B9
_MIX_2: Final = 0x94D049BB133111EB


def prefix_of(body: Mapping[str, Any], secret: bytes) -> int:
    """Return a keyed hash of the part of a prompt that a conversation keeps, `NO_PREFIX` for none.

    Of a chat, that is everything up to the first message of the user: later turns have the same.
    Cost: a few µs at most, whatever the length of the prompt.
    """
    hashed = blake2b(key=secret, digest_size=8)
    left = LEADING_CHARACTERS
    for text in _leading(body):
        piece = text[:left]
        # Text out of JSON may hold halves of surrogate pairs.
        hashed.update(piece.encode("utf-8", "surrogatepass"))
        hashed.update(b"\0")
        left -= len(piece)
        if left <= 0:
            break
    if left == LEADING_CHARACTERS:
        return NO_PREFIX
    return int.from_bytes(hashed.digest(), "big") or 1


def seat_of(name: str) -> int:
    """Return the place of a replica in every preference, from its name alone."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")


def weight(prefix: int, seat: int) -> int:
    """Return how much a prefix prefers a seat; the largest wins.

    >>> weight(1, 2) == weight(1, 2) != weight(2, 1)
    True
    """
    mixed = (prefix + seat * 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * _MIX_1) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * _MIX_2) & _MASK
    return mixed ^ (mixed >> 31)


def is_clearly_busier(work: int, least: int, own: int) -> bool:
    """Whether a replica with so much work is too busy for its preference to count.

    `least` is the work of the least busy one, `own` that of the request, all in the same unit. Two
    requests more than there are anyway, and a quarter, cost less than reading the prompt again.
    """
    return work > least + least // 4 + 2 * own


def _leading(body: Mapping[str, Any]) -> Iterator[str]:
    messages = body.get("messages")
    if type(messages) is not list:
        yield from _prompt(body.get("prompt"))
        return
    for message in messages:
        if type(message) is not dict:
            return
        yield from _texts(message.get("content"))
        if message.get("role") == "user":
            return


def _prompt(prompt: Any) -> Iterator[str]:
    if type(prompt) is list and prompt:
        prompt = prompt[0] if type(prompt[0]) is str else str(prompt[:LEADING_CHARACTERS])
    if type(prompt) is str:
        yield prompt


def _texts(content: Any) -> Iterator[str]:
    if type(content) is str:
        yield content
    elif type(content) is list:
        for part in content:
            text = part.get("text") if type(part) is dict else None
            if type(text) is str:
                yield text

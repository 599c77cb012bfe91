"""What of a prompt decides where it goes, and when a preference is given up."""

from typing import Any

import pytest

from moulin.routing.affinity import (
    LEADING_CHARACTERS,
    NO_PREFIX,
    is_clearly_busier,
    prefix_of,
    seat_of,
    weight,
)

SECRET = b"s" * 16
SYSTEM = {"role": "system", "content": "Be kind."}
FIRST = {"role": "user", "content": "Hello?"}


def chat(*messages: Any) -> dict[str, Any]:
    return {"model": "smol", "messages": list(messages)}


FIRST_TURN = prefix_of(chat(SYSTEM, FIRST), SECRET)


@pytest.mark.parametrize(
    ("body", "is_same"),
    [
        (chat(SYSTEM, FIRST), True),
        (chat(SYSTEM, FIRST, {"role": "assistant", "content": "Yes?"}, FIRST), True),
        ({**chat(SYSTEM, FIRST), "temperature": 1}, True),
        (chat(SYSTEM, {"role": "user", "content": [{"type": "text", "text": "Hello?"}]}), True),
        (chat(SYSTEM, {"role": "user", "content": "Bye!"}), False),
        (chat(FIRST), False),
        (chat({"role": "system", "content": "Be kind.H"}, {"role": "user", "content": "ello?"}), False),
    ],
)  # fmt: skip
def test_a_conversation_keeps_its_prefix(body: dict[str, Any], is_same: bool) -> None:
    assert (prefix_of(body, SECRET) == FIRST_TURN) is is_same


@pytest.mark.parametrize(
    "body",
    [{}, chat(), chat(7), chat({"role": "user"}), chat({"role": "user", "content": [7, {"type": "x"}]}),
     {"prompt": []}, {"prompt": ""}, {"prompt": 7}],
)  # fmt: skip
def test_what_has_no_words_has_no_prefix(body: dict[str, Any]) -> None:
    assert prefix_of(body, SECRET) == NO_PREFIX


def test_prompts_of_completions_have_one_too() -> None:
    found = prefix_of({"prompt": "once"}, SECRET)
    assert found != NO_PREFIX
    assert found == prefix_of({"prompt": ["once"]}, SECRET)
    assert prefix_of({"prompt": [1, 2]}, SECRET) != prefix_of({"prompt": [1, 3]}, SECRET)


def test_only_the_leading_part_counts_and_only_with_the_key() -> None:
    start = "x" * LEADING_CHARACTERS
    assert prefix_of({"prompt": start + "a"}, SECRET) == prefix_of({"prompt": start + "b"}, SECRET)
    assert prefix_of({"prompt": "a" + start}, SECRET) != prefix_of({"prompt": "b" + start}, SECRET)
    assert prefix_of({"prompt": start}, SECRET) != prefix_of({"prompt": start}, b"t" * 16)


def test_half_a_surrogate_pair_is_no_error() -> None:
    assert prefix_of({"prompt": "\ud83d"}, SECRET) != NO_PREFIX


def test_a_weight_fits_64_bits_and_depends_on_both() -> None:
    found = {weight(prefix, seat_of(f"r{seat}")) for prefix in range(1, 50) for seat in range(50)}
    assert len(found) == 49 * 50
    assert all(0 <= each < 1 << 64 for each in found)


@pytest.mark.parametrize(
    ("work", "least", "own", "busier"),
    [
        (0, 0, 1, False),
        (2, 0, 1, False),
        (3, 0, 1, True),
        (125, 100, 0, False),
        (126, 100, 0, True),
    ],
)
def test_clearly_busier(work: int, least: int, own: int, busier: bool) -> None:
    assert is_clearly_busier(work, least, own) is busier

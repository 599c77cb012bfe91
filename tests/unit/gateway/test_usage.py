"""What is charged: the replica's usage, within the reservation, or an estimate."""

from collections.abc import Mapping
from typing import Any

import pytest

from moulin.gateway.usage import Bounds, Used, usage_of, used

BOUNDS = Bounds(tokens_input=100, tokens_output=50, prompt_bytes=79)


@pytest.mark.parametrize(
    ("usage", "delivered", "expected"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5}, 0, Used(10, 5)),
        ({"prompt_tokens": 10}, 0, Used(10, 0)),
        ({"prompt_tokens": 101, "completion_tokens": 5}, 0, Used(100, 5, is_above=True)),
        ({"prompt_tokens": 10, "completion_tokens": 51}, 0, Used(10, 50, is_above=True)),
        ({"prompt_tokens": -1, "completion_tokens": 5}, 0, Used(0, 5, is_above=True)),
        ({"prompt_tokens": "10", "completion_tokens": 5}, 7, Used(20, 7, is_estimated=True)),
        ({"prompt_tokens": True, "completion_tokens": 5}, 7, Used(20, 7, is_estimated=True)),
        ({}, 7, Used(20, 7, is_estimated=True)),
        (None, 7, Used(20, 7, is_estimated=True)),
        (None, 51, Used(20, 50, is_estimated=True)),
    ],
)
def test_what_is_charged(usage: Mapping[str, Any] | None, delivered: int, expected: Used) -> None:
    assert used(usage, BOUNDS, delivered) == expected


def test_an_estimate_stays_within_a_small_reservation() -> None:
    assert used(None, Bounds(3, 2, 10_000), 9) == Used(3, 2, is_estimated=True)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"usage":{"prompt_tokens":1}}', {"prompt_tokens": 1}),
        (b'{"usage":null}', None),
        (b"{}", None),
        (b"[]", None),
        (b"", None),
        (b'{"usage":{}', None),
    ],
)
def test_usage_of_an_answer(body: bytes, expected: object) -> None:
    assert usage_of(body) == expected

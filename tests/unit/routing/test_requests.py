"""What a request asks for: fields forwarded, renamed, dropped, refused, and the bounds they give."""

from typing import Any

import pytest

from moulin.domain.errors import InvalidRequest
from moulin.domain.snapshot import ModelView
from moulin.routing.requests import CHAT, TEXT, Dialect, input_bound, output_limit, read_request

MODEL = ModelView(
    name="m",
    endpoint="e",
    project="p",
    is_public=False,
    context_tokens=1000,
    tokens_output_default=50,
    price_input_neur=1,
    price_output_neur=1,
    price_per=1,
)
TEXT_PART = {"type": "text", "text": "a"}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "a"}], **fields}


def text(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": "a", **fields}


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (CHAT, chat()),
        (CHAT, chat(n=1)),
        (CHAT, chat(n=None)),
        (CHAT, chat(messages=[{"role": "user", "content": [TEXT_PART]}])),
        (TEXT, text()),
        (TEXT, text(n=1)),
        (TEXT, text(prompt=["a"])),
        (TEXT, text(prompt=[1, 2, 3])),
        (TEXT, text(prompt=[[1, 2, 3]])),
    ],
)
def test_one_completion_goes_as_it_came(dialect: Dialect, body: dict[str, Any]) -> None:
    asked = dict(body)
    read_request(dialect, body)
    assert body == asked


@pytest.mark.parametrize(
    ("dialect", "body", "field"),
    [
        (CHAT, chat(n=2), "n"),
        (CHAT, chat(n=2, stream=True), "n"),
        (TEXT, text(n=2), "n"),
        (TEXT, text(prompt=["a", "b"]), "prompt"),
        (TEXT, text(prompt=[[1, 2], [3]]), "prompt"),
    ],
)
def test_more_completions_than_are_counted_are_refused(
    dialect: Dialect, body: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest, match=r"^2 \w+ in one request are not supported") as caught:
        read_request(dialect, body)
    assert caught.value.details["param"] == field
    assert caught.value.hint


@pytest.mark.parametrize(
    ("fields", "is_stream", "wants_usage"),
    [
        ({}, False, False),
        ({"stream": None}, False, False),
        ({"stream": False, "stream_options": {"include_usage": True}}, False, False),
        ({"stream": True}, True, False),
        ({"stream": True, "stream_options": None}, True, False),
        ({"stream": True, "stream_options": {"include_usage": False}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, True, True),
    ],
)
def test_streams_and_their_usage(
    fields: dict[str, Any], is_stream: bool, wants_usage: bool
) -> None:
    ask = read_request(CHAT, chat(**fields))
    assert (ask.is_stream, ask.wants_usage) == (is_stream, wants_usage)


def test_names_of_other_apis_are_mapped_and_what_has_no_meaning_is_named() -> None:
    body = chat(random_seed=3, max_completion_tokens=5, safe_prompt=True, store=None, max_tokens=9)
    ask = read_request(CHAT, body)
    assert body == chat(seed=3, max_tokens=5)
    assert ask.tokens_output_max == 5
    assert ask.ignored == ("safe_prompt", "store")


def test_an_unknown_field_without_a_value_is_dropped() -> None:
    body = chat(n_predict=None, random_seed=None)
    read_request(CHAT, body)
    assert body == chat()


@pytest.mark.parametrize(
    ("dialect", "body", "field"),
    [
        (CHAT, chat(model=""), "model"),
        (CHAT, chat(model=None), "model"),
        (CHAT, chat(stream="yes"), "stream"),
        (CHAT, chat(stream=True, stream_options=[]), "stream_options"),
        (CHAT, chat(max_tokens=0), "max_tokens"),
        (CHAT, chat(max_tokens=True), "max_tokens"),
        (CHAT, chat(max_tokens=1.5), "max_tokens"),
        (CHAT, chat(max_completion_tokens="5"), "max_tokens"),
        (CHAT, chat(n=0), "n"),
        (CHAT, chat(n=1.5), "n"),
        (CHAT, chat(n=True), "n"),
        (CHAT, chat(best_of=2), "best_of"),
        (CHAT, chat(n_predict=5), "n_predict"),
        (CHAT, chat(prompt="a"), "prompt"),
        (CHAT, chat(messages=[]), "messages"),
        (CHAT, chat(messages=["a"]), "messages"),
        (CHAT, chat(messages=[{"role": "user", "content": ["a"]}]), "messages"),
        (CHAT, chat(messages=[{"content": [{"type": "image_url"}]}]), "messages"),
        (TEXT, text(prompt=[]), "prompt"),
        (TEXT, text(prompt=None), "prompt"),
        (TEXT, text(messages=[]), "messages"),
    ],
)
def test_what_could_cost_more_than_it_says_is_refused(
    dialect: Dialect, body: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_request(dialect, body)
    assert caught.value.details["param"] == field


def test_a_body_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="JSON object"):
        read_request(CHAT, [1])


@pytest.mark.parametrize(
    ("fields", "limit"),
    [({}, 50), ({"max_tokens": 10}, 10), ({"max_tokens": 5000}, 1000)],
)
def test_the_output_limit(fields: dict[str, Any], limit: int) -> None:
    assert output_limit(read_request(CHAT, chat(**fields)), MODEL) == limit


@pytest.mark.parametrize(
    ("fields", "body_bytes", "bound"),
    [
        ({}, 100, 164),
        ({}, 10_000, 1000),
        ({"tools": [{}]}, 100, 420),
        ({"tools": []}, 100, 164),
    ],
)
def test_the_input_bound(fields: dict[str, Any], body_bytes: int, bound: int) -> None:
    assert input_bound(read_request(CHAT, chat(**fields)), MODEL, body_bytes) == bound

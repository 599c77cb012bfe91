"""What a request asks for: fields forwarded, renamed, dropped, refused, and the bounds they give."""

from dataclasses import replace
from typing import Any

import pytest

from moulin.domain.errors import InvalidRequest
from moulin.domain.snapshot import ModelView
from moulin.routing.infill import infill
from moulin.routing.messages import SAFE_PROMPT
from moulin.routing.requests import (
    CHAT,
    FIM,
    TEXT,
    Dialect,
    input_bound,
    output_limit,
    read_request,
    split,
)

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
TOOL = {"type": "function", "function": {"name": "look"}}
CONTENT = "messages[0].content"
TEXT_PART = {"type": "text", "text": "a"}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "a"}], **fields}


def said(**fields: Any) -> dict[str, Any]:
    return chat(messages=[{"role": "user", "content": "a", **fields}])


def text(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": "a", **fields}


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (CHAT, chat()),
        (CHAT, chat(n=1)),
        (CHAT, chat(n=None)),
        (CHAT, chat(messages=[{"role": "user", "content": [TEXT_PART]}])),
        (CHAT, chat(temperature=0, top_p=1, seed=-1, stop="x", logit_bias={"5": -100})),
        (CHAT, chat(logprobs=True, top_logprobs=5, stop=None, temperature=None)),
        (CHAT, chat(response_format={"type": "json_object"})),
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
        (CHAT, chat(n=17), "n"),
        (TEXT, text(n=17), "n"),
        (TEXT, text(prompt=["a"] * 17), "prompt"),
        (TEXT, text(prompt=["a"] * 9, n=2), "prompt"),
    ],
)
def test_more_completions_than_are_served_are_refused(
    dialect: Dialect, body: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest, match="are more than the 16 served") as caught:
        read_request(dialect, body)
    assert caught.value.details["param"] == field
    assert caught.value.hint


@pytest.mark.parametrize(
    ("dialect", "body", "prompts"),
    [
        (TEXT, text(n=2), ["a", "a"]),
        (TEXT, text(prompt=["a", "b"]), ["a", "b"]),
        (TEXT, text(prompt=["a", "b"], n=2), ["a", "a", "b", "b"]),
        (TEXT, text(prompt=[[1, 2], [3]]), [[1, 2], [3]]),
        (TEXT, text(prompt=[1, 2], n=2), [[1, 2], [1, 2]]),
    ],
)
def test_several_completions_are_split_by_prompt(
    dialect: Dialect, body: dict[str, Any], prompts: list[object]
) -> None:
    ask = read_request(dialect, body)
    assert ask.choices == len(prompts)
    assert [part["prompt"] for part in split(body)] == prompts


def test_several_completions_of_one_seed_have_seeds_of_their_own() -> None:
    body = chat(n=3, seed=7, temperature=1)
    assert read_request(CHAT, body).choices == 3
    parts = split(body)
    assert [part["seed"] for part in parts] == [7, 8, 9]
    assert all("n" not in part and part["temperature"] == 1 for part in parts)


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
    body = chat(random_seed=3, max_completion_tokens=5, user="u", store=None, max_tokens=9)
    ask = read_request(CHAT, body)
    assert body == chat(seed=3, max_tokens=5)
    assert ask.tokens_output_max == 5
    assert ask.ignored == ("store", "user")


@pytest.mark.parametrize("value", [False, None])
def test_no_safe_prompt_changes_nothing(value: object) -> None:
    body = chat(safe_prompt=value)
    ask = read_request(CHAT, body)
    assert body == chat()
    assert ask.added_bytes == 0


def test_a_safe_prompt_goes_first_and_counts() -> None:
    body = chat(safe_prompt=True)
    ask = read_request(CHAT, body)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][0]["content"] == SAFE_PROMPT
    assert ask.added_bytes > len(SAFE_PROMPT)
    assert input_bound(ask, MODEL, 100) == 164 + ask.added_bytes


def test_a_safe_prompt_joins_the_system_message_there_is() -> None:
    body = chat(messages=[{"role": "system", "content": "b"}, {"role": "user", "content": "a"}])
    body["safe_prompt"] = True
    read_request(CHAT, body)
    assert [message["content"] for message in body["messages"]] == [f"{SAFE_PROMPT}\n\nb", "a"]


def test_unknown_fields_are_dropped_where_the_client_asks_for_it() -> None:
    body = chat(n_predict=5, best_of=2, **{"bad\r\nname": 1, "x" * 65: 1})
    ask = read_request(CHAT, body, drops=True)
    assert body == chat()
    assert ask.ignored == ("?", "best_of", "n_predict")


def test_filling_in_keeps_prompt_and_suffix_for_the_model() -> None:
    body = text(suffix="b", random_seed=1)
    ask = read_request(FIM, body)
    assert (ask.infills, ask.needs_form, body["seed"]) == (True, True, 1)
    infill(body, replace(MODEL, infill=("<p>", "<s>", "<m>")))
    assert body["prompt"] == "<p>a<s>b<m>"
    assert "suffix" not in body


def test_a_completion_with_a_suffix_fills_in_too() -> None:
    body = text(suffix="b")
    ask = read_request(TEXT, body)
    assert (ask.infills, ask.needs_form) == (True, False)
    with pytest.raises(InvalidRequest, match="cannot fill in") as caught:
        infill(body, MODEL)
    assert caught.value.details["param"] == "model"


@pytest.mark.parametrize("suffix", ["", None])
def test_a_completion_with_an_empty_suffix_is_an_ordinary_one(suffix: str | None) -> None:
    body = text(suffix=suffix)
    assert not read_request(TEXT, body).infills
    assert body == text()


@pytest.mark.parametrize("field", ["schema", "value"])
def test_a_schema_has_one_form_upstream(field: str) -> None:
    body = chat(response_format={"type": "json_object", field: {"type": "object"}})
    read_request(CHAT, body)
    inner = {"name": "answer", "schema": {"type": "object"}}
    assert body["response_format"] == {"type": "json_schema", "json_schema": inner}


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
        (CHAT, said(content=["a"]), CONTENT),
        (CHAT, said(content=[{"type": "image_url"}]), CONTENT),
        (CHAT, said(content=[{"type": 5}]), CONTENT),
        (CHAT, said(content=None), CONTENT),
        (CHAT, said(content=5), CONTENT),
        (CHAT, said(role="robot"), "messages[0].role"),
        (CHAT, said(role=["user"]), "messages[0].role"),
        (CHAT, said(tool_calls=5), "messages[0].tool_calls"),
        (CHAT, said(tool_calls=[{"id": "x"}]), "messages[0].tool_calls[0]"),
        (CHAT, chat(safe_prompt=1), "safe_prompt"),
        (CHAT, chat(temperature="hot"), "temperature"),
        (CHAT, chat(temperature=2.1), "temperature"),
        (CHAT, chat(top_p=-0.1), "top_p"),
        (CHAT, chat(presence_penalty=True), "presence_penalty"),
        (CHAT, chat(seed=1.5), "seed"),
        (CHAT, chat(stop=5), "stop"),
        (CHAT, chat(stop=["a", 5]), "stop"),
        (CHAT, chat(stop=["a"] * 17), "stop"),
        (CHAT, chat(logprobs=2), "logprobs"),
        (CHAT, chat(top_logprobs=2), "top_logprobs"),
        (CHAT, chat(logprobs=True, top_logprobs=21), "top_logprobs"),
        (CHAT, chat(logit_bias=[1]), "logit_bias"),
        (CHAT, chat(logit_bias={"a": 1}), "logit_bias"),
        (CHAT, chat(logit_bias={"1": 101}), "logit_bias"),
        (CHAT, chat(response_format="json"), "response_format"),
        (CHAT, chat(response_format={"type": "xml"}), "response_format.type"),
        (CHAT, chat(response_format={"type": "json_schema"}), "response_format.json_schema"),
        (CHAT, chat(tool_choice="required"), "tool_choice"),
        (TEXT, text(logprobs=True), "logprobs"),
        (TEXT, text(suffix=5), "suffix"),
        (TEXT, text(suffix="b", prompt=["a"]), "suffix"),
        (TEXT, text(prompt=["a", 1]), "prompt"),
        (FIM, text(prompt=["a"]), "prompt"),
        (FIM, text(n=2), "n"),
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
        ({"tools": [TOOL]}, 100, 420),
        ({"tools": [TOOL], "tool_choice": "none"}, 100, 164),
        ({"tools": []}, 100, 164),
    ],
)
def test_the_input_bound(fields: dict[str, Any], body_bytes: int, bound: int) -> None:
    assert input_bound(read_request(CHAT, chat(**fields)), MODEL, body_bytes) == bound

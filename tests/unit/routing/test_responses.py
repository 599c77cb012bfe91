"""The Responses API over chat: items to messages, answers and chunks to responses and events."""

from typing import Any

import pytest

from moulin.domain.errors import InvalidRequest
from moulin.routing.responses import Events, messages_of, read_response_request, response_of

ID = "01K70000000000000000000000"
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def wanted(**fields: Any) -> Any:
    return read_response_request({"model": "m", "input": "hi", **fields}, ID)


def test_a_text_is_a_message_after_the_instructions() -> None:
    asked = wanted(instructions="Be short.", max_output_tokens=9, temperature=0)
    assert asked.chat == {"model": "m", "temperature": 0, "max_tokens": 9}
    assert messages_of(asked.instructions, asked.items) == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "hi"},
    ]
    assert not asked.is_stored


def test_calls_and_their_outputs_become_messages() -> None:
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "2"}],
        },
    ]
    messages = messages_of("", wanted(input=items).items)
    assert [each["role"] for each in messages] == ["system", "assistant", "tool", "tool"]
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["c1", "c2"]
    assert [each["content"] for each in messages[2:]] == ["1", "2"]


def test_tools_choices_and_formats_take_the_form_of_chat() -> None:
    schema = {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True}
    asked = wanted(
        tools=[{"type": "function", "name": "f", "parameters": {}}],
        tool_choice={"type": "function", "name": "f"},
        text={"format": schema},
        reasoning={"effort": "low"},
        stream=True,
        user="ada",
    )
    assert asked.chat["tools"] == [
        {"type": "function", "function": {"name": "f", "parameters": {}}}
    ]
    assert asked.chat["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert asked.chat["response_format"]["json_schema"]["name"] == "s"
    assert asked.chat["reasoning_effort"] == "low"
    assert asked.chat["stream_options"] == {"include_usage": True}
    assert asked.chat["user"] == "ada"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", ""),
        ("input", [{"type": "item_reference", "id": "x"}]),
        ("input", [{"role": "user", "content": [{"type": "input_image"}]}]),
        ("input", [{"role": "nobody", "content": "a"}]),
        ("input", [{"type": "function_call", "call_id": "c"}]),
        ("tools", [{"type": "web_search"}]),
        ("tool_choice", {"type": "file_search"}),
        ("text", {"format": {"type": "grammar"}}),
        ("text", "plain"),
        ("store", "yes"),
        ("background", True),
        ("include", ["message.output_text.logprobs"]),
        ("truncation", "auto"),
        ("conversation", "conv_1"),
        ("instructions", ["a"]),
    ],
)
def test_what_is_not_served_is_named(field: str, value: Any) -> None:
    tools = [{"type": "function", "name": "f"}]
    given = {"tools": tools} if field == "tool_choice" else {}
    if (field, value) == ("input", ""):
        value = 7
    with pytest.raises(InvalidRequest) as refused:
        wanted(**{**given, field: value})
    assert refused.value.details["param"] == field


def test_an_answer_becomes_a_response() -> None:
    message = {
        "content": "Hello",
        "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}],
    }
    answer = {
        "model": "m",
        "choices": [{"message": message, "finish_reason": "length"}],
        "usage": USAGE,
    }
    response = response_of(wanted(store=True, metadata={"a": "b"}), ID, 7, answer)
    assert (response["id"], response["created_at"], response["store"]) == (f"resp_{ID}", 7, True)
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["type"] for item in response["output"]] == ["message", "function_call"]
    assert response["output"][0]["content"][0]["text"] == "Hello"
    assert response["usage"]["total_tokens"] == 7
    assert response["metadata"] == {"a": "b"}


def chunk(**delta: Any) -> dict[str, Any]:
    return {"model": "m", "choices": [{"delta": delta, "finish_reason": None}]}


def test_events_of_words_come_in_order_and_add_up() -> None:
    events = Events(wanted(), ID, 7)
    told = [
        *events.take(chunk(role="assistant")),
        *events.take(chunk(content="Hel")),
        *events.take(chunk(content="lo")),
        *events.take({"choices": [{"delta": {}, "finish_reason": "stop"}]}),
        *events.take({"choices": [], "usage": USAGE}),
        *events.end(is_stored=False),
    ]
    assert [event["type"].removeprefix("response.") for event in told] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    final = told[-1]["response"]
    assert final["output"][0]["content"][0]["text"] == "Hello"
    assert final["usage"]["output_tokens"] == 2
    assert told[0]["response"]["output"] == []


def test_events_of_calls_follow_the_words_before_them() -> None:
    events = Events(wanted(), ID, 7)
    first = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": '{"a"'}}
    more = {"index": 0, "function": {"arguments": ": 1}"}}
    other = {"index": 1, "id": "c2", "function": {"name": "g", "arguments": "{}"}}
    told = [
        *events.take(chunk(content="So")),
        *events.take(chunk(tool_calls=[first])),
        *events.take(chunk(tool_calls=[more, other])),
        *events.end(is_stored=True),
    ]
    output = told[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "function_call"]
    assert [item["arguments"] for item in output[1:]] == ['{"a": 1}', "{}"]
    assert told[-1]["response"]["store"] is True
    assert [e["output_index"] for e in told if e["type"] == "response.output_item.done"] == [
        0,
        1,
        2,
    ]


def test_a_stream_without_words_is_a_whole_response_too() -> None:
    told = Events(wanted(), ID, 7).end(is_stored=False)
    assert [event["type"] for event in told] == [
        "response.created",
        "response.in_progress",
        "response.completed",
    ]

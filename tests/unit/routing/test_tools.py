"""Tools offered: what an engine is held to, and which words of its answers are calls."""

import json
from typing import Any

import pytest

from moulin.domain.errors import InvalidRequest
from moulin.routing.calls import CallReader
from moulin.routing.requests import CHAT, read_request
from moulin.routing.tools import Call, Offer

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
PARIS = {"name": "weather", "arguments": {"city": "Paris"}}
ROME = {"name": "weather", "arguments": {"city": "Rome"}}
CALL_PARIS = Call("weather", '{"city": "Paris"}')
CALL_ROME = Call("weather", '{"city": "Rome"}')
P, R = json.dumps(PARIS), json.dumps(ROME)


def tool(name: str = "weather", parameters: Any = CITY) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def asked(*tools: Any, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "a"}]
    return {"model": "m", "messages": messages, "tools": list(tools) or [tool()], **fields}


def offer(**fields: Any) -> Offer:
    found = read_request(CHAT, asked(tool(), tool("time", {}), **fields)).offer
    assert found is not None
    return found


def schema_of(body: dict[str, Any]) -> Any:
    return body["response_format"]["json_schema"]["schema"]


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize("choice", [None, "auto"])
def test_where_a_call_may_be_made_the_engine_is_not_constrained(choice: str | None) -> None:
    body = asked(tool_choice=choice, parallel_tool_calls=True)
    ask = read_request(CHAT, body)
    assert body == asked(tool_choice="none")
    assert ask.offer is not None
    assert ask.needs_form
    assert not ask.offer.is_forced


@pytest.mark.parametrize("fields", [{"tools": []}, {"tools": None}, {"tool_choice": "none"}])
def test_without_a_possible_call_the_engine_sees_no_tools(fields: dict[str, Any]) -> None:
    body = {**asked(), **fields}
    ask = read_request(CHAT, body)
    assert ask.offer is None
    assert body.keys() == {"model", "messages"}


@pytest.mark.parametrize("choice", ["required", "any"])
def test_where_a_call_must_be_made_the_engine_is_held_to_its_schema(choice: str) -> None:
    body = asked(tool(), tool("time", {}), tool_choice=choice)
    ask = read_request(CHAT, body)
    assert ask.offer is not None
    assert ask.offer.is_forced
    forms = schema_of(body)["oneOf"]
    assert [form["properties"]["name"] for form in forms] == [
        {"const": "weather"},
        {"const": "time"},
    ]
    assert forms[0]["properties"]["arguments"] == CITY
    assert forms[1]["properties"]["arguments"]["additionalProperties"] is False


def test_a_named_tool_is_the_only_form() -> None:
    body = asked(tool(), tool("time"), tool_choice=named("time"))
    ask = read_request(CHAT, body)
    assert schema_of(body)["properties"]["name"] == {"const": "time"}
    assert ask.offer is not None
    assert list(ask.offer.tools) == ["time"]
    assert ask.offer.calls_of(PARIS) == []


def test_several_forced_calls_are_a_list_with_an_end() -> None:
    body = asked(tool_choice="required", parallel_tool_calls=True)
    read_request(CHAT, body)
    schema = schema_of(body)
    assert (schema["type"], schema["minItems"], schema["maxItems"]) == ("array", 1, 8)


def test_allowed_tools_are_the_ones_that_may_be_called() -> None:
    tools = {"mode": "required", "tools": [named("time")]}
    body = asked(
        tool(), tool("time"), tool_choice={"type": "allowed_tools", "allowed_tools": tools}
    )
    found = read_request(CHAT, body).offer
    assert found is not None
    assert (list(found.tools), found.is_forced) == (["time"], True)


def test_references_of_a_schema_still_lead_to_its_own_definitions() -> None:
    parameters = {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/Place"}},
        "$defs": {"Place": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Place"}}}},
    }
    body = asked(tool("go", parameters), tool_choice="required")
    found = read_request(CHAT, body).offer
    schema = schema_of(body)
    assert schema["properties"]["arguments"] == {"$ref": "#/$defs/t0"}
    placed = schema["$defs"]["t0"]
    assert placed["properties"]["at"] == {"$ref": "#/$defs/t0/$defs/Place"}
    assert placed["$defs"]["Place"]["properties"]["next"] == {"$ref": "#/$defs/t0/$defs/Place"}
    assert found is not None
    assert found.calls_of({"name": "go", "arguments": {"at": {"next": {}}}})
    assert not found.calls_of({"name": "go", "arguments": {"at": {"next": 5}}})


def test_an_answer_in_a_schema_may_be_a_call_instead() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    body = asked(response_format=wanted)
    read_request(CHAT, body)
    assert schema_of(body)["oneOf"][1] == {"type": "object"}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": 5}, "tools"),
        ({"tools": [tool()] * 129}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool(), tool()]}, "tools[1].function.name"),
        ({"tools": [tool(parameters=[1])]}, "tools[0].function.parameters"),
        ({"tools": [tool(parameters={"type": "no"})]}, "tools[0].function.parameters"),
        ({"tools": [tool(parameters={"$ref": "#/a"})]}, "tools[0].function.parameters"),
        ({"tools": [tool(parameters={"$ref": "http://x/y"})]}, "tools[0].function.parameters"),
        ({"tools": [tool(parameters={"$ref": "file:///x"})]}, "tools[0].function.parameters"),
        ({"tool_choice": "some"}, "tool_choice"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"tool_choice": named("other")}, "tool_choice"),
        (
            {"tool_choice": "required", "response_format": {"type": "json_object"}},
            "response_format",
        ),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ],
)
def test_what_is_no_tool_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_request(CHAT, {**asked(), **fields})
    assert caught.value.details["param"] == field


@pytest.mark.parametrize(
    ("value", "calls"),
    [
        (PARIS, [CALL_PARIS]),
        ([PARIS, ROME], [CALL_PARIS, CALL_ROME]),
        ({"name": "weather", "parameters": {"city": "Rome"}}, [CALL_ROME]),
        ({"type": "function", "function": PARIS}, [CALL_PARIS]),
        ({"name": "weather", "arguments": '{"city": "Paris"}'}, [CALL_PARIS]),
        ({"name": "time"}, [Call("time", "{}")]),
        ({"name": "weather", "arguments": {"city": 5}}, []),
        ({"name": "weather", "arguments": {"city": "x", "more": 1}}, []),
        ({"name": "weather", "arguments": [1]}, []),
        ({"name": "weather", "arguments": "{"}, []),
        ({"name": "weather", "arguments": '{"city": NaN}'}, []),
        ({"name": "other", "arguments": {}}, []),
        ({"name": ["weather"]}, []),
        ([PARIS, {"name": "other"}], []),
        ([], []),
        ("weather", []),
        (None, []),
    ],
)
def test_calls_are_known_names_with_arguments_that_fit(value: Any, calls: list[Call]) -> None:
    assert offer().calls_of(value) == calls


@pytest.mark.parametrize(
    ("answer", "words", "calls"),
    [
        ("Hello, world.", "Hello, world.", []),
        ("", "", []),
        (P, "", [CALL_PARIS]),
        (f"\n {P}\n", "", [CALL_PARIS]),
        (f"{P}\n{R}", "", [CALL_PARIS, CALL_ROME]),
        (f"{P}\n{P}", "", [CALL_PARIS]),
        (f"[{P}, {R}]", "", [CALL_PARIS, CALL_ROME]),
        (f"{P} That is it.", "That is it.", [CALL_PARIS]),
        (f"{P}\n{R[:19]}", R[:19], [CALL_PARIS]),
        (P[:19], P[:19], []),
        ('{"answer": 42}', '{"answer": 42}', []),
        ("[link](there) is text", "[link](there) is text", []),
        ("{a set}", "{a set}", []),
        (f"```json\n{P}\n```", "", [CALL_PARIS]),
        (f"```\n{P}\n{R}\n```\n", "", [CALL_PARIS, CALL_ROME]),
        (f"```json\n{P}", "", [CALL_PARIS]),
        (f"I look:\n```json\n{P}\n```\nDone.", "I look:\nDone.", [CALL_PARIS]),
        (f"<tool_call>\n{P}\n</tool_call>", "", [CALL_PARIS]),
        (f"<tool_call>{P}</tool_call>\n<tool_call>{R}</tool_call>", "", [CALL_PARIS, CALL_ROME]),
        (f"<tool_call>\n{P}", "", [CALL_PARIS]),
        (f"Say {P} aloud", f"Say {P} aloud", []),
        ("```python\nprint(1)\n```\nend", "```python\nprint(1)\n```\nend", []),
        ('```json\n{"a": 1}\n```\nend', '```json\n{"a": 1}\n```\nend', []),
        (f"```json\n{P}\nand more\n```", f"```json\n{P}\nand more\n```", []),
        (f"```py\nx\n```\n```json\n{P}\n```", "```py\nx\n```\n", [CALL_PARIS]),
        ("<tool_call>no json</tool_call>", "<tool_call>no json</tool_call>", []),
        ("a < b and `x`", "a < b and `x`", []),
        ("ends with ``", "ends with ``", []),
        ("```", "```", []),
        (" " * 100 + "x", " " * 100 + "x", []),
        ("[" * 3000, "[" * 3000, []),
        ('[{"a":' * 3000, '[{"a":' * 3000, []),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 10_000])
def test_an_answer_is_read_alike_in_pieces_of_any_size(
    answer: str, words: str, calls: list[Call], size: int
) -> None:
    reader = CallReader(offer())
    shown = "".join(reader.read(answer[i : i + size]) for i in range(0, len(answer), size))
    assert (shown + reader.end(), reader.calls) == (words, calls)


def test_words_are_shown_while_they_come() -> None:
    reader = CallReader(offer())
    assert reader.read("The sea ") == "The sea "
    assert reader.read("``") == ""
    assert reader.read("`python\nprint") == "```python\nprint"
    assert reader.read("(1)\n```") == "(1)\n```"
    assert reader.read(" is blue") == " is blue"


def test_a_forced_answer_is_held_to_its_end() -> None:
    reader = CallReader(offer(tool_choice="required"))
    assert reader.read(f"{P[:10]}") == ""
    assert reader.read(P[10:]) == ""
    assert (reader.end(), reader.calls) == ("", [CALL_PARIS])


def test_a_forced_answer_that_was_cut_is_words() -> None:
    reader = CallReader(offer(tool_choice="required"))
    assert reader.read(P[:25]) == ""
    assert (reader.end(), reader.calls) == (P[:25], [])


def test_only_the_first_call_counts_where_several_are_not_wanted() -> None:
    reader = CallReader(offer(parallel_tool_calls=False))
    reader.read(f"{P}\n{R}")
    assert (reader.end(), reader.calls) == ("", [CALL_PARIS])


def test_arguments_of_earlier_calls_become_text() -> None:
    call = {"id": "c", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
    message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call]}
    body = asked()
    body["messages"] += [message, {"role": "tool", "tool_call_id": "c", "content": "18 degrees"}]
    read_request(CHAT, body)
    sent = body["messages"][1]["tool_calls"][0]
    assert sent["type"] == "function"
    assert sent["function"]["arguments"] == '{"city": "Paris"}'


def test_a_costly_pattern_is_cut_off() -> None:
    pattern = {"type": "object", "properties": {"city": {"pattern": "^(?=a)(a+)+$"}}}
    found = read_request(CHAT, asked(tool("slow", pattern))).offer
    assert found is not None
    assert found.calls_of({"name": "slow", "arguments": {"city": "a" * 40 + "b"}}) == []

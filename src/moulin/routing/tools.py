"""Tools a client offers, made into something every engine obeys, and calls read from its words.

It decides which of the offered tools may or must be called, the JSON schema an engine is held to
for it, and which words of an answer are calls: known names with arguments that fit, nothing else.
Engines are never asked to find calls themselves: they differ in templates, markers and parsers, and
small models leave the markers out. It never runs a tool.

Source: OpenAI API reference (function calling); Mistral API reference (`any` is `required`).
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from moulin.routing.parameters import bad, missing, unsupported
from moulin.routing.schemas import Schema, moved, refers

TOOLS_MAX: Final = 128
CALLS_MAX: Final = 8
"""Calls of one answer where several must be made; a small model would go on for ever."""
_NAME: Final = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_MUST: Final = frozenset({"required", "any"})
_NO_ARGUMENTS: Final = {"type": "object", "properties": {}, "additionalProperties": False}


class Call(NamedTuple):
    """One call: a known tool and its arguments as JSON text."""

    name: str
    arguments: str


class Offer:
    """The tools an answer may call; `is_forced` when it has to, `is_parallel` when several may be."""

    __slots__ = ("is_forced", "is_parallel", "tools")

    def __init__(
        self, tools: Mapping[str, Schema], *, is_forced: bool, is_parallel: bool = True
    ) -> None:
        self.tools = tools
        self.is_forced = is_forced
        self.is_parallel = is_parallel

    def calls_of(self, value: Any) -> list[Call]:
        """Return the calls a JSON value is made of; none when any part of it is not one."""
        found = [self._call(each) for each in (value if type(value) is list else [value])]
        calls = [call for call in found if call is not None]
        return calls if len(calls) == len(found) else []

    def _call(self, value: Any) -> Call | None:
        if type(value) is dict and type(value.get("function")) is dict:
            value = value["function"]
        if type(value) is not dict or type(value.get("name")) is not str:
            return None
        schema = self.tools.get(value["name"])
        arguments = value.get("arguments", value.get("parameters", {}))
        if type(arguments) is str:
            arguments = _loads(arguments)
        if schema is None or type(arguments) is not dict or not schema.fits(arguments):
            return None
        return Call(value["name"], json.dumps(arguments, ensure_ascii=False))


def read_offer(body: dict[str, Any]) -> Offer | None:
    """Read the tools of a chat request and rewrite the request for an engine, in place.

    The engine gets the tools for its template, is told to look for no calls, and where a call must
    be made is held to a schema of the calls. Returns None when no call is possible.

    Raises `InvalidRequest` for tools that are none, a choice among others than are offered, and a
    forced call beside a `response_format`.
    """
    schemas = _read_tools(body)
    choice = body.pop("tool_choice", None)
    is_parallel = body.pop("parallel_tool_calls", None)
    if not schemas:
        body.pop("tools", None)
        if choice is not None and choice not in ("none", "auto"):
            raise bad("tool_choice", "left out unless 'tools' are given")
        return None
    names, is_forced = _chosen(choice, schemas)
    if not names:
        del body["tools"]
        return None
    checked = {name: Schema(schemas[name], _field(name, schemas)) for name in names}
    body["tool_choice"] = "none"
    _constrain(
        body,
        {name: schemas[name] for name in names},
        is_forced=is_forced,
        has_several=is_parallel is True,
    )
    return Offer(checked, is_forced=is_forced, is_parallel=is_parallel is not False)


def bare_values(text: str) -> Iterator[tuple[Any, int]]:
    """Yield the JSON values a text begins with, one after another, and where each ends."""
    at = 0
    while True:
        while at < len(text) and text[at] in " \t\r\n,;":
            at += 1
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return
        yield value, at


def _read_tools(body: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the schema of the arguments of each tool by name."""
    tools = body.get("tools")
    if tools is None:
        return {}
    if type(tools) is not list:
        raise bad("tools", "a list", "invalid_type")
    if len(tools) > TOOLS_MAX:
        raise bad("tools", f"at most {TOOLS_MAX} tools", "array_above_max_length")
    found: dict[str, dict[str, Any]] = {}
    for number, tool in enumerate(tools):
        name, parameters = _read_tool(f"tools[{number}]", tool)
        if name in found:
            raise bad(f"tools[{number}].function.name", "another name than the other tools'")
        found[name] = parameters
    return found


def _read_tool(field: str, tool: Any) -> tuple[str, dict[str, Any]]:
    if type(tool) is not dict:
        raise bad(field, "an object", "invalid_type")
    if tool.get("type", "function") != "function":
        raise unsupported(f"{field}.type", "tools of the type 'function' are served here")
    function = tool.get("function")
    if type(function) is not dict:
        raise missing(f"{field}.function", "an object")
    name = function.get("name")
    if type(name) is not str or not _NAME.fullmatch(name):
        raise bad(f"{field}.function.name", "1 to 64 letters, digits, '_', '-' or '.'")
    parameters = function.get("parameters") or _NO_ARGUMENTS
    if type(parameters) is not dict:
        raise bad(f"{field}.function.parameters", "a JSON schema", "invalid_type")
    return name, parameters


def _field(name: str, schemas: Mapping[str, Any]) -> str:
    return f"tools[{list(schemas).index(name)}].function.parameters"


def _chosen(choice: Any, schemas: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """Return the tools that may be called, and whether one must be."""
    if choice is None or choice == "auto":
        return tuple(schemas), False
    if choice == "none":
        return (), False
    if type(choice) is str and choice in _MUST:
        return tuple(schemas), True
    if type(choice) is not dict:
        raise bad("tool_choice", "'none', 'auto', 'required' or the name of a tool")
    allowed = choice.get("allowed_tools")
    if choice.get("type") == "allowed_tools" and type(allowed) is dict:
        tools = allowed.get("tools")
        named = tuple(_named(each, schemas) for each in (tools if type(tools) is list else ()))
        return named, allowed.get("mode") in _MUST
    return (_named(choice, schemas),), True


def _named(choice: Any, schemas: Mapping[str, Any]) -> str:
    function = choice.get("function") if type(choice) is dict else None
    name = function.get("name") if type(function) is dict else None
    if type(name) is not str or name not in schemas:
        raise bad("tool_choice", "the name of one of 'tools'")
    return name


def _constrain(
    body: dict[str, Any], schemas: Mapping[str, Any], *, is_forced: bool, has_several: bool
) -> None:
    """Hold the engine to calls where one must be made, or where only JSON may be answered."""
    wanted = body.get("response_format") or {"type": "text"}
    wants_json = wanted["type"] != "text"
    if not is_forced and not wants_json:
        return
    if is_forced and wants_json:
        raise bad("response_format", "left out where 'tool_choice' forces a call")
    definitions: dict[str, Any] = {}
    forms = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": _placed(schema, definitions)},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, schema in schemas.items()
    ]
    if wants_json:
        inner = wanted.get("json_schema") or {"schema": {"type": "object"}}
        forms.append(_placed(inner["schema"], definitions))
    schema: dict[str, Any] = forms[0] if len(forms) == 1 else {"oneOf": forms}
    if is_forced and has_several:
        schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": CALLS_MAX}
    if definitions:
        schema = {**schema, "$defs": definitions}
    body["response_format"] = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema},
    }


def _placed(schema: Any, definitions: dict[str, Any]) -> Any:
    """Return the schema, or a reference to where it was put so that its own references hold."""
    if not refers(schema):
        return schema
    name = f"t{len(definitions)}"
    pointer = f"#/$defs/{name}"
    definitions[name] = moved(schema, pointer)
    return {"$ref": pointer}


def _no_constant(name: str) -> Any:
    raise ValueError(name)


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)


def _loads(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None

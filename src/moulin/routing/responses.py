"""The Responses API over chat completions: a request in, a response or its events out. Pure.

It decides what an input item means as a message, which tools and fields are served, and the order
of events that OpenAI's clients expect. What it cannot serve it refuses by name; it never drops an
instruction silently.

Source: OpenAI API reference (responses, streaming events).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from moulin.domain.errors import InvalidRequest

_PASSED: Final = frozenset({"model", "temperature", "top_p", "top_logprobs", "parallel_tool_calls"})
_IGNORED: Final = frozenset(
    {
        "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "user",
    }
)  # fmt: skip
_READ: Final = frozenset(
    {
        "input", "instructions", "max_output_tokens", "metadata", "previous_response_id", "reasoning",
        "store", "stream", "stream_options", "text", "tool_choice", "tools", "truncation", "include",
        "background", "max_tool_calls",
    }
)  # fmt: skip
_TEXTS: Final = frozenset({"input_text", "output_text", "text"})
_ROLES: Final[Mapping[str, str]] = {
    "user": "user", "assistant": "assistant", "system": "system", "developer": "system",
}  # fmt: skip
JSON = dict[str, Any]


class Wanted(NamedTuple):
    """A request for a response: `chat` without messages, the items of this turn, what is echoed."""

    chat: JSON
    items: tuple[JSON, ...]
    instructions: str
    echo: JSON
    is_stream: bool
    is_stored: bool
    previous: str


def read_response_request(body: Any, identifier: str) -> Wanted:
    """Check a parsed body. Raises `InvalidRequest` naming the field that cannot be served."""
    if type(body) is not dict:
        raise InvalidRequest("the body must be a JSON object")
    _check_known(body)
    chat: JSON = {name: body[name] for name in (*_PASSED, *_IGNORED) if body.get(name) is not None}
    if body.get("max_output_tokens") is not None:
        chat["max_tokens"] = body["max_output_tokens"]
    effort = (body.get("reasoning") or {}).get("effort")
    if effort is not None:
        chat["reasoning_effort"] = effort
    tools = _tools(body.get("tools"))
    if tools:
        chat["tools"] = tools
    if body.get("tool_choice") is not None and tools:
        chat["tool_choice"] = _tool_choice(body["tool_choice"])
    form = _response_format(body.get("text"))
    if form is not None:
        chat["response_format"] = form
    is_stream = _flag(body, "stream")
    if is_stream:
        chat["stream"] = True
        chat["stream_options"] = {"include_usage": True}
    is_stored = _flag(body, "store")
    return Wanted(
        chat=chat,
        items=tuple(_items(body.get("input"), identifier)),
        instructions=_text(body, "instructions"),
        echo=_echo(body, is_stored=is_stored),
        is_stream=is_stream,
        is_stored=is_stored,
        previous=_text(body, "previous_response_id"),
    )


def messages_of(instructions: str, items: Sequence[Mapping[str, Any]]) -> list[JSON]:
    """Return items of a conversation as messages; calls that follow one another are one message."""
    messages: list[JSON] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    for item in items:
        kind = item.get("type", "message")
        if kind == "message":
            text = "".join(part["text"] for part in item["content"])
            messages.append({"role": _ROLES[item["role"]], "content": text})
        elif kind == "function_call":
            call = {
                "id": item["call_id"],
                "type": "function",
                "function": {"name": item["name"], "arguments": item["arguments"]},
            }
            last = messages[-1] if messages else {}
            if "tool_calls" in last:
                last["tool_calls"].append(call)
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            messages.append(
                {"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]}
            )
    return messages


def response_of(wanted: Wanted, identifier: str, created_s: int, answer: Mapping[str, Any]) -> JSON:
    """Return the response that a chat answer makes."""
    choice = (answer.get("choices") or [{}])[0]
    message = choice.get("message") or {}
    output: list[JSON] = []
    if message.get("content"):
        output.append(message_item(identifier, len(output), message["content"]))
    for call in message.get("tool_calls") or ():
        output.append(call_item(identifier, len(output), call))
    ending = _ending(choice.get("finish_reason"))
    return {
        **skeleton(wanted, identifier, created_s, str(answer.get("model", ""))),
        **ending,
        "output": output,
        "usage": usage_of(answer.get("usage")),
    }


def skeleton(wanted: Wanted, identifier: str, created_s: int, model: str) -> JSON:
    """Return a response that has begun and says nothing yet."""
    return {
        "id": f"resp_{identifier}",
        "object": "response",
        "created_at": created_s,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": model or wanted.chat.get("model", ""),
        "output": [],
        "usage": None,
        **wanted.echo,
    }


def message_item(identifier: str, index: int, text: str, status: str = "completed") -> JSON:
    """Return words of the model as an output item."""
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {
        "id": f"msg_{identifier}_{index}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content if status == "completed" else [],
    }


def call_item(
    identifier: str, index: int, call: Mapping[str, Any], status: str = "completed"
) -> JSON:
    """Return a call of a function as an output item."""
    function = call.get("function") or {}
    return {
        "id": f"fc_{identifier}_{index}",
        "type": "function_call",
        "status": status,
        "call_id": str(call.get("id") or f"call_{identifier}_{index}"),
        "name": str(function.get("name") or ""),
        "arguments": str(function.get("arguments") or "") if status == "completed" else "",
    }


def usage_of(usage: Any) -> JSON | None:
    """Return a chat answer's usage in the words of responses."""
    if type(usage) is not dict:
        return None
    tokens_in = int(usage.get("prompt_tokens") or 0)
    tokens_out = int(usage.get("completion_tokens") or 0)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {
        "input_tokens": tokens_in,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": tokens_out,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens_in + tokens_out,
    }


class Events:
    """Turns the chunks of one chat stream into the events of one response, in their order."""

    def __init__(self, wanted: Wanted, identifier: str, created_s: int) -> None:
        self._wanted = wanted
        self._identifier = identifier
        self._created_s = created_s
        self._sequence = 0
        self._response: JSON = {}
        self._open: JSON | None = None
        self._calls: dict[int, JSON] = {}
        self._finish = ""

    def take(self, chunk: Mapping[str, Any]) -> list[JSON]:
        """Return the events that a chunk makes."""
        events = [] if self._response else self._begin(str(chunk.get("model", "")))
        if type(chunk.get("usage")) is dict:
            self._response["usage"] = usage_of(chunk["usage"])
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if delta.get("content"):
                events += self._words(delta["content"])
            for call in delta.get("tool_calls") or ():
                events += self._call(call)
            self._finish = choice.get("finish_reason") or self._finish
        return events

    def end(self, *, is_stored: bool) -> list[JSON]:
        """Return the last events; the response in them says whether it was stored."""
        events = [] if self._response else self._begin("")
        events += self._close()
        self._response["store"] = is_stored
        self._response.update(_ending(self._finish))
        name = "incomplete" if self._response["status"] == "incomplete" else "completed"
        return [*events, self._event(f"response.{name}", response=self._response)]

    @property
    def response(self) -> JSON:
        """The response so far."""
        return self._response

    def _begin(self, model: str) -> list[JSON]:
        self._response = skeleton(self._wanted, self._identifier, self._created_s, model)
        shown = dict(self._response)
        return [
            self._event("response.created", response=shown),
            self._event("response.in_progress", response=shown),
        ]

    def _words(self, text: str) -> list[JSON]:
        events: list[JSON] = []
        if self._open is None or self._open["type"] != "message":
            events += self._close()
            item = message_item(self._identifier, self._index, "", "in_progress")
            events += self._add(item)
            self._open = {"type": "message", "text": "", "id": item["id"]}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            events.append(self._event("response.content_part.added", **self._place(), part=part))
        self._open["text"] += text
        events.append(
            self._event("response.output_text.delta", **self._place(), delta=text, logprobs=[])
        )
        return events

    def _call(self, call: Mapping[str, Any]) -> list[JSON]:
        number = int(call.get("index") or 0)
        events: list[JSON] = []
        if number not in self._calls:
            events += self._close()
            item = call_item(self._identifier, self._index, call, "in_progress")
            events += self._add(item)
            self._open = self._calls[number] = {"type": "function_call", **item}
        said = str((call.get("function") or {}).get("arguments") or "")
        open_call = self._calls[number]
        if said:
            open_call["arguments"] += said
            events.append(
                self._event(
                    "response.function_call_arguments.delta",
                    item_id=open_call["id"],
                    output_index=self._index,
                    delta=said,
                )
            )
        return events

    def _close(self) -> list[JSON]:
        """Return the events that end the item under way."""
        open_item, self._open = self._open, None
        if open_item is None:
            return []
        place = {"item_id": open_item["id"], "output_index": self._index}
        if open_item["type"] == "message":
            item = message_item(self._identifier, self._index, open_item["text"])
            part = item["content"][0]
            events = [
                self._event(
                    "response.output_text.done",
                    **place,
                    content_index=0,
                    text=open_item["text"],
                    logprobs=[],
                ),
                self._event("response.content_part.done", **place, content_index=0, part=part),
            ]
        else:
            item = {**open_item, "status": "completed"}
            events = [
                self._event(
                    "response.function_call_arguments.done",
                    **place,
                    arguments=item["arguments"],
                    name=item["name"],
                )
            ]
        events.append(self._event("response.output_item.done", output_index=self._index, item=item))
        self._response["output"] = [*self._response["output"], item]
        return events

    def _add(self, item: JSON) -> list[JSON]:
        return [self._event("response.output_item.added", output_index=self._index, item=item)]

    @property
    def _index(self) -> int:
        return len(self._response["output"])

    def _place(self) -> JSON:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": self._index, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> JSON:
        self._sequence += 1
        return {"type": kind, "sequence_number": self._sequence - 1, **fields}


# -- reading --------------------------------------------------------------------------------------


def _check_known(body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if name not in _PASSED | _IGNORED | _READ and value is not None:
            raise _refused(name, "it is not served here")
    if body.get("background"):
        raise _refused("background", "responses are answered while you wait; use a batch")
    if body.get("include"):
        raise _refused("include", "there is nothing more to include")
    if body.get("truncation") not in {None, "disabled"}:
        raise _refused("truncation", "nothing is left out of an input here")
    for name in ("reasoning", "text", "metadata"):
        if body.get(name) is not None and type(body[name]) is not dict:
            raise _refused(name, "it must be an object")


def _items(given: Any, identifier: str) -> list[JSON]:
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if type(given) is not list or not given:
        raise _refused("input", "it must be a text or a list of items")
    found = []
    for number, item in enumerate(given):
        if type(item) is not dict:
            raise _refused("input", "its items must be objects")
        read = _item(item, f"{identifier}_{number}")
        if read is not None:
            found.append(read)
    return found


def _item(item: Mapping[str, Any], name: str) -> JSON | None:
    match item.get("type", "message"):
        case "message":
            if item.get("role") not in _ROLES:
                raise _refused("input", f"roles are {', '.join(_ROLES)}")
            content = _content(item)
            return {
                "id": f"msg_in_{name}",
                "type": "message",
                "role": item["role"],
                "status": "completed",
                "content": content,
            }
        case "function_call":
            fields: tuple[str, ...] = ("call_id", "name", "arguments")
        case "function_call_output":
            fields = ("call_id", "output")
        case "reasoning":
            return None
        case kind:
            raise _refused("input", f"items of type {str(kind)[:40]!r} are not served here")
    if type(item.get("output")) is list:
        item = {**item, "output": "".join(p["text"] for p in _parts(item["output"]))}
    if not all(isinstance(item.get(field), str) for field in fields):
        raise _refused("input", f"a {item['type']} has the texts {', '.join(fields)}")
    kept = {field: item[field] for field in fields}
    return {"id": f"fc_in_{name}", "type": item["type"], "status": "completed", **kept}


def _content(item: Mapping[str, Any]) -> list[JSON]:
    content = item.get("content")
    kind = "output_text" if item["role"] == "assistant" else "input_text"
    if isinstance(content, str):
        return [{"type": kind, "text": content}]
    return [{"type": kind, "text": part["text"]} for part in _parts(content)]


def _parts(content: Any) -> list[JSON]:
    if type(content) is not list:
        raise _refused("input", "content must be a text or a list of parts")
    for part in content:
        is_text = type(part) is dict and part.get("type") in _TEXTS
        if not is_text or not isinstance(part.get("text"), str):
            raise _refused("input", f"the parts served here are {', '.join(sorted(_TEXTS))}")
    return content


def _tools(given: Any) -> list[JSON]:
    if given is None:
        return []
    if type(given) is not list:
        raise _refused("tools", "it must be a list")
    for tool in given:
        if type(tool) is not dict or tool.get("type") != "function":
            raise _refused("tools", "functions are the tools served here")
    names = ("name", "description", "parameters", "strict")
    return [
        {
            "type": "function",
            "function": {name: tool[name] for name in names if tool.get(name) is not None},
        }
        for tool in given
    ]


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return choice
    if type(choice) is dict and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    raise _refused("tool_choice", "use auto, none, required or a function")


def _response_format(text: Any) -> JSON | None:
    form = (text or {}).get("format")
    if form is None or type(form) is not dict or form.get("type") == "text":
        return None
    if form.get("type") == "json_object":
        return {"type": "json_object"}
    if form.get("type") == "json_schema":
        schema = {name: value for name, value in form.items() if name != "type"}
        return {"type": "json_schema", "json_schema": schema}
    raise _refused("text", "formats are text, json_object and json_schema")


def _echo(body: Mapping[str, Any], *, is_stored: bool) -> JSON:
    return {
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata") or {},
        "parallel_tool_calls": body.get("parallel_tool_calls", True) is not False,
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": body.get("reasoning") or {"effort": None, "summary": None},
        "store": is_stored,
        "temperature": body.get("temperature"),
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p"),
        "truncation": "disabled",
        "user": body.get("user"),
    }


def _ending(reason: Any) -> JSON:
    if reason == "length":
        details = {"reason": "max_output_tokens"}
        return {"status": "incomplete", "incomplete_details": details}
    return {"status": "completed"}


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and type(value) is not bool:
        raise _refused(name, "it must be true or false")
    return value is True


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise _refused(name, "it must be a text")
    return value or ""


def _refused(field: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{field!r} cannot be used so: {why}", details={"param": field})

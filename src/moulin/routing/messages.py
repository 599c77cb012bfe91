"""Messages of a chat: their roles, their parts, calls made earlier, and Mistral's safety prompt.

It decides which messages go to a replica, and brings calls of earlier answers into the one form
that chat templates know. It never judges words.

Source: OpenAI API reference (chat messages); Mistral API reference (guardrailing).
"""

import json
from typing import Any, Final

from moulin.routing.parameters import bad, missing, unsupported

ROLES: Final = ("user", "assistant", "system", "tool", "developer", "function")
TEXT_PARTS: Final = ("refusal", "text", "thinking")
SAFE_PROMPT: Final = (
    "Always assist with care, respect, and truth. Respond with utmost utility yet securely. "
    "Avoid harmful, unethical, prejudiced, or negative content. Ensure replies promote fairness "
    "and positivity."
)
"""What Mistral's service puts before a conversation with `safe_prompt`."""


def check_messages(body: dict[str, Any]) -> None:
    """Check the messages of a chat request and normalise their calls, in place.

    Raises `InvalidRequest` naming the message by its number.
    """
    messages = body.get("messages")
    if type(messages) is not list or not messages:
        raise missing("messages", "a list with at least one message")
    for message in messages:
        if type(message) is not dict:
            raise bad("messages", "a list of objects", "invalid_type")
        if (
            type(message.get("content")) is not str
            or message.get("role") not in ROLES
            or "tool_calls" in message
        ):
            _check_unusual(messages, message)


def make_safe(body: dict[str, Any]) -> int:
    """Put the safety prompt before the conversation; return the bytes that were added."""
    messages = body["messages"]
    first = messages[0]
    if first["role"] == "system" and type(first["content"]) is str:
        # One system message: some templates refuse a second one.
        first["content"] = f"{SAFE_PROMPT}\n\n{first['content']}"
    else:
        messages.insert(0, {"role": "system", "content": SAFE_PROMPT})
    return len(SAFE_PROMPT) + 64


def _check_unusual(messages: list[Any], message: dict[str, Any]) -> None:
    field = f"messages[{next(n for n, each in enumerate(messages) if each is message)}]"
    if message.get("role") not in ROLES:
        raise bad(f"{field}.role", f"one of {', '.join(sorted(ROLES))}")
    content = message.get("content")
    calls = message.get("tool_calls")
    if type(content) is list:
        _check_parts(field, content)
    elif content is None:
        if message.get("role") != "assistant" or not calls:
            raise missing(f"{field}.content", "a text or a list of parts")
    elif type(content) is not str:
        raise bad(f"{field}.content", "a text or a list of parts", "invalid_type")
    if calls is None:
        message.pop("tool_calls", None)
    elif type(calls) is not list:
        raise bad(f"{field}.tool_calls", "a list", "invalid_type")
    else:
        for number, call in enumerate(calls):
            _check_call(f"{field}.tool_calls[{number}]", call)


def _check_parts(field: str, parts: list[Any]) -> None:
    """Refuse parts whose tokens the bytes of the body do not bound, such as an address of an image."""
    for part in parts:
        if type(part) is not dict or type(part.get("type")) is not str:
            raise bad(f"{field}.content", "a list of objects with a 'type'", "invalid_type")
        if part["type"] not in TEXT_PARTS:
            served = ", ".join(TEXT_PARTS)
            raise unsupported(f"{field}.content", f"the parts served here are {served}")


def _check_call(field: str, call: Any) -> None:
    function = call.get("function") if type(call) is dict else None
    if type(function) is not dict or type(function.get("name")) is not str:
        raise bad(field, "an object with a 'function' and its 'name'", "invalid_type")
    call["type"] = "function"
    arguments = function.get("arguments", "{}")
    if type(arguments) is dict:
        # Mistral's clients send an object as well.
        arguments = json.dumps(arguments, ensure_ascii=False)
    if type(arguments) is not str:
        raise bad(f"{field}.function.arguments", "JSON as text", "invalid_type")
    function["arguments"] = arguments

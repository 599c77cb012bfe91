"""Answers that go to the client in another shape than a replica gives them.

It decides how a whole answer and a stream of events are rewritten for one request: calls of tools
out of words, a filled-in text as a chat, the log probabilities of completions as OpenAI writes
them. It never fails a request: what it does not understand goes on as it came. Requests without a
form pay nothing for it.

Source: OpenAI API reference (chat, completions), Mistral API reference (chat, fim).
"""

from collections.abc import Iterator
from typing import Any, Final, Protocol

import orjson

from moulin.gateway.identifiers import call_id
from moulin.routing.calls import CallReader
from moulin.routing.requests import Ask, Dialect
from moulin.routing.tools import Offer

_EVENT_END: Final = b"\n\n"
_DATA: Final = b"data:"


class Form(Protocol):
    """The shape one request's answer goes out in; it lives as long as the request."""

    def whole(self, body: bytes) -> bytes:
        """Return the client's form of a complete answer, JSON both."""
        ...

    def piece(self, data: bytes) -> bytes:
        """Return the client's form of some whole events, which may be none or more of them."""
        ...

    def end(self) -> bytes:
        """Return the events held back, when the stream ended well; `[DONE]` follows."""
        ...


def make_form(
    dialect: Dialect, ask: Ask, identifier: bytes, *, is_mistral: bool
) -> "ToolForm | TextForm":
    """Return the form of an answer that needs one."""
    if ask.offer is not None:
        return ToolForm(ask.offer, identifier, is_mistral=is_mistral)
    return TextForm(is_chat=dialect.path == "/v1/fim/completions")


class ToolForm:
    """Calls of tools, out of the words of an answer."""

    __slots__ = ("_chunk", "_identifier", "_is_mistral", "_offer", "_reader", "_told")

    def __init__(self, offer: Offer, identifier: bytes, *, is_mistral: bool) -> None:
        self._offer = offer
        self._identifier = identifier
        self._is_mistral = is_mistral
        self._reader = CallReader(offer)
        self._told = 0
        self._chunk: dict[str, Any] | None = None

    def whole(self, body: bytes) -> bytes:
        """Return the answer with its calls."""
        answer = _loads(body)
        choices = answer.get("choices") if type(answer) is dict else None
        if type(choices) is not list:
            return body
        for choice in choices:
            message = choice.get("message") if type(choice) is dict else None
            if type(message) is dict and type(message.get("content")) is str:
                self._rewrite(choice, message)
        return orjson.dumps(answer)

    def piece(self, data: bytes) -> bytes:
        """Return the events with the words that are no calls, and the calls before the last one."""
        return b"".join(self._events(data))

    def end(self) -> bytes:
        """Return what is held of an answer whose last event said no reason."""
        if self._chunk is None:
            return b""
        chunk, choice = self._chunk, self._chunk["choices"][0]
        return b"".join(self._last(chunk, {**choice, "finish_reason": "stop"}, ""))

    def _rewrite(self, choice: dict[str, Any], message: dict[str, Any]) -> None:
        reader = CallReader(self._offer)
        words = (reader.read(message["content"]) + reader.end()).strip()
        if not reader.calls:
            return
        message["content"] = words or ("" if self._is_mistral else None)
        message["tool_calls"] = [
            self._call(number, name, arguments)
            for number, (name, arguments) in enumerate(reader.calls)
        ]
        if choice.get("finish_reason") == "stop":
            choice["finish_reason"] = "tool_calls"

    def _events(self, data: bytes) -> Iterator[bytes]:
        for event in data.split(_EVENT_END):
            chunk = _loads(event[len(_DATA) :]) if event.startswith(_DATA) else None
            choices = chunk.get("choices") if type(chunk) is dict else None
            if chunk is None or not choices or type(choices[0].get("delta")) is not dict:
                if event:
                    yield event + _EVENT_END
                continue
            yield from self._choice(chunk, choices[0])

    def _choice(self, chunk: dict[str, Any], choice: dict[str, Any]) -> Iterator[bytes]:
        delta = choice["delta"]
        text = delta.get("content")
        shown = self._reader.read(text) if type(text) is str and text else ""
        if choice.get("finish_reason") is not None:
            self._chunk = None
            yield from self._last(chunk, choice, shown)
            return
        self._chunk = chunk
        if shown or not text:
            if shown:
                choice["delta"] = {**delta, "content": shown}
            yield _event(chunk)
        elif delta.get("role"):
            # Said at once, so that the client knows that an answer has begun.
            yield _event(_with(chunk, {"role": delta["role"], "content": ""}))
        yield from self._calls(chunk)

    def _last(self, chunk: dict[str, Any], choice: dict[str, Any], shown: str) -> Iterator[bytes]:
        words = shown + self._reader.end()
        if words:
            yield _event(_with(chunk, {"content": words}))
        yield from self._calls(chunk)
        reason = choice.get("finish_reason")
        if reason == "stop" and self._told:
            reason = "tool_calls"
        delta = {"content": ""} if self._is_mistral else {}
        yield _event(_with(chunk, delta, reason))

    def _calls(self, chunk: dict[str, Any]) -> Iterator[bytes]:
        """Yield the calls found since the last time; OpenAI's clients expect name, then arguments."""
        while self._told < len(self._reader.calls):
            number = self._told
            self._told += 1
            name, arguments = self._reader.calls[number]
            call = {"index": number, **self._call(number, name, arguments)}
            if self._is_mistral:
                yield _event(_with(chunk, {"content": "", "tool_calls": [call]}))
                continue
            opening = {**call, "function": {"name": name, "arguments": ""}}
            yield _event(_with(chunk, {"tool_calls": [opening]}))
            rest = {"index": number, "function": {"arguments": arguments}}
            yield _event(_with(chunk, {"tool_calls": [rest]}))

    def _call(self, number: int, name: str, arguments: str) -> dict[str, Any]:
        identifier = call_id(self._identifier, number, is_mistral=self._is_mistral)
        function = {"name": name, "arguments": arguments}
        return {"id": identifier, "type": "function", "function": function}


class TextForm:
    """A text completion as OpenAI's clients read it, or as the chat that Mistral's fim answers."""

    __slots__ = ("_at", "_has_begun", "_is_chat")

    def __init__(self, *, is_chat: bool) -> None:
        self._is_chat = is_chat
        self._has_begun = False
        self._at = 0

    def whole(self, body: bytes) -> bytes:
        """Return the answer in its form."""
        answer = _loads(body)
        if type(answer) is not dict or type(answer.get("choices")) is not list:
            return body
        if self._is_chat:
            answer["object"] = "chat.completion"
            for choice in answer["choices"]:
                choice["message"] = {"role": "assistant", "content": choice.pop("text", "")}
                choice.pop("logprobs", None)
        else:
            for choice in answer["choices"]:
                self._figures(choice)
        return orjson.dumps(answer)

    def piece(self, data: bytes) -> bytes:
        """Return the events in their form."""
        return b"".join(
            self._chunk(event) + _EVENT_END for event in data.split(_EVENT_END) if event
        )

    def end(self) -> bytes:
        """Return nothing: no event is held back."""
        return b""

    def _chunk(self, event: bytes) -> bytes:
        chunk = _loads(event[len(_DATA) :]) if event.startswith(_DATA) else None
        if type(chunk) is not dict or type(chunk.get("choices")) is not list:
            return event
        if self._is_chat:
            chunk["object"] = "chat.completion.chunk"
        for choice in chunk["choices"]:
            if not self._is_chat:
                self._figures(choice)
                continue
            role = {} if self._has_begun else {"role": "assistant"}
            choice["delta"] = {**role, "content": choice.pop("text", "")}
            choice.pop("logprobs", None)
            self._has_begun = True
        return b"data: " + orjson.dumps(chunk)

    def _figures(self, choice: dict[str, Any]) -> None:
        """Write log probabilities as completions have them; llama.cpp writes them as chats do."""
        figures = choice.get("logprobs")
        tokens = figures.get("content") if type(figures) is dict else None
        if type(tokens) is not list:
            return
        offsets = []
        for token in tokens:
            offsets.append(self._at)
            self._at += len(token["token"])
        choice["logprobs"] = {
            "tokens": [token["token"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": [
                {each["token"]: each["logprob"] for each in token.get("top_logprobs", ())}
                for token in tokens
            ],
            "text_offset": offsets,
        }


def _with(
    chunk: dict[str, Any], delta: dict[str, Any], finish_reason: str | None = None
) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {**chunk, "choices": [choice]}


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(chunk) + _EVENT_END


def _loads(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None

"""What all clients are asked: one tool, one schema, one batch, one second of sound."""

import io
import json
import math
import struct
import time
import wave
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Feature = Callable[[], object]

MESSAGES: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
CITY: Any = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather of a city", "parameters": CITY},
}
CLOCK: Any = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Time in a zone",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    },
}
TOOLS: Any = [WEATHER, CLOCK]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {"name": "place", "schema": CITY, "strict": True},
}
COUNTING = "1, 2, 3, 4, 5, 6,"
WAIT_S = 120.0


class Unsupported(Exception):
    """What this needs is not there."""


@dataclass(frozen=True)
class Settings:
    """Where to go and what is served there; an empty model name means that none is.

    `limited_key` may ask once a minute.
    """

    url: str
    key: str
    limited_key: str
    chat: str
    embed: str = ""
    transcribe: str = ""
    speak: str = ""

    @property
    def base_url(self) -> str:
        """Address as OpenAI's clients want it."""
        return f"{self.url}/v1"

    def model(self, ability: str) -> str:
        """Return the model for something; raises `Unsupported` when none is served."""
        name = str(getattr(self, ability))
        if not name:
            raise Unsupported("no model for it is served")
        return name


def expect(condition: object, what: str) -> None:
    """Fail unless the condition holds; works under -O too."""
    if not condition:
        raise AssertionError(what)


def check_call(name: str, arguments: str | dict[str, Any]) -> None:
    """Expect a real call of the weather tool."""
    found = json.loads(arguments) if isinstance(arguments, str) else arguments
    expect(name == "get_weather", f"another tool was called: {name}")
    expect(found.get("city") in {"Paris", "Rome"}, f"the arguments do not fit: {found}")


def check_any_call(name: str) -> None:
    """Expect the call of a tool that was offered."""
    expect(name in {"get_weather", "get_time"}, f"an unknown tool was called: {name}")


def check_place(text: str | None) -> None:
    """Expect JSON of the schema."""
    expect(json.loads(text or "")["city"] in {"Paris", "Rome"}, f"not of the schema: {text}")


def check_stopped(text: str | None, reason: str | None) -> None:
    """Expect an answer that ends before the stop word."""
    expect("8" not in (text or ""), "the stop word is in the answer")
    expect(reason == "stop", f"it ended for another reason: {reason}")


def check_same(texts: Iterable[str | None]) -> None:
    """Expect answers of one seed to be one answer."""
    found = list(texts)
    expect(found[0] and len(set(found)) == 1, "one seed, two answers")


def check_vectors(vectors: list[list[float]]) -> None:
    """Expect two vectors of unit length and a plausible size."""
    expect(len(vectors) == 2, f"{len(vectors)} vectors")
    for vector in vectors:
        expect(len(vector) >= 64, f"a vector of {len(vector)}")
        length = math.sqrt(sum(each * each for each in vector))
        expect(0.9 < length < 1.1, f"a vector of length {length}")


def raised(call: Feature) -> Exception:
    """Return what a call raises; not raising is a failure."""
    try:
        call()
    except Exception as cause:  # noqa: BLE001 - clients raise what they like
        return cause
    raise AssertionError("it was not refused")


def check_error(cause: Any, status: int) -> None:
    """Expect an error of the client's own kind with the status of the service."""
    found = getattr(cause, "status_code", None)
    expect(found == status, f"{type(cause).__name__} {found} instead of {status}: {cause}")


def batch_lines(model: str) -> bytes:
    """Return a batch of two lines."""
    body = {"model": model, "messages": MESSAGES, "max_tokens": 4}
    lines = [
        {"custom_id": f"line-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for n in range(2)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def mistral_lines() -> bytes:
    """Return a batch of two lines as Mistral has them: the job names the model."""
    body = {"messages": MESSAGES, "max_tokens": 4}
    lines = [{"custom_id": f"line-{n}", "body": body} for n in range(2)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that takes its time."""
    until_s = time.monotonic() + WAIT_S
    while not condition():
        expect(time.monotonic() < until_s, f"never: {what}")
        time.sleep(0.5)


def sound() -> bytes:
    """Return one second of a tone as WAV."""
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        for at in range(16_000):
            file.writeframes(struct.pack("<h", int(8000 * math.sin(at * 440 * math.tau / 16_000))))
    return data.getvalue()


class ChatChecks(ABC):
    """What clients whose answers have OpenAI's shape check alike; a client overrides what it cannot."""

    @abstractmethod
    def _ask(self, **fields: Any) -> Any:
        """Return the client's answer to a chat with these fields."""

    def tool_choice_named(self) -> None:
        """The one tool that was named is called."""
        answer = self._ask(tools=TOOLS, tool_choice=NAMED, max_tokens=80)
        (call,) = answer.choices[0].message.tool_calls
        check_call(call.function.name, call.function.arguments)

    def json_schema(self) -> None:
        """The answer is of the schema."""
        answer = self._ask(response_format=SCHEMA, max_tokens=60)
        check_place(answer.choices[0].message.content)

    def logprobs(self) -> None:
        """Each token comes with two alternatives."""
        answer = self._ask(logprobs=True, top_logprobs=2, max_tokens=3)
        tokens = answer.choices[0].logprobs.content
        expect(all(len(token.top_logprobs) == 2 for token in tokens), "not two alternatives")

    def n(self) -> None:
        """Two completions come, numbered."""
        answer = self._ask(n=2, temperature=1.5, max_tokens=8)
        expect([choice.index for choice in answer.choices] == [0, 1], "not two choices")

    def seed(self) -> None:
        """One seed gives one answer."""
        answers = [self._ask(seed=7, temperature=1.5).choices[0] for _ in range(2)]
        check_same(choice.message.content for choice in answers)

    def stop(self) -> None:
        """The answer ends before a word it would have said."""
        word = self._ask(temperature=0).choices[0].message.content.split()[2]
        stopped = self._ask(temperature=0, stop=[word]).choices[0]
        expect(word not in stopped.message.content, "the stop word is in the answer")
        expect(stopped.finish_reason == "stop", f"ended with {stopped.finish_reason}")

"""The `InferenceClient` of `huggingface_hub`, as far as it speaks OpenAI's dialect."""

from typing import Any

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from benchmarks.stock_clients import shared as s


def features(settings: s.Settings) -> dict[str, s.Feature]:
    """Return what the package can do, each as a call."""
    found = _Chat(settings)
    return {
        "chat": found.chat,
        "stream": found.stream,
        "tools": found.tools,
        "tool_choice_named": found.tool_choice_named,
        "json_schema": found.json_schema,
        "logprobs": found.logprobs,
        "n": found.n,
        "seed": found.seed,
        "stop": found.stop,
        "stream_usage": found.stream_usage,
        "errors": found.errors,
    }


class _Chat(s.ChatChecks):
    def __init__(self, settings: s.Settings) -> None:
        self._settings = settings
        self._client = InferenceClient(base_url=settings.base_url, api_key=settings.key)

    def _ask(self, client: InferenceClient | None = None, **fields: Any) -> Any:
        asked = {
            "model": self._settings.chat,
            "messages": s.MESSAGES,
            "max_tokens": 24,
            **fields,
        }
        return (client or self._client).chat_completion(**asked)

    def chat(self) -> None:
        answer = self._ask()
        s.expect(answer.choices[0].message.content, "no words")
        s.expect(answer.usage.completion_tokens > 0, "no usage")

    def stream(self) -> None:
        words = [c.choices[0].delta.content for c in self._ask(stream=True) if c.choices]
        s.expect(len([word for word in words if word]) > 1, "not in pieces")

    def tools(self) -> None:
        answer = self._ask(tools=s.TOOLS, tool_choice="required", max_tokens=80)
        (call,) = answer.choices[0].message.tool_calls
        s.check_any_call(call.function.name)
        spoken = {"role": "assistant", "content": None, "tool_calls": [dict(call)]}
        result = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}
        turns = [*s.MESSAGES, spoken, result]
        s.expect(self._ask(messages=turns, tools=s.TOOLS).choices, "no answer to a result")

    def stream_usage(self) -> None:
        options: Any = {"include_usage": True}
        usages = [c.usage for c in self._ask(stream=True, stream_options=options) if c.usage]
        s.expect(usages and usages[-1].completion_tokens > 0, "no usage at the end")

    def errors(self) -> None:
        address = self._settings.base_url
        stranger = InferenceClient(base_url=address, api_key="mk_wrong")
        s.check_error(_status(s.raised(lambda: self._ask(stranger))), 401)
        s.check_error(_status(s.raised(lambda: self._ask(model="nothing-of-that-name"))), 404)
        s.check_error(_status(s.raised(lambda: self._ask(temperature=9.0))), 400)
        limited = InferenceClient(base_url=address, api_key=self._settings.limited_key)
        refused = None
        for _ in range(2):
            try:
                self._ask(limited, max_tokens=2)
            except HfHubHTTPError as cause:
                refused = _status(cause)
        s.check_error(refused, 429)


class _Status(Exception):
    """An error of this client with its status where the others have it."""

    def __init__(self, cause: Any) -> None:
        super().__init__(str(cause))
        self.status_code = getattr(getattr(cause, "response", None), "status_code", None)


def _status(cause: Exception) -> Exception:
    return _Status(cause)

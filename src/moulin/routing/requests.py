"""What a completion request asks for, and the most it can use.

It decides which fields go upstream: a field that is not known is refused, because a replica could
read it as a longer answer than the one that was reserved (llama.cpp's `n_predict` overrides
`max_tokens`). So is more than one completion in one request: llama.cpp reports the usage of the
first alone, so the others could be counted neither for the client nor for the bill. It never looks
at the words of a prompt.

Source: OpenAI API reference (chat and completions), Mistral API reference, llama.cpp server README.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from moulin.domain.errors import InvalidRequest
from moulin.domain.snapshot import ModelView

INPUT_TOKENS_MARGIN: Final = 64
"""Tokens a chat template adds beyond the bytes of the body: role marks, a default system prompt."""
TOOLS_TOKENS_MARGIN: Final = 256
"""What a template adds to explain tools to the model."""


_SAMPLING: Final = frozenset(
    {
        "model", "stream", "stream_options", "max_tokens", "n", "seed", "stop", "temperature",
        "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
        "logit_bias", "logprobs", "response_format", "ignore_eos",
    }
)  # fmt: skip


class Dialect(NamedTuple):
    """One of the two request shapes: the path it comes on and goes to, the fields that go along."""

    path: str
    forwarded: frozenset[str]
    is_chat: bool


CHAT: Final = Dialect(
    "/v1/chat/completions",
    _SAMPLING
    | {
        "messages", "tools", "tool_choice", "parallel_tool_calls", "top_logprobs",
        "chat_template_kwargs", "reasoning_effort",
    },
    is_chat=True,
)  # fmt: skip
TEXT: Final = Dialect("/v1/completions", _SAMPLING | {"prompt", "suffix", "echo"}, is_chat=False)
_RENAMED: Final = {"random_seed": "seed", "max_completion_tokens": "max_tokens"}
IGNORED: Final = frozenset(
    {
        "audio", "best_of", "guardrails", "metadata", "modalities", "prediction", "prompt_cache_key",
        "prompt_cache_retention", "prompt_mode", "safe_prompt", "safety_identifier", "service_tier",
        "store", "user", "verbosity", "web_search_options",
    }
)  # fmt: skip
"""Known fields of the OpenAI and Mistral APIs that have no meaning here; the answer names them."""


_TEXT_PARTS: Final = ("refusal", "text", "thinking")


class Ask(NamedTuple):
    """What the gateway must know of a request; a tuple because one is made for every request.

    `tokens_output_max` is 0 when the client did not say.
    """

    model: str
    is_stream: bool
    wants_usage: bool
    tokens_output_max: int
    has_tools: bool
    ignored: tuple[str, ...]


def read_request(dialect: Dialect, body: Any) -> Ask:
    """Check a parsed body and normalise it in place for the replica.

    Afterwards `body` holds forwarded fields only, with Mistral's names replaced by OpenAI's.
    Raises `InvalidRequest` for an unknown field, a missing one or a value out of range.
    """
    if type(body) is not dict:
        raise InvalidRequest("the body must be a JSON object")
    ignored: tuple[str, ...] = ()
    if not body.keys() <= dialect.forwarded:
        ignored = _normalise(dialect, body)
    model = body.get("model")
    if type(model) is not str or not model:
        raise _bad("model", "the name of a model; GET /v1/models lists them")
    stream = body.get("stream")
    if stream is not None and type(stream) is not bool:
        raise _bad("stream", "true or false")
    tokens = body.get("max_tokens")
    if tokens is not None and (type(tokens) is not int or tokens < 1):
        raise _bad("max_tokens", "an integer of 1 or more")
    if dialect.is_chat:
        _check_messages(body)
    else:
        _check_prompt(body)
    if "n" in body:
        _check_choices(body)
    return Ask(
        model,
        stream is True,
        stream is True and _wants_usage(body),
        tokens or 0,
        bool(body.get("tools")),
        ignored,
    )


def output_limit(ask: Ask, model: ModelView) -> int:
    """Return the tokens one completion may have: what was asked, else the default, within context."""
    return min(ask.tokens_output_max or model.tokens_output_default, model.context_tokens)


def input_bound(ask: Ask, model: ModelView, body_bytes: int) -> int:
    """Return the most tokens a prompt of `body_bytes` JSON bytes can be.

    Byte-level vocabularies have no token shorter than a byte, and JSON only lengthens text.
    """
    margin = INPUT_TOKENS_MARGIN + (TOOLS_TOKENS_MARGIN if ask.has_tools else 0)
    return min(body_bytes + margin, model.context_tokens)


def _normalise(dialect: Dialect, body: dict[str, Any]) -> tuple[str, ...]:
    ignored = []
    forwarded = dialect.forwarded
    for name in [name for name in body if name not in forwarded]:
        value = body.pop(name)
        if name == "best_of":
            _refuse_best_of(value)
        if name in _RENAMED:
            if value is not None:
                body[_RENAMED[name]] = value
        elif name in IGNORED:
            ignored.append(name)
        elif value is not None:
            raise InvalidRequest(
                f"{name!r} is not a known field of this request",
                hint="leave it out, or check its spelling",
                details={"param": name},
            )
    return tuple(sorted(ignored))


def _refuse_best_of(value: Any) -> None:
    if value is not None and value != 1:
        raise _bad("best_of", "1: candidates that are not returned are not served")


def _wants_usage(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if type(options) is not dict:
        raise _bad("stream_options", "an object")
    return options.get("include_usage") is True


def _check_choices(body: Mapping[str, Any]) -> None:
    choices = body["n"]
    if choices is None:
        return
    if type(choices) is not int or choices < 1:
        raise _bad("n", "the number 1")
    if choices > 1:
        raise _one_only("n", f"{choices} completions")


def _check_messages(body: Mapping[str, Any]) -> None:
    messages = body.get("messages")
    if type(messages) is not list or not messages:
        raise _bad("messages", "a list with at least one message")
    for message in messages:
        if type(message) is not dict:
            raise _bad("messages", "a list of objects")
        if type(message.get("content")) is list:
            _check_parts(message["content"])


def _check_parts(parts: list[Any]) -> None:
    """Refuse parts whose tokens the bytes of the body do not bound, such as an address of an image."""
    for part in parts:
        if type(part) is not dict or part.get("type") not in _TEXT_PARTS:
            raise _bad("messages", f"text: the parts served here are {', '.join(_TEXT_PARTS)}")


def _check_prompt(body: Mapping[str, Any]) -> None:
    prompt = body.get("prompt")
    if type(prompt) is str:
        return
    if type(prompt) is not list or not prompt:
        raise _bad("prompt", "text or token numbers")
    if type(prompt[0]) is not int and len(prompt) > 1:
        raise _one_only("prompt", f"{len(prompt)} prompts")


def _one_only(field: str, asked: str) -> InvalidRequest:
    return InvalidRequest(
        f"{asked} in one request are not supported: the model server counts the tokens of one",
        hint="send one request for each",
        details={"param": field},
    )


def _bad(field: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"{field!r} must be {expected}", details={"param": field})

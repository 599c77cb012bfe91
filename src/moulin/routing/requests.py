"""What a completion request asks for, and the most it can use.

It decides which fields go upstream: a field that is not known is refused, or dropped where the
client asks for that, because a replica could read it as a longer answer than the one that was
reserved (llama.cpp's `n_predict` overrides `max_tokens`). Several completions become several
requests upstream: llama.cpp reports the usage of the first alone, so the others could be counted
neither for the client nor for the bill. It never looks at the words of a prompt.

Source: OpenAI API reference (chat and completions), Mistral API reference, llama.cpp server README.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from moulin.domain.errors import InvalidRequest
from moulin.domain.snapshot import ModelView
from moulin.routing.messages import check_messages, make_safe
from moulin.routing.parameters import (
    CHAT_CHECKS,
    SAMPLING_CHECKS,
    TEXT_CHECKS,
    Check,
    bad,
    missing,
    unsupported,
    user_of,
)
from moulin.routing.tools import Offer, read_offer

CHOICES_MAX: Final = 16
"""Completions of one request; each is one request upstream."""
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


@dataclass(frozen=True, slots=True)
class Dialect:
    """A shape of requests: the path it comes on, the path it goes to, the fields that go along."""

    path: str
    forwarded: frozenset[str]
    is_chat: bool
    checks: Mapping[str, Check]
    upstream_path: str


CHAT: Final = Dialect(
    "/v1/chat/completions",
    _SAMPLING
    | {
        "messages", "tools", "tool_choice", "parallel_tool_calls", "top_logprobs",
        "chat_template_kwargs", "reasoning_effort",
    },
    is_chat=True,
    checks=CHAT_CHECKS,
    upstream_path="/v1/chat/completions",
)  # fmt: skip
TEXT: Final = Dialect(
    "/v1/completions",
    _SAMPLING | {"prompt", "suffix", "echo"},
    is_chat=False,
    checks=TEXT_CHECKS,
    upstream_path="/v1/completions",
)
FIM: Final = Dialect(
    "/v1/fim/completions",
    frozenset(
        {
            "model", "stream", "max_tokens", "seed", "stop", "temperature", "top_p", "prompt",
            "suffix",
        }
    ),
    is_chat=False,
    checks=SAMPLING_CHECKS,
    upstream_path="/v1/completions",
)  # fmt: skip
"""Mistral's: the text between a prompt and a suffix, answered in the shape of a chat."""
_RENAMED: Final = {"random_seed": "seed", "max_completion_tokens": "max_tokens"}
IGNORED: Final = frozenset(
    {
        "audio", "best_of", "guardrails", "metadata", "modalities", "prediction", "prompt_cache_key",
        "prompt_cache_retention", "prompt_mode", "safe_prompt", "safety_identifier", "service_tier",
        "store", "user", "verbosity", "web_search_options",
    }
)  # fmt: skip
"""Known fields of the OpenAI and Mistral APIs that have no meaning here; the answer names them."""
_SPECIAL: Final = frozenset({"n", "tools", "tool_choice"})
_NAMED_MAX: Final = 32
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(slots=True)
class Ask:
    """What the gateway must know of a request; not frozen, because one is made for every request.

    `tokens_output_max` is 0 when the client did not say. `choices` counts the completions asked
    for, `added_bytes` what was added to the prompt. `infills` when the prompt has to be brought
    into the model's form for filling in, `needs_form` when the answer goes out in another shape
    than a replica's. `user` is whom the client names as its user. With `wants_figures` usage says what
    it cost.
    """

    model: str
    is_stream: bool
    wants_usage: bool
    tokens_output_max: int
    offer: Offer | None
    ignored: tuple[str, ...]
    choices: int = 1
    added_bytes: int = 0
    infills: bool = False
    needs_form: bool = False
    user: str = ""
    wants_figures: bool = False


def read_request(dialect: Dialect, body: Any, *, drops: bool = False) -> Ask:
    """Check a parsed body and normalise it in place for the replica.

    Afterwards `body` holds forwarded fields only, with Mistral's names replaced by OpenAI's.
    With `drops`, fields that are not known are left out instead of refused.
    Raises `InvalidRequest` for an unknown field, a missing one or a value out of range.
    """
    if type(body) is not dict:
        raise InvalidRequest("the body must be a JSON object")
    ignored: tuple[str, ...] = ()
    user = ""
    is_safe = False
    if not body.keys() <= dialect.forwarded:
        is_safe = dialect.is_chat and body.get("safe_prompt") is True
        user = user_of(body)
        ignored = _normalise(dialect, body, drops=drops)
    model = body.get("model")
    if type(model) is not str or not model:
        raise missing("model", "the name of a model; GET /v1/models lists them")
    stream = body.get("stream")
    if stream is not None and type(stream) is not bool:
        raise bad("stream", "true or false", "invalid_type")
    tokens = body.get("max_tokens")
    if tokens is not None and (type(tokens) is not int or tokens < 1):
        raise bad("max_tokens", "an integer of 1 or more", "integer_below_min_value")
    checks = dialect.checks
    for name in body:
        if name in checks:
            checks[name](body)
    ask = Ask(
        model, stream is True, stream is True and _wants_usage(body), tokens or 0, None, ignored
    )
    if dialect.is_chat:
        check_messages(body)
        if not (is_safe or user) and _SPECIAL.isdisjoint(body):
            return ask
        return _special_chat(body, replace(ask, user=user), is_safe=is_safe)
    return replace(
        ask,
        user=user,
        infills=_check_prompt(dialect, body),
        choices=_choices(dialect, body),
        needs_form=_has_own_form(dialect, body),
    )


def output_limit(ask: Ask, model: ModelView) -> int:
    """Return the tokens one completion may have: what was asked, else the default, within context."""
    return min(ask.tokens_output_max or model.tokens_output_default, model.context_tokens)


def input_bound(ask: Ask, model: ModelView, body_bytes: int) -> int:
    """Return the most tokens a prompt of `body_bytes` JSON bytes can be.

    Byte-level vocabularies have no token shorter than a byte, and JSON only lengthens text.
    """
    margin = INPUT_TOKENS_MARGIN + (TOOLS_TOKENS_MARGIN if ask.offer is not None else 0)
    return min(body_bytes + ask.added_bytes + margin, model.context_tokens)


def split(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one body for each completion asked for, in the order of their choices.

    Completions of one prompt get different seeds: equal ones would answer alike.
    """
    count = body.pop("n", None) or 1
    prompt = body.get("prompt")
    prompts = prompt if type(prompt) is list and type(prompt[0]) is not int else [prompt]
    shared = {name: value for name, value in body.items() if name != "prompt"}
    seed = body.get("seed")
    parts = []
    for each in prompts:
        for number in range(count):
            part = shared if each is None else {**shared, "prompt": each}
            parts.append({**part, "seed": seed + number} if seed is not None else dict(part))
    return parts


def _normalise(dialect: Dialect, body: dict[str, Any], *, drops: bool) -> tuple[str, ...]:
    ignored = []
    forwarded = dialect.forwarded
    for name in [name for name in body if name not in forwarded]:
        value = body.pop(name)
        if name == "best_of" and not drops:
            _refuse_best_of(value)
        if name in _RENAMED:
            if value is not None:
                body[_RENAMED[name]] = value
        elif name == "safe_prompt" and dialect.is_chat:
            if value is not None and type(value) is not bool:
                raise bad(name, "true or false", "invalid_type")
        elif name in IGNORED or (drops and value is not None):
            ignored.append(name if _PLAIN_NAME.fullmatch(name) else "?")
        elif value is not None:
            raise InvalidRequest(
                f"{name[:64]!r} is not a known field of this request",
                hint="leave it out, check its spelling, or send x-moulin-drop-params: true",
                details={"param": name[:64], "code": "unknown_parameter"},
            )
    return tuple(sorted(set(ignored))[:_NAMED_MAX])


def _special_chat(body: dict[str, Any], ask: Ask, *, is_safe: bool) -> Ask:
    """Read what most requests do not have: tools, several choices, the safety prompt, a user."""
    has_tools = "tools" in body or "tool_choice" in body
    offer = read_offer(body) if has_tools else None
    return replace(
        ask,
        offer=offer,
        needs_form=offer is not None,
        choices=_choices(CHAT, body),
        added_bytes=make_safe(body) if is_safe else 0,
    )


def _refuse_best_of(value: Any) -> None:
    if value is not None and value != 1:
        raise bad("best_of", "1: candidates that are not returned are not served")


def _wants_usage(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if type(options) is not dict:
        raise bad("stream_options", "an object", "invalid_type")
    return options.get("include_usage") is True


def _choices(dialect: Dialect, body: Mapping[str, Any]) -> int:
    """Return how many completions are asked for."""
    count = body.get("n")
    if count is None:
        count = 1
    elif type(count) is not int or count < 1:
        raise bad("n", "an integer of 1 or more", "integer_below_min_value")
    if not dialect.is_chat:
        prompt = body["prompt"]
        if type(prompt) is list and type(prompt[0]) is not int:
            count *= len(prompt)
    if count > CHOICES_MAX:
        field = "n" if dialect.is_chat or count == body.get("n") else "prompt"
        raise InvalidRequest(
            f"{count} completions in one request are more than the {CHOICES_MAX} served",
            hint="send several requests",
            details={"param": field, "code": "integer_above_max_value"},
        )
    return count


def _check_prompt(dialect: Dialect, body: dict[str, Any]) -> bool:
    """Check prompt and suffix; return whether the text between the two is wanted."""
    prompt = body.get("prompt")
    if type(prompt) is not str and (
        dialect is FIM or type(prompt) is not list or not prompt or not _is_prompts(prompt)
    ):
        raise missing("prompt", "text" if dialect is FIM else "text or token numbers")
    suffix = body.get("suffix")
    if suffix is not None and type(suffix) is not str:
        raise bad("suffix", "a text", "invalid_type")
    if not suffix and dialect is TEXT:
        body.pop("suffix", None)
        return False
    if type(prompt) is not str:
        raise unsupported("suffix", "it needs one prompt, as text")
    return True


def _is_prompts(prompt: list[Any]) -> bool:
    """Say whether a list is one prompt of token numbers, or several prompts of either kind."""
    if all(type(each) is int for each in prompt):
        return True
    return all(
        type(each) is str
        or (type(each) is list and each and all(type(token) is int for token in each))
        for each in prompt
    )


def _has_own_form(dialect: Dialect, body: Mapping[str, Any]) -> bool:
    return dialect is FIM or body.get("logprobs") is not None

"""Values of request fields: which are taken, and how a wrong one is named.

It decides types and ranges once for every engine, because engines differ in what they let through.
It never quotes a value a prompt could be in: an error names the field, what was expected, and
numbers.

Source: OpenAI API reference, with its error codes; Mistral API reference; huggingface_hub (TGI).
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from moulin.domain.errors import InvalidRequest

STOPS_MAX: Final = 16
LOGPROBS_MAX: Final = 20
LOGIT_BIASES_MAX: Final = 1024
SCHEMA_NAME_MAX: Final = 64

USER_FIELDS: Final = ("user", "safety_identifier")
"""Where a request names its user; OpenAI's newer word comes second."""

Check = Callable[[dict[str, Any]], None]
"""Raises `InvalidRequest` when the field it is for has a value that is not taken."""


def bad(field: str, expected: str, code: str = "invalid_value") -> InvalidRequest:
    """Return the refusal of a field's value; `code` is the one OpenAI's service would give."""
    return InvalidRequest(f"{field!r} must be {expected}", details={"param": field, "code": code})


def missing(field: str, expected: str) -> InvalidRequest:
    """Return the refusal of a request that lacks a field."""
    return bad(field, expected, "missing_required_parameter")


def unsupported(field: str, why: str, hint: str = "") -> InvalidRequest:
    """Return the refusal of something that exists elsewhere and not here."""
    return InvalidRequest(
        f"{field!r} is not supported so: {why}",
        hint=hint,
        details={"param": field, "code": "unsupported_value"},
    )


def user_of(body: Mapping[str, Any]) -> str:
    """Return whom a request names as its user, empty for nobody."""
    for name in USER_FIELDS:
        value = body.get(name)
        if value is not None and type(value) is not str:
            raise bad(name, "a text", "invalid_type")
        if value:
            return str(value)
    return ""


def number(field: str, low: float, high: float) -> Check:
    """Make the check of a number within bounds, both included."""

    def check(body: dict[str, Any]) -> None:
        value = body[field]
        if value is None:
            return
        if type(value) not in {int, float}:
            raise bad(field, "a number", "invalid_type")
        if not low <= value <= high:
            edge = "above_max" if value > high else "below_min"
            raise bad(field, f"between {low:g} and {high:g}", f"decimal_{edge}_value")

    return check


def integer(field: str, low: int, high: int) -> Check:
    """Make the check of an integer within bounds, both included."""

    def check(body: dict[str, Any]) -> None:
        value = body[field]
        if value is None:
            return
        if type(value) is not int:
            raise bad(field, "an integer", "invalid_type")
        if not low <= value <= high:
            edge = "above_max" if value > high else "below_min"
            raise bad(field, f"between {low} and {high}", f"integer_{edge}_value")

    return check


def boolean(field: str) -> Check:
    """Make the check of true or false."""

    def check(body: dict[str, Any]) -> None:
        if body[field] is not None and type(body[field]) is not bool:
            raise bad(field, "true or false", "invalid_type")

    return check


def check_stop(body: dict[str, Any]) -> None:
    """Take one text or a short list of them; llama.cpp ignores anything else without a word."""
    stop = body["stop"]
    if stop is None or type(stop) is str:
        return
    if type(stop) is not list or not all(type(each) is str for each in stop):
        raise bad("stop", "a text or a list of texts", "invalid_type")
    if len(stop) > STOPS_MAX:
        raise bad("stop", f"at most {STOPS_MAX} texts", "array_above_max_length")


def check_logit_bias(body: dict[str, Any]) -> None:
    """Take an object from token numbers to a bias."""
    biases = body["logit_bias"]
    if biases is None:
        return
    if type(biases) is not dict or len(biases) > LOGIT_BIASES_MAX:
        raise bad("logit_bias", f"an object of at most {LOGIT_BIASES_MAX} tokens", "invalid_type")
    for token, bias in biases.items():
        if not token.isdecimal() or type(bias) not in {int, float} or not -100 <= bias <= 100:
            raise bad("logit_bias", "token numbers with a bias between -100 and 100")


def check_top_logprobs(body: dict[str, Any]) -> None:
    """Take 0 to 20, and only beside `logprobs`."""
    integer("top_logprobs", 0, LOGPROBS_MAX)(body)
    if body["top_logprobs"] is not None and body.get("logprobs") is not True:
        raise bad("top_logprobs", "left out unless 'logprobs' is true")


def check_response_format(body: dict[str, Any]) -> None:
    """Take text, json_object, or json_schema with a schema that is an object.

    A schema beside json_object is the same thing said otherwise (`value` by text-generation-inference
    and its client, `schema` by llama.cpp); engines that do not know the word would leave it out.
    """
    wanted = body["response_format"]
    if wanted is None:
        return
    if type(wanted) is not dict:
        raise bad("response_format", "an object", "invalid_type")
    schema = wanted.get("schema", wanted.get("value"))
    if wanted.get("type") in {"json_object", "json"} and type(schema) is dict:
        named = {"name": "answer", "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
        return
    kind = wanted.get("type")
    if kind not in {"text", "json_object", "json_schema"}:
        raise bad("response_format.type", "'text', 'json_object' or 'json_schema'")
    if kind != "json_schema":
        return
    inner = wanted.get("json_schema")
    if type(inner) is not dict:
        raise missing("response_format.json_schema", "an object with 'name' and 'schema'")
    if type(inner.get("schema")) is not dict:
        raise missing("response_format.json_schema.schema", "a JSON schema")


SAMPLING_CHECKS: Final[Mapping[str, Check]] = {
    "seed": integer("seed", -(2**63), 2**63 - 1),
    "temperature": number("temperature", 0, 2),
    "top_p": number("top_p", 0, 1),
    "top_k": integer("top_k", -1, 2**31 - 1),
    "min_p": number("min_p", 0, 1),
    "presence_penalty": number("presence_penalty", -2, 2),
    "frequency_penalty": number("frequency_penalty", -2, 2),
    "repetition_penalty": number("repetition_penalty", 0, 10),
    "ignore_eos": boolean("ignore_eos"),
    "logit_bias": check_logit_bias,
    "response_format": check_response_format,
    "stop": check_stop,
}
CHAT_CHECKS: Final[Mapping[str, Check]] = {
    **SAMPLING_CHECKS,
    "logprobs": boolean("logprobs"),
    "top_logprobs": check_top_logprobs,
    "parallel_tool_calls": boolean("parallel_tool_calls"),
}
TEXT_CHECKS: Final[Mapping[str, Check]] = {
    **SAMPLING_CHECKS,
    "logprobs": integer("logprobs", 0, LOGPROBS_MAX),
    "echo": boolean("echo"),
}

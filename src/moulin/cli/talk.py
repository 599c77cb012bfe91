"""One conversation with a served model over the gateway's OpenAI dialect, streamed as it is written.

It keeps what was said for the length of the conversation and nowhere else. The figures of an answer
are the gateway's own, provisional until the receipt is issued.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import httpx

from moulin.domain.errors import (
    EngineUnavailable,
    InvalidRequest,
    MoulinError,
    NotFound,
    Unavailable,
    error_by_code,
)
from moulin.domain.snapshot import ESTIMATED
from moulin.sdk import Credentials
from moulin.sdk.credentials import trust_of

TIMEOUT: Final = httpx.Timeout(300.0, connect=5.0)
_FIGURES: Final = re.compile(
    r": moulin figures=provisional cost-eur=(\S+)(?: energy-j=(\S+) co2e-g=(\S+))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One answer with what it took; the figures are text, as the gateway stated them."""

    model: str
    text: str
    tokens_input: int
    tokens_output: int
    cost_eur: str
    energy_j: str
    co2e_g: str
    receipt: str
    zone: str
    energy_class: str = ""

    @property
    def figures(self) -> str:
        """Return the line for people."""
        return (
            f"{self.tokens_input} tokens in, {self.tokens_output} out · {self.cost_eur or '?'} € · "
            f"{self.energy_j or '?'} J · {self.co2e_g or '?'} g CO2e "
            f"({'estimated' if self.energy_class == ESTIMATED else 'provisional'}) · "
            f"zone {self.zone or '?'} · {self.receipt}"
        )


@dataclass(slots=True)
class _Heard:
    """What has come of an answer so far."""

    pieces: list[str] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    figures: tuple[str, str, str] = ("", "", "")
    is_done: bool = False


class Talk:
    """A conversation; use `with`."""

    def __init__(
        self, credentials: Credentials, transport: httpx.BaseTransport | None = None
    ) -> None:
        if not credentials.gateway_url:
            raise NotFound(
                "find the gateway: its address is not known",
                hint="set MOULIN_GATEWAY_URL, or use the credentials file of `moulin up`",
            )
        self._client = httpx.Client(
            base_url=f"{credentials.gateway_url.rstrip('/')}/v1",
            headers={"authorization": f"Bearer {credentials.api_key}"},
            timeout=TIMEOUT,
            trust_env=False,
            verify=trust_of(credentials, credentials.gateway_url),
            transport=transport,
        )
        self._url = credentials.gateway_url
        self._settings: dict[str, Any] = {}
        self._messages: list[dict[str, str]] = []
        self.model = ""

    def begin(self, model: str, *, system: str, tokens_max: int, temperature: float | None) -> None:
        """Choose the model and how it shall behave.

        Raises `NotFound` when nothing is served, `InvalidRequest` when the choice is open.
        """
        self.model = model or self._only_model()
        self._settings = {"max_tokens": tokens_max}
        if temperature is not None:
            self._settings["temperature"] = temperature
        self._messages = [{"role": "system", "content": system}] if system else []

    def say(self, text: str, show: Callable[[str], None] | None) -> Said:
        """Say something, hand each piece of the answer to `show`, and return the whole of it.

        Raises the gateway's error, `EngineUnavailable` when the answer breaks off.
        """
        self._messages.append({"role": "user", "content": text})
        heard = _Heard()
        try:
            headers = self._stream(heard, show)
        except BaseException:
            self._messages.pop()
            raise
        whole = "".join(heard.pieces)
        self._messages.append({"role": "assistant", "content": whole})
        return Said(
            model=self.model,
            text=whole,
            tokens_input=int(heard.usage.get("prompt_tokens", 0)),
            tokens_output=int(heard.usage.get("completion_tokens", 0)),
            cost_eur=heard.figures[0],
            energy_j=heard.figures[1],
            co2e_g=heard.figures[2],
            receipt=headers.get("x-moulin-receipt", ""),
            zone=headers.get("x-moulin-zone", ""),
            energy_class=headers.get("x-moulin-energy-class", ""),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def _only_model(self) -> str:
        try:
            found = self._client.get("/models")
        except httpx.TransportError as cause:
            raise self._unreachable(cause) from cause
        if found.status_code != 200:
            raise _error_of(found)
        names = [str(each["id"]) for each in found.json()["data"]]
        if not names:
            raise NotFound(
                "find a model to talk to: none is served",
                hint="`moulin deploy smollm2-135m-instruct` serves a small one",
            )
        if len(names) > 1:
            raise InvalidRequest(
                f"choose a model: {len(names)} are served", hint=f"name one of {', '.join(names)}"
            )
        return names[0]

    def _stream(self, heard: _Heard, show: Callable[[str], None] | None) -> httpx.Headers:
        body = {
            "model": self.model,
            "messages": self._messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._settings,
        }
        try:
            with self._client.stream("POST", "/chat/completions", json=body) as found:
                if found.status_code != 200:
                    found.read()
                    raise _error_of(found)
                for piece in _pieces(found.iter_lines(), heard):
                    if show is not None:
                        show(piece)
                headers = found.headers
        except httpx.TransportError as cause:
            raise self._unreachable(cause) from cause
        if not heard.is_done:
            raise EngineUnavailable(
                f"hear {self.model} out: the answer broke off", hint="ask again"
            )
        return headers

    def _unreachable(self, cause: Exception) -> MoulinError:
        return Unavailable(
            f"reach the gateway at {self._url}: {type(cause).__name__}",
            hint="is it running? `moulin status` says",
        )


def _pieces(lines: Iterator[str], heard: _Heard) -> Iterator[str]:
    """Yield text as it comes, noting usage and figures on the way."""
    for line in lines:
        figures = _FIGURES.match(line)
        if figures is not None:
            heard.figures = (figures[1], figures[2] or "", figures[3] or "")
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            heard.is_done = True
            continue
        event = json.loads(data)
        if "error" in event:
            raise EngineUnavailable(f"hear the answer out: {event['error'].get('message', '')}")
        heard.usage = event.get("usage") or heard.usage
        for choice in event.get("choices", ()):
            text = choice.get("delta", {}).get("content") or ""
            if text:
                heard.pieces.append(text)
                yield text


def _error_of(found: httpx.Response) -> MoulinError:
    try:
        problem = found.json()["error"]
        return error_by_code(str(problem.get("code")))(str(problem["message"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return EngineUnavailable(f"talk to the gateway: it answered {found.status_code}")

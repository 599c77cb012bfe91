"""Requests that are no completions: vectors, transcripts and speech.

They are exchanges like any other (reserved, journaled, settled, with a receipt), only that they
count something else and that answers may be no JSON. Plain completions pay nothing for them.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

import orjson

from moulin.domain.errors import InvalidRequest
from moulin.domain.model import Ability
from moulin.gateway import answers
from moulin.gateway.edge import Inbound
from moulin.gateway.exchange import COMPLETED, Client, Exchange
from moulin.gateway.placing import Order
from moulin.gateway.records import BEGIN, END
from moulin.gateway.upstream import Replica
from moulin.gateway.usage import Bounds, Used, used, with_figures
from moulin.routing.figures import HEADERS, provisional, usage_figures
from moulin.routing.media import (
    CONTENT_TYPES,
    Media,
    check_ability,
    read_embeddings,
    read_speech,
    read_transcription,
    speech_events,
    speech_object,
    transcript,
)
from moulin.routing.requests import Ask

if TYPE_CHECKING:
    from moulin.gateway.directory import Route
    from moulin.gateway.service import Service

_TOKENS: Final = b'"tokens_input":%d'
_TOO_LONG: Final = b"too large to process"


class MediaExchange(Exchange):
    """One of the three; `_media` is what it asks for."""

    __slots__ = ("_media",)

    def __init__(
        self, service: "Service", client: Client, route: "Route", order: Order, media: Media
    ) -> None:
        super().__init__(service, client, route, order)
        self._media = media

    def upstream_request(self, replica: Replica) -> bytes:
        """Return the request as it goes to the replica."""
        view = replica.view
        head = (
            f"POST {self._order.path} HTTP/1.1\r\nhost: {view.address}\r\n"
            f"authorization: Bearer {view.key}\r\ncontent-type: {self._content_type()}\r\n"
            f"content-length: {len(self._body)}\r\n{self._more_headers()}\r\n"
        )
        return head.encode() + self._body

    def answered(self, status: int, body: bytes) -> None:
        """Settle by what was counted and pass the answer on in the client's form."""
        replica = self._replica
        if status != 200 or replica is None:
            super().answered(status, body)
            return
        self._connection = None
        try:
            amount, shown, content_type = self._answer(body)
        except (ValueError, KeyError, TypeError):
            self._answer_failed(502, b"")
            return
        if self._route.fleet is not None or replica.circuit.failures:
            self._learn(replica, amount.tokens_input + amount.tokens_output)
        tokens = (amount.tokens_input, amount.tokens_output)
        cost_neur = self._order.model.cost_neur(*tokens)
        if self._order.ask.wants_figures and content_type == answers.JSON:
            shown = with_figures(shown, usage_figures(replica.view, tokens, cost_neur))
        headers = self._headers(replica) + provisional(HEADERS, replica.view, tokens, cost_neur)
        self._last = answers.whole(200, shown, headers=headers, content_type=content_type)
        self._end(COMPLETED, amount, cost_neur)

    def _content_type(self) -> str:
        return "application/json"

    def _more_headers(self) -> str:
        return ""

    def _answer(self, body: bytes) -> tuple[Used, bytes, bytes]:
        """Return what was used, the client's body and its content type; ValueError for nonsense."""
        raise ValueError


class Embedding(MediaExchange):
    """Vectors of texts, counted in tokens."""

    __slots__ = ()

    def answered(self, status: int, body: bytes) -> None:
        """Tell a text that is too long for the model from a replica that failed."""
        if status == 500 and _TOO_LONG in body:
            limit = self._order.model.context_tokens
            error = InvalidRequest(
                f"a text of 'input' has more tokens than the {limit} that this model reads",
                details={"param": "input"},
            )
            super().answered(400, answers.error_body(error))
        else:
            super().answered(status, body)

    def _answer(self, body: bytes) -> tuple[Used, bytes, bytes]:
        answer = orjson.loads(body)
        if "id" not in answer:
            # Mistral's client refuses an answer without one; engines of OpenAI's dialect have none.
            body = b'{"id":"emb_%b",%b' % (self._order.identifier, body.lstrip()[1:])
        return used(answer["usage"], self._order.bounds, 0), body, answers.JSON


class Transcription(MediaExchange):
    """What was said in audio, counted by its length."""

    __slots__ = ()

    begin_form: ClassVar[bytes] = BEGIN.replace(_TOKENS, b'"audio_ms":%d')
    end_form: ClassVar[bytes] = END.replace(_TOKENS, b'"audio_ms":%d')
    counts_tokens: ClassVar[bool] = False

    def _content_type(self) -> str:
        return f'multipart/form-data; boundary="{self._media.boundary}"'

    def _more_headers(self) -> str:
        return f"x-moulin-audio-ms-max: {self._order.bounds.tokens_input}\r\n"

    def _answer(self, body: bytes) -> tuple[Used, bytes, bytes]:
        said = orjson.loads(body)
        counted = {"prompt_tokens": said["usage"]["audio_ms"], "completion_tokens": 0}
        shown, content_type = transcript(said, self._media)
        text = shown if isinstance(shown, bytes) else orjson.dumps(shown)
        return used(counted, self._order.bounds, 0), text, content_type


class Speech(MediaExchange):
    """Text as audio, counted in characters."""

    __slots__ = ()

    begin_form: ClassVar[bytes] = BEGIN.replace(_TOKENS, b'"characters_input":%d')
    end_form: ClassVar[bytes] = END.replace(_TOKENS, b'"characters_input":%d')
    counts_tokens: ClassVar[bool] = False

    def _answer(self, body: bytes) -> tuple[Used, bytes, bytes]:
        used_here = Used(self._media.units, 0)
        if self._media.wants_events:
            return used_here, speech_events(body, self._media), answers.EVENTS
        if self._media.is_mistral:
            return used_here, speech_object(body), answers.JSON
        return used_here, body, CONTENT_TYPES[self._media.format]


def _read_embeddings(inbound: Inbound) -> Media:
    return read_embeddings(_parsed(inbound), len(inbound.body), drops=inbound.drops_params)


def _read_speech(inbound: Inbound) -> Media:
    body = _parsed(inbound)
    return read_speech(body, drops=inbound.drops_params, is_mistral=inbound.is_mistral)


def _read_transcription(inbound: Inbound) -> Media:
    media = read_transcription(inbound.body, drops=inbound.drops_params)
    return media._replace(is_mistral=inbound.is_mistral)


def _read_translation(inbound: Inbound) -> Media:
    return read_transcription(inbound.body, drops=inbound.drops_params, is_translation=True)


_Kind = tuple[Ability, type[MediaExchange], Callable[[Inbound], Media]]
KINDS: Final[Mapping[bytes, _Kind]] = {
    b"/v1/embeddings": (Ability.EMBED, Embedding, _read_embeddings),
    b"/v1/audio/transcriptions": (Ability.TRANSCRIBE, Transcription, _read_transcription),
    b"/v1/audio/translations": (Ability.TRANSCRIBE, Transcription, _read_translation),
    b"/v1/audio/speech": (Ability.SPEAK, Speech, _read_speech),
}


def open_media(
    service: "Service", client: Client, inbound: Inbound, identifier: bytes
) -> MediaExchange:
    """Return the exchange of a request on one of the paths in `KINDS`.

    Raises `InvalidRequest` for what cannot be served, and what finding its model raises.
    """
    ability, kind, read = KINDS[inbound.path]
    media = read(inbound)
    route = service.find_route(inbound, media.model, identifier)
    check_ability(route.model, ability)
    body = inbound.body if media.boundary else orjson.dumps(media.fields)
    bounds = Bounds(media.units, 0, len(inbound.body))
    ask = Ask(media.model, False, False, 0, None, media.ignored, user=media.user)  # noqa: FBT003 - a tuple
    ask.wants_figures = inbound.wants_figures or service.limits.tells_figures
    order = Order(identifier, ask, route.model, inbound.path.decode(), body, bounds)
    return kind(service, client, route, order, media)


def _parsed(inbound: Inbound) -> Any:
    try:
        return orjson.loads(inbound.body)
    except orjson.JSONDecodeError as cause:
        raise InvalidRequest(f"read the body as JSON: character {cause.pos}") from None

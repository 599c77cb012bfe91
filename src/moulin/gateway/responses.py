"""Responses: a chat completion in another dress, kept for the tenant only where that is asked.

It decides when a response is told to its client: one to be stored is told when it is stored, or
says that it is not. The words are in `moulin.routing.responses`; money, replicas and the journal
are the exchange's. Without `store: true` nothing leaves this process but the answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import orjson

from moulin.domain.errors import InvalidRequest, MoulinError, NotFound
from moulin.domain.units import NS_PER_S
from moulin.gateway import answers
from moulin.gateway.forms import Form
from moulin.gateway.relay import Relay, Relayed
from moulin.gateway.sse import DONE
from moulin.routing.objects import API, Call
from moulin.routing.requests import CHAT
from moulin.routing.responses import (
    Events,
    Wanted,
    messages_of,
    read_response_request,
    response_of,
)

if TYPE_CHECKING:
    from moulin.gateway.edge import ClientConnection, Inbound
    from moulin.gateway.exchange import Exchange
    from moulin.gateway.service import Service

RESPONSES: Final = b"/v1/responses"
_HEAD_END: Final = b"\r\n\r\n"
_GOOD: Final = b"HTTP/1.1 200 "


class ResponseForm:
    """The shape of one response's answer, over the shape that the chat answer needs."""

    def __init__(self, inner: Form | None, wanted: Wanted, identifier: str, created_s: int) -> None:
        self._inner = inner
        self._wanted = wanted
        self._identifier = identifier
        self._created_s = created_s
        self.events = Events(wanted, identifier, created_s)

    def whole(self, body: bytes) -> bytes:
        """Return the response that a chat answer makes."""
        if self._inner is not None:
            body = self._inner.whole(body)
        answer = _loads(body)
        if type(answer) is not dict:
            return body
        return orjson.dumps(response_of(self._wanted, self._identifier, self._created_s, answer))

    def piece(self, data: bytes) -> bytes:
        """Return the events that some chunks make."""
        if self._inner is not None:
            data = self._inner.piece(data)
        return self._taken(data)

    def end(self) -> bytes:
        """Return what is held back of the chat answer; the response's own end comes later."""
        return self._taken(self._inner.end()) if self._inner is not None else b""

    def _taken(self, data: bytes) -> bytes:
        events: list[dict[str, Any]] = []
        for text in data.split(b"\n\n"):
            chunk = _loads(text.removeprefix(b"data:")) if text.startswith(b"data:") else None
            if type(chunk) is dict:
                events += self.events.take(chunk)
        return written(events)


class Responding:
    """One request for a response; to its client's connection it is an exchange."""

    def __init__(
        self,
        service: "Service",
        client: "ClientConnection",
        inbound: "Inbound",
        identifier: bytes,
        wanted: Wanted,
    ) -> None:
        self._service = service
        self._client = client
        self._inbound = inbound
        self._identifier = identifier
        self._wanted = wanted
        self._items = list(wanted.items)
        self._form: ResponseForm | None = None
        self._step: Exchange | Relay | None = None

    # -- what the client's connection asks ----------------------------------------------------

    def start(self) -> None:
        """Ask the model, after what came before in the conversation was read."""
        previous = self._wanted.previous
        if not previous:
            self._ask()
            return
        if not previous.startswith("resp_") or not previous.replace("_", "").isalnum():
            raise _no_previous()
        self._call(Call("GET", f"{API}/responses/{previous}", _same), self._remembered)

    def cancel(self) -> None:
        """The client went away."""
        if self._step is not None:
            self._step.cancel()

    def pause(self) -> None:
        """The client is slow."""
        if self._step is not None:
            self._step.pause()

    def resume(self) -> None:
        """Read on."""
        if self._step is not None:
            self._step.resume()

    # -- what the exchange tells --------------------------------------------------------------

    def finish(self, answer: bytes) -> None:
        """Give a complete answer, once it is stored where that is wanted."""
        head, _, body = answer.partition(_HEAD_END)
        response = _loads(body) if self._wanted.is_stored and head.startswith(_GOOD) else None
        if type(response) is not dict:
            self._client.finish(answer)
            return

        def told(stored: bytes) -> None:
            if stored.startswith(_GOOD):
                self._client.finish(answer)
                return
            shown = orjson.dumps({**response, "store": False})
            self._client.finish(answers.whole(200, shown, headers=_own_headers(head)))

        self._store(response, told)

    def begin_stream(self, headers: bytes) -> None:
        """Send the head of a stream."""
        self._client.begin_stream(headers)

    def send_piece(self, data: bytes) -> None:
        """Send events."""
        self._client.send_piece(data)

    def end_stream(self, data: bytes, *, is_whole: bool) -> None:
        """Send the last events, once the response is stored where that is wanted."""
        form = self._form
        if not is_whole or form is None:
            self._client.end_stream(data, is_whole=is_whole)
            return
        events, rest = _split_last(data)
        last = form.events.end(is_stored=self._wanted.is_stored)
        if not self._wanted.is_stored:
            self._client.end_stream(events + written(last) + rest, is_whole=True)
            return

        def told(stored: bytes) -> None:
            form.events.response["store"] = stored.startswith(_GOOD)
            self._client.end_stream(events + written(last) + rest, is_whole=True)

        self._store(form.events.response, told)

    # -- internal -----------------------------------------------------------------------------

    def _ask(self) -> None:
        wanted = self._wanted
        chat = {**wanted.chat, "messages": messages_of(wanted.instructions, self._items)}
        inbound = replace(self._inbound, path=CHAT.path.encode(), body=orjson.dumps(chat))
        identifier = self._identifier
        exchange = self._service.open_exchange(self, inbound, identifier)
        created_s = self._service.now_ns() // NS_PER_S

        def shaped(inner: Form | None) -> Form:
            self._form = ResponseForm(inner, wanted, identifier.decode(), created_s)
            return self._form

        exchange.shape(shaped)
        self._step = exchange
        exchange.start()

    def _remembered(self, answer: bytes) -> None:
        """Go on with the conversation, or say that there is none."""
        self._step = None
        head, _, body = answer.partition(_HEAD_END)
        known = _loads(body) if head.startswith(_GOOD) else None
        try:
            if type(known) is not dict:
                raise _no_previous()
            self._items = [*known["input"], *known["response"]["output"], *self._wanted.items]
            self._ask()
        except MoulinError as error:
            self._client.finish(answers.failure(error, request=self._identifier))

    def _store(self, response: Mapping[str, Any], told: Callable[[bytes], None]) -> None:
        kept = {"response": response, "input": self._items}
        target = f"{API}/responses?id={response['id']}"
        self._call(Call("POST", target, _same, kept), told)

    def _call(self, call: Call, told: Callable[[bytes], None]) -> None:
        sent = orjson.dumps(call.body) if call.body is not None else b""
        relayed = Relayed(
            call, self._inbound.authorization, self._identifier, answers.JSON, len(sent)
        )
        relay = Relay(self._service, Told(told), relayed)
        self._step = relay
        relay.start()
        relay.feed(sent)
        relay.end_body()


class Told:
    """The client of a relay of our own: all it wants is the answer."""

    def __init__(self, told: Callable[[bytes], None]) -> None:
        self.finish = told
        self.finish_early = told

    def begin_whole(self, head: bytes) -> None:
        """Never: what is asked is JSON."""

    def send_raw(self, data: bytes) -> None:
        """Never."""

    def end_whole(self, *, is_whole: bool) -> None:
        """Never."""

    def hold(self) -> None:
        """All there is to send is in memory."""

    def read_on(self) -> None:
        """The same."""


def open_response(
    service: "Service", client: "ClientConnection", inbound: "Inbound", identifier: bytes
) -> None:
    """Begin a response. Raises `InvalidRequest` for what cannot be served."""
    body = _loads(inbound.body)
    if body is None:
        raise InvalidRequest("read the body as JSON")
    wanted = read_response_request(body, identifier.decode())
    responding = Responding(service, client, inbound, identifier, wanted)
    client.exchange = responding
    responding.start()


def written(events: list[dict[str, Any]]) -> bytes:
    """Return events as they are sent."""
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))
        for event in events
    )


def _split_last(data: bytes) -> tuple[bytes, bytes]:
    """Divide the last piece of a stream into events and what follows them: figures and `[DONE]`."""
    figures = data.find(b": moulin ")
    place = figures if figures >= 0 else data.find(DONE)
    return data[:place], data[place:]


def _own_headers(head: bytes) -> bytes:
    lines = head.split(b"\r\n")[1:]
    kept = [line for line in lines if not line.startswith((b"content-type:", b"content-length:"))]
    return b"".join(b"%b\r\n" % line for line in kept)


def _same(data: Any) -> Any:
    return data


def _loads(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def _no_previous() -> NotFound:
    return NotFound(
        "continue this conversation: there is no stored response of that id",
        hint="store responses that you want to continue with `store: true`",
        details={"param": "previous_response_id"},
    )

"""The log as a stream of server-sent events: what is new to a caller, in order, without gaps.

A tenant's stream holds its project's events only. A reader that reconnects continues after the
last id it saw; the stream itself remembers nothing.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from moulin.api.access import Allow, own_project
from moulin.api.describe import EVENT_STREAM, described
from moulin.api.exchange import in_thread
from moulin.api.parameters import ProjectQuery, SequenceQuery
from moulin.api.state import ApiState, state_of
from moulin.domain.errors import QuotaExceeded
from moulin.domain.event_wire import encode_payload
from moulin.domain.events import Event, FactoryApplied, KeyCreated, KeyUpdated
from moulin.domain.principal import Principal
from moulin.domain.secret_events import SecretSet
from moulin.domain.units import format_time
from moulin.domain.wire import encode_public
from moulin.identity import Action

router = APIRouter(tags=["events"])
Reader = Annotated[Principal, Depends(Allow(Action.EVENTS_READ))]
PAGE: Final = 500
BEAT: Final = b": beat\n\n"


@router.get("/events", **described(EVENT_STREAM))
async def stream_events(
    request: Request,
    principal: Reader,
    *,
    after: SequenceQuery = 0,
    project: ProjectQuery = "",
    follow: Annotated[bool, Query(description="Go on after the log's present end.")] = True,
    last_event_id: Annotated[str, Header(alias="Last-Event-ID", pattern=r"^[0-9]{0,18}$")] = "",
) -> Response:
    """Stream events after a sequence; `id` is the sequence, `event` the kind, `data` the event."""
    state = state_of(request)
    own = own_project(principal, Action.EVENTS_READ, project)
    if state.metrics.streams >= state.services.limits.streams_max:
        raise QuotaExceeded(
            f"open an event stream: {state.metrics.streams} are open",
            hint="close one, or try again later",
        )
    start = max(after, int(last_event_id or 0))
    return StreamingResponse(
        _stream(state, start, own, follow=follow),
        media_type=EVENT_STREAM,
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


async def _stream(
    state: ApiState, after: int, project: str, *, follow: bool
) -> AsyncIterator[bytes]:
    state.metrics.streams += 1
    try:
        while not state.news.is_closed:
            latest = await state.news.latest()
            page = await in_thread(_read, state, after, project)
            for event in page:
                yield frame(event)
            # Everything up to `latest` was committed before the read, so it was in it.
            after = page[-1].sequence if len(page) == PAGE else max(after, latest, *_last(page))
            if len(page) == PAGE:
                continue
            if not follow:
                return
            if await state.news.after(after, state.services.limits.heartbeat_s) <= after:
                yield BEAT
    finally:
        state.metrics.streams -= 1


def frame(event: Event) -> bytes:
    """Return one event as one frame of the stream."""
    data = orjson.dumps(public_event(event)).decode()
    return f"id: {event.sequence}\nevent: {event.kind}\ndata: {data}\n\n".encode()


def public_event(event: Event) -> Mapping[str, Any]:
    """Return an event as callers see it: instants as RFC 3339, no digest of a key, no ciphertext."""
    return {
        "sequence": event.sequence,
        "schema": event.schema,
        "epoch": event.epoch,
        "at": format_time(event.at_ns),
        "kind": event.kind,
        "actor": event.actor,
        "organisation": event.organisation,
        "project": event.project,
        "site": event.site,
        "causation": event.causation,
        "labels": dict(event.labels),
        "payload": _payload(event),
    }


def _payload(event: Event) -> Any:
    payload = event.payload
    if isinstance(payload, FactoryApplied):
        return encode_payload(payload)
    if isinstance(payload, KeyCreated | KeyUpdated):
        payload = replace(payload, key=replace(payload.key, digest=""))
    if isinstance(payload, SecretSet):
        payload = replace(payload, secret=replace(payload.secret, ciphertext=b""))
    return encode_public(payload)


def _read(state: ApiState, after: int, project: str) -> list[Event]:
    return list(state.services.store.events(after, PAGE, project))


def _last(page: list[Event]) -> tuple[int, ...]:
    return (page[-1].sequence,) if page else ()

"""The JSON form of the log's events, and how old shapes become present ones.

It decides how an event is written to a log, a stream or a backup, and what an old one means today.
It never guesses: what this version cannot read is `StoreCorrupt`, with the event's sequence.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from moulin.domain.errors import InvalidSpec, StoreCorrupt
from moulin.domain.events import (
    SCHEMA_VERSION,
    TYPE_BY_KIND,
    Event,
    FactoryApplied,
    ObjectChange,
    Payload,
)
from moulin.domain.factory import TYPE_BY_KIND as TYPE_BY_OBJECT_KIND
from moulin.domain.factory import ObjectKind
from moulin.domain.wire import decode, encode

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

# (kind, schema) -> the payload's data one schema later; a pair not listed did not change.
UPCASTERS: Final[Mapping[tuple[str, int], Upcaster]] = {}

_RESTORE: Final = "restore the last backup, or read the log with the version that wrote it"


def encode_payload(payload: Payload) -> dict[str, Any]:
    """Return a payload's data; the same payload gives the same keys in the same order."""
    if isinstance(payload, FactoryApplied):
        changes = [
            {"kind": change.kind.value, "name": change.name, "value": encode(change.value)}
            for change in payload.changes
        ]
        return {"managed_by": payload.managed_by, "changes": changes}
    return cast("dict[str, Any]", encode(payload))


def decode_payload(kind: str, schema: int, data: object, *, sequence: int = 0) -> Payload:
    """Return the payload of a kind as its present shape, whatever schema it was written with.

    Raises `StoreCorrupt` for a kind or schema of a newer version, and for data that does not fit.
    """
    payload_type = TYPE_BY_KIND.get(kind)
    if payload_type is None or not 1 <= schema <= SCHEMA_VERSION:
        raise StoreCorrupt(
            f"read event {sequence}: kind {kind!r} of schema {schema} is not known here",
            hint=f"a newer Moulin wrote it; {_RESTORE}",
            details={"sequence": sequence, "kind": kind, "schema": schema},
        )
    try:
        for version in range(schema, SCHEMA_VERSION):
            data = UPCASTERS.get((kind, version), _unchanged)(cast("dict[str, Any]", data))
        if payload_type is FactoryApplied:
            return _decode_applied(data)
        return cast("Payload", decode(payload_type, data))
    except (InvalidSpec, KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreCorrupt(
            f"read event {sequence} ({kind}): {error}",
            hint=_RESTORE,
            details={"sequence": sequence, "kind": kind, "schema": schema},
        ) from error


def encode_event(event: Event) -> dict[str, Any]:
    """Return an event with its envelope, as one line of a log file or one message of a stream."""
    return {
        "sequence": event.sequence,
        "schema": event.schema,
        "epoch": event.epoch,
        "at_ns": str(event.at_ns),
        "kind": event.kind,
        "actor": event.actor,
        "organisation": event.organisation,
        "project": event.project,
        "site": event.site,
        "causation": event.causation,
        "labels": dict(event.labels),
        "payload": encode_payload(event.payload),
    }


def decode_event(data: Mapping[str, Any]) -> Event:
    """Return the event of `encode_event`'s data, its payload in the present shape.

    Raises `StoreCorrupt` when the envelope or the payload cannot be read.
    """
    try:
        envelope = dict(data)
        sequence, schema = int(envelope.pop("sequence")), int(envelope.pop("schema"))
        payload = decode_payload(
            envelope.pop("kind"), schema, envelope.pop("payload"), sequence=sequence
        )
        return Event(
            sequence=sequence,
            at_ns=int(envelope.pop("at_ns")),
            payload=payload,
            schema=SCHEMA_VERSION,
            **envelope,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreCorrupt(f"read an event: its envelope is wrong: {error!r}", hint=_RESTORE) from (
            error
        )


def _decode_applied(data: Any) -> FactoryApplied:
    return FactoryApplied(
        managed_by=str(data["managed_by"]),
        changes=tuple(_decode_change(change) for change in data["changes"]),
    )


def _decode_change(data: Any) -> ObjectChange:
    kind = ObjectKind(data["kind"])
    value = data["value"]
    return ObjectChange(
        kind=kind,
        name=str(data["name"]),
        value=None if value is None else decode(TYPE_BY_OBJECT_KIND[kind], value),
    )


def _unchanged(data: dict[str, Any]) -> dict[str, Any]:
    return data

"""Events to JSON-able data and back: what is kept, what is upcast, what is refused."""

import pytest

from moulin.domain import event_wire
from moulin.domain.errors import StoreCorrupt
from moulin.domain.event_wire import decode_event, decode_payload, encode_event, encode_payload
from moulin.domain.events import EpochOpened, Event, FactoryApplied, ObjectChange
from moulin.domain.factory import ObjectKind, Project

OPENED = EpochOpened(epoch=3, boot_id="b", version="1")
DATA = {"epoch": 3, "boot_id": "b", "version": "1"}


def event() -> Event:
    return Event(
        sequence=7, epoch=3, at_ns=2**62, actor="a", payload=OPENED, labels={"k": "v"}, causation=6
    )


def test_an_event_comes_back_with_its_envelope():
    data = encode_event(event())
    assert data["at_ns"] == str(2**62)
    assert (data["kind"], data["schema"]) == ("epoch.opened", 1)
    assert decode_event(data) == event()


def test_declared_objects_are_read_by_their_kind():
    project = Project(name="lab", organisation="uni", budget_neur=2**80)
    payload = FactoryApplied(
        managed_by="f",
        changes=(
            ObjectChange(kind=ObjectKind.PROJECT, name="lab", value=project),
            ObjectChange(kind=ObjectKind.ZONE, name="gone"),
        ),
    )
    data = encode_payload(payload)
    assert data["changes"][0]["value"]["budget_neur"] == str(2**80)
    assert data["changes"][1]["value"] is None
    assert decode_payload("factory.applied", 1, data) == payload


@pytest.mark.parametrize(
    ("kind", "schema", "data"),
    [
        ("epoch.unheard", 1, DATA),
        ("epoch.opened", 2, DATA),
        ("epoch.opened", 0, DATA),
        ("epoch.opened", 1, {**DATA, "more": 1}),
        ("epoch.opened", 1, {"epoch": 3}),
        ("epoch.opened", 1, None),
        ("factory.applied", 1, {"managed_by": "f"}),
        ("factory.applied", 1, {"managed_by": "f", "changes": [{"kind": "planet"}]}),
        ("factory.applied", 1, {"managed_by": "f", "changes": 3}),
        ("factory.applied", 1, []),
    ],
)
def test_what_cannot_be_read_is_refused_by_sequence(kind, schema, data):
    with pytest.raises(StoreCorrupt, match="event 7") as caught:
        decode_payload(kind, schema, data, sequence=7)
    assert caught.value.hint
    assert caught.value.details["sequence"] == 7


@pytest.mark.parametrize("missing", ["sequence", "schema", "kind", "at_ns", "payload", "actor"])
def test_an_envelope_must_be_whole(missing):
    data = {key: value for key, value in encode_event(event()).items() if key != missing}
    with pytest.raises(StoreCorrupt):
        decode_event(data)


def test_an_envelope_has_no_other_keys():
    with pytest.raises(StoreCorrupt):
        decode_event({**encode_event(event()), "colour": "red"})


def test_an_old_shape_passes_every_upcaster_up_to_the_present(monkeypatch):
    monkeypatch.setattr(event_wire, "SCHEMA_VERSION", 4)
    monkeypatch.setattr(
        event_wire,
        "UPCASTERS",
        {
            ("epoch.opened", 1): lambda data: {"epoch": data["number"], "host": data["host"]},
            ("epoch.opened", 3): lambda data: {
                "epoch": data["epoch"],
                "boot_id": data["host"],
                "version": "",
            },
        },
    )
    wanted = EpochOpened(epoch=5, boot_id="h", version="")
    old = {"number": 5, "host": "h"}
    assert decode_payload("epoch.opened", 1, old) == wanted
    assert decode_payload("epoch.opened", 2, {"epoch": 5, "host": "h"}) == wanted
    assert decode_payload("epoch.opened", 4, DATA) == OPENED
    with pytest.raises(StoreCorrupt):
        decode_payload("epoch.opened", 1, {"host": "h"})

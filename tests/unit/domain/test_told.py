"""What readers on nodes wrote is believed only as far as a reader could have written it."""

import json

import pytest

from moulin.domain.health import DeviceReading, NodeReading
from moulin.domain.ids import NodeId
from moulin.domain.told import joined, read_told, reading_of
from moulin.scheduler.health import HealthRow, is_news, observe_health

N1 = NodeId("n1")
WELL = {"index": 0, "uuid": "GPU-a", "xids": {"79": 1}, "ecc_uncorrected": 3, "is_hot": None}


def told(**more: object) -> bytes:
    return json.dumps({"at_ns": 5, "devices": [{**WELL, **more}], "memory_bytes": 9}).encode()


def test_what_a_reader_writes_is_read_whole():
    found = read_told(told())
    assert found is not None
    [device] = reading_of(N1, found).devices or ()
    assert (device.uuid, device.xids, device.ecc_uncorrected, device.is_hot) == (
        *("GPU-a", {"79": 1}, 3, None),
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"at_ns": true}',
        b'{"at_ns": 1, "devices": {}}',
        b'{"at_ns": 1, "devices": [{"index": 0}]}',
        b'{"at_ns": 1, "devices": [7]}',
        b'{"at_ns": 1, "memory_bytes": "much"}',
        b'{"at_ns": 1, "devices": [' + b"[" * 100_000,
        told(xids={"79": "x"}),
        told(xids={"a bus": 1}),
        told(xids=[79]),
        told(uuid=7),
        told(uuid="G" * 1000),
        told(ecc_uncorrected=1 << 70),
        told(is_hot="yes"),
        json.dumps({"at_ns": 1, "devices": [WELL] * 65}).encode(),
    ],
)
def test_what_no_reader_writes_is_not_believed(data):
    assert read_told(data) is None


def test_a_counter_may_be_as_large_as_a_driver_counts():
    assert read_told(told(ecc_uncorrected=2**64 - 1)) is not None


def test_nobody_can_say_for_whom_they_speak():
    found = read_told(told(steps=["job_x.u0.g1.t0"]))
    assert found is not None
    [device] = reading_of(N1, found).devices or ()
    assert device.steps == ()


def test_two_readers_who_heard_the_same_are_no_news_whoever_spoke_last():
    first = DeviceReading(index=3, uuid="a", xids={"79": 1}, xids_since_ns=1, links_down=2)
    later = DeviceReading(index=0, uuid="a", xids={"79": 1}, xids_since_ns=2, links_down=0)
    row = HealthRow()
    base = NodeReading(
        node=N1, at_ns=0, devices=(DeviceReading(index=3, uuid="a", xids_since_ns=1),)
    )
    observe_health(row, base, 1)
    events = 0
    for turn in range(8):
        pair = (first, later) if turn % 2 else (later, first)
        seen = joined(N1, [NodeReading(node=N1, at_ns=turn, devices=(each,)) for each in pair])
        if is_news(row, seen):
            observe_health(row, seen, turn + 2)
            events += 1
    assert events == 2  # the XID is new, and then it is not new any more

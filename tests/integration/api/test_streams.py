"""Events as they happen, and the gateway's long poll."""

import threading
import time
from typing import Any

import pytest

from moulin.domain.events import WorkloadStopRequested
from moulin.domain.ids import WorkloadId
from moulin.domain.principal import Role
from moulin.domain.snapshot import JournalKind, JournalRecord, SyncReply, SyncRequest, Want
from moulin.domain.wire import decode, encode, encode_public
from moulin.sdk._stream import EventReader
from tests.integration.api.world import running_world

EVENTS = "/api/v1/events"
SYNC = "/api/v1/gateway/sync"


def read_until(response, count, after=0):
    reader, found = EventReader(after), []
    for line in response.iter_lines():
        found += list(reader.feed(line))
        if len(found) >= count:
            return found
    return found


def say(world, project="alpha"):
    payload = WorkloadStopRequested(workload=WorkloadId(world.workloads[project]), by="somebody")
    world.standin.record(payload, project)


def test_an_operator_sees_every_event_without_a_gap(world):
    with world.client(Role.OPERATOR) as client, client.stream("GET", EVENTS) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        last = world.standin.store.last_sequence()
        found = read_until(response, last)
    assert [event.sequence for event in found] == list(range(1, last + 1))
    stored = list(world.standin.store.events(0))
    assert [event.kind for event in found] == [event.kind for event in stored[:last]]


def test_an_event_reaches_an_open_stream(world):
    last = world.standin.store.last_sequence()
    with (
        world.client(Role.OPERATOR) as client,
        client.stream("GET", EVENTS, params={"after": last}) as response,
    ):
        threading.Timer(0.1, say, (world,)).start()
        found = read_until(response, 1, last)
    assert [event.sequence for event in found] == [last + 1]


@pytest.mark.parametrize("how", ["parameter", "header"])
def test_a_stream_resumes_after_what_was_seen(world, how):
    say(world)
    say(world)
    last = world.standin.store.last_sequence()
    parameters = {"after": last - 1} if how == "parameter" else {}
    headers = {"last-event-id": str(last - 1)} if how == "header" else {}
    with (
        world.client(Role.OPERATOR) as client,
        client.stream("GET", EVENTS, params=parameters, headers=headers) as response,
    ):
        assert [event.sequence for event in read_until(response, 1)] == [last]


def test_a_quiet_stream_beats(world):
    last = world.standin.store.last_sequence()
    with (
        world.client(Role.OPERATOR) as client,
        client.stream("GET", EVENTS, params={"after": last}) as response,
    ):
        assert next(response.iter_lines()) == ": beat"


def test_a_tenant_hears_of_its_own_only(world):
    last = world.standin.store.last_sequence()
    with (
        world.client(Role.VIEWER) as client,
        client.stream("GET", EVENTS, params={"after": last}) as response,
    ):
        say(world, "beta")
        say(world, "alpha")
        found = read_until(response, 1, last)
    assert [event.project for event in found] == ["alpha"]


def test_stopping_the_server_ends_streams_at_once():
    with running_world() as world:
        client = world.client(Role.OPERATOR)
        with client, client.stream("GET", EVENTS) as response:
            lines = response.iter_lines()
            next(lines)
            world.server.stop()
            assert sum(1 for _ in lines) > 0


def sync(**changes: Any) -> SyncRequest:
    return SyncRequest(gateway="g", epoch=1, records_epoch=1, **changes)


def test_a_first_sync_gets_the_snapshot_at_once(world):
    with world.client(Role.GATEWAY) as client:
        # The kept form is read as well as the public one.
        reply = decode(SyncReply, client.post(SYNC, json=encode(sync(wait_s=30))).json())
    assert reply.snapshot is not None
    assert reply.snapshot.version == world.standin.snapshot_version


def test_records_are_acknowledged_and_wishes_granted_without_waiting(world):
    record = JournalRecord(
        sequence=7, kind=JournalKind.BEGIN, request="r", at_ns=1_790_000_000_000_000_001
    )
    wanted = sync(
        records=(record,),
        wants=(Want(project="alpha", amount_neur=2**60),),
        snapshot_version=world.standin.snapshot_version,
        wait_s=30,
    )
    with world.client(Role.GATEWAY) as client:
        reply = decode(SyncReply, client.post(SYNC, json=encode_public(wanted)).json())
    assert reply.acknowledged_sequence == 7
    assert reply.grants[0].amount_neur == 2**60
    assert world.standin.syncs[-1].request.records == (record,)


def test_a_long_poll_ends_with_the_change_and_asks_the_cycle_only_then():
    with running_world() as world, world.client(Role.GATEWAY) as client:
        wanted = sync(snapshot_version=1, wait_s=20)
        found = []
        waiting = threading.Thread(
            target=lambda: found.append(client.post(SYNC, json=encode_public(wanted)).json())
        )
        waiting.start()
        while not world.standin.syncs:
            time.sleep(0.01)
        time.sleep(0.3)
        assert len(world.standin.syncs) == 1
        assert not found
        world.standin.snapshot_version = 2
        say(world)
        waiting.join(10)
        assert decode(SyncReply, found[0]).snapshot is not None
        assert world.standin.syncs[-1].request.wait_s == 0


def test_a_long_poll_without_news_ends_with_its_wait():
    with running_world() as world, world.client(Role.GATEWAY) as client:
        answer = client.post(SYNC, json=encode_public(sync(snapshot_version=1, wait_s=1)))
    assert decode(SyncReply, answer.json()).snapshot is None

"""New and revoked keys on their way to gateways: answered when they are there, or said not to be."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from moulin.api.gateways import CONNECTED_S, Gateways
from moulin.api.news import News
from moulin.api.services import ApiLimits
from moulin.controlplane.commands import CreateKey, RevokeKey
from moulin.controlplane.inbox import Call
from moulin.domain.control import KeyIssued
from moulin.domain.principal import Role
from moulin.domain.snapshot import SyncReply, SyncRequest
from moulin.domain.wire import decode, encode_public
from tests.integration.api.world import StandIn, World, running_world

KEYS = "/api/v1/projects/alpha/keys"
SYNC = "/api/v1/gateway/sync"


class Publisher(StandIn):
    """A control plane whose snapshot changes with each key, as the real one's does."""

    def _answer(self, call: Call) -> None:
        if isinstance(call.command, CreateKey | RevokeKey):
            self.snapshot_version += 1
        super()._answer(call)


class GatewayClient:
    """Polls as a gateway does. `version` is the snapshot it serves from."""

    def __init__(self, world: World, name: str) -> None:
        self.version = 0
        self.is_slow = False
        self._name = name
        self._client = world.client(Role.GATEWAY)
        self._thread = threading.Thread(target=self._run)
        self._is_stopping = False
        self._started = threading.Event()

    def start(self) -> None:
        self._thread.start()
        self._started.wait(20)

    def stop(self) -> None:
        self._is_stopping = True
        self._thread.join(20)
        self._client.close()

    def _run(self) -> None:
        while not self._is_stopping:
            wanted = SyncRequest(
                gateway=self._name,
                epoch=1,
                records_epoch=1,
                snapshot_version=self.version,
                wait_s=1,
            )
            body = self._client.post(SYNC, json=encode_public(wanted)).json()
            snapshot = decode(SyncReply, body).snapshot
            if snapshot is not None and not self.is_slow:
                self.version = snapshot.version
            self._started.set()


@contextmanager
def connected(*names: str, wait_s: float = 60.0) -> Iterator[tuple[World, list[GatewayClient]]]:
    limits = ApiLimits(news_period_s=0.02, gateways_wait_s=wait_s)
    with running_world(limits, Publisher) as world:
        gateways = [GatewayClient(world, name) for name in names]
        for gateway in gateways:
            gateway.start()
        try:
            yield world, gateways
        finally:
            for gateway in gateways:
                gateway.stop()


def create(client: httpx.Client, **fields: Any) -> KeyIssued:
    answer = client.post(KEYS, json={"name": "k", "role": "inference", **fields})
    assert answer.status_code == 201
    return decode(KeyIssued, answer.json())


def versions(gateways: list[GatewayClient]) -> set[int]:
    return {gateway.version for gateway in gateways}


def test_a_key_is_answered_when_every_gateway_has_it_and_so_is_its_end():
    with connected("g1", "g2") as (world, gateways), world.client() as client:
        for _ in range(5):
            issued = create(client)
            assert issued.is_in_force
            assert versions(gateways) == {world.standin.snapshot_version}
            client.delete(f"/api/v1/keys/{issued.key.id}").raise_for_status()
            assert versions(gateways) == {world.standin.snapshot_version}


def test_a_gateway_that_does_not_follow_is_told_of():
    with connected("g1", "g2", wait_s=0.3) as (world, gateways), world.client() as client:
        gateways[1].is_slow = True
        issued = create(client)
        assert not issued.is_in_force
        assert client.delete(f"/api/v1/keys/{issued.key.id}").status_code == 200


def test_without_a_gateway_nobody_waits_and_the_key_is_not_said_to_be_in_force():
    with connected() as (world, _), world.client() as client:
        assert not create(client).is_in_force
        assert create(client, role="viewer").is_in_force


def test_a_gateway_that_went_away_is_not_waited_for(monkeypatch):
    async def scenario() -> list[bool]:
        now_s = 1000.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now_s)
        gateways = Gateways()
        found = [await gateways.caught_up(now_s, 60.0)]
        await gateways.hear("gone", now_s, is_current=False)
        await gateways.hear("here", now_s, is_current=True)
        now_s += CONNECTED_S
        await gateways.hear("here", now_s, is_current=True)
        now_s += 0.1
        found.append(await gateways.caught_up(1000.0, 60.0))
        now_s += CONNECTED_S
        found.append(await gateways.caught_up(1000.0, 60.0))
        return found

    assert asyncio.run(scenario()) == [False, True, False]


@pytest.mark.parametrize("others", [0, 3])
def test_who_waits_for_news_is_told_whoever_saw_it_first(others):
    async def scenario() -> int:
        last = 1
        news = News(lambda: last, 0.01)
        await news.latest()
        waiting = asyncio.create_task(news.after(1, 3600.0))
        await asyncio.sleep(0)  # it waits now
        last = 2
        for _ in range(others):
            await news.latest()
        return await asyncio.wait_for(waiting, 60.0)

    assert asyncio.run(scenario()) == 2

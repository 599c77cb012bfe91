"""Leases: the resource of both clients; the two classes differ in nothing but `await`."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from moulin.domain.lease import (
    ExtendWanted,
    LeaseOffer,
    LeaseOffers,
    LeasePage,
    LeaseState,
    LeaseView,
    LeaseWanted,
)
from moulin.sdk._core import PREFIX, Call, body_of, reading

if TYPE_CHECKING:
    from moulin.sdk.asynchronous import AsyncMoulin
    from moulin.sdk.synchronous import Moulin

PAGE: Final = 100
LOOK_S: Final = 0.2


class Leases:
    """Whole machines for a time: offers, orders, logins, ends."""

    def __init__(self, client: "Moulin") -> None:
        self._client = client

    def offers(self, project: str = "") -> tuple[LeaseOffer, ...]:
        """Return what a project (the key's own) may lease, how much is free, what an hour costs."""
        return self._client.send(_offers(project or self._client.credentials.project)).items

    def order(
        self, wanted: LeaseWanted, *, project: str = "", idempotency_key: str = ""
    ) -> LeaseView:
        """Order nodes of an offer; raises the refusal with its reasons."""
        project = project or self._client.credentials.project
        return self._client.send(_order(project, wanted, idempotency_key))

    def every(self, *, project: str = "") -> Iterator[LeaseView]:
        """Yield leases, newest first, reading pages as needed."""
        cursor = ""
        while True:
            page = self._client.send(_list(project, cursor))
            yield from page.items
            cursor = page.next
            if not cursor:
                return

    def get(self, id: str) -> LeaseView:
        """Return one lease, with where one logs in once it is delivered."""
        return self._client.send(_get(id))

    def wait(self, id: str, *, timeout_s: float = 0.0) -> LeaseView:
        """Return a lease once it is delivered or has ended, or as it is after `timeout_s` (0: never)."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            view = self.get(id)
            if _is_settled(view) or (timeout_s and time.monotonic() >= deadline_s):
                return view
            time.sleep(LOOK_S)

    def extend(self, id: str, by_s: int) -> LeaseView:
        """Let a lease end later; raises the refusal with its reasons. Twice is twice as long."""
        return self._client.send(_extend(id, by_s))

    def release(self, id: str) -> LeaseView:
        """Give the nodes back now; once is as good as twice."""
        return self._client.send(_release(id))


class AsyncLeases:
    """As `Leases`, with `await`."""

    def __init__(self, client: "AsyncMoulin") -> None:
        self._client = client

    async def offers(self, project: str = "") -> tuple[LeaseOffer, ...]:
        """Return what a project (the key's own) may lease, how much is free, what an hour costs."""
        found = await self._client.send(_offers(project or self._client.credentials.project))
        return found.items

    async def order(
        self, wanted: LeaseWanted, *, project: str = "", idempotency_key: str = ""
    ) -> LeaseView:
        """Order nodes of an offer; raises the refusal with its reasons."""
        project = project or self._client.credentials.project
        return await self._client.send(_order(project, wanted, idempotency_key))

    async def every(self, *, project: str = "") -> AsyncIterator[LeaseView]:
        """Yield leases, newest first, reading pages as needed."""
        cursor = ""
        while True:
            page = await self._client.send(_list(project, cursor))
            for view in page.items:
                yield view
            cursor = page.next
            if not cursor:
                return

    async def get(self, id: str) -> LeaseView:
        """Return one lease, with where one logs in once it is delivered."""
        return await self._client.send(_get(id))

    async def wait(self, id: str, *, timeout_s: float = 0.0) -> LeaseView:
        """Return a lease once it is delivered or has ended, or as it is after `timeout_s` (0: never)."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            view = await self.get(id)
            if _is_settled(view) or (timeout_s and time.monotonic() >= deadline_s):
                return view
            await asyncio.sleep(LOOK_S)

    async def extend(self, id: str, by_s: int) -> LeaseView:
        """Let a lease end later; raises the refusal with its reasons. Twice is twice as long."""
        return await self._client.send(_extend(id, by_s))

    async def release(self, id: str) -> LeaseView:
        """Give the nodes back now; once is as good as twice."""
        return await self._client.send(_release(id))


def _is_settled(view: LeaseView) -> bool:
    return view.state is not LeaseState.ORDERED


def _offers(project: str) -> Call[LeaseOffers]:
    path = f"{PREFIX}/projects/{quote(project, safe='')}/leases/offers"
    return Call(method="GET", path=path, read=reading(LeaseOffers))


def _order(project: str, wanted: LeaseWanted, idempotency_key: str) -> Call[LeaseView]:
    return Call(
        method="POST",
        path=f"{PREFIX}/projects/{quote(project, safe='')}/leases",
        read=reading(LeaseView),
        headers={"idempotency-key": idempotency_key or secrets.token_urlsafe(18)},
        body=body_of(wanted),
    )


def _list(project: str, cursor: str) -> Call[LeasePage]:
    return Call(
        method="GET",
        path=f"{PREFIX}/leases",
        read=reading(LeasePage),
        parameters={"project": project, "cursor": cursor, "limit": PAGE},
    )


def _get(id: str) -> Call[LeaseView]:
    return Call(method="GET", path=f"{PREFIX}/leases/{quote(id, safe='')}", read=reading(LeaseView))


def _extend(id: str, by_s: int) -> Call[LeaseView]:
    return Call(
        method="POST",
        path=f"{PREFIX}/leases/{quote(id, safe='')}/extend",
        read=reading(LeaseView),
        body=body_of(ExtendWanted(by_s=by_s)),
        is_repeatable=False,
    )


def _release(id: str) -> Call[LeaseView]:
    path = f"{PREFIX}/leases/{quote(id, safe='')}/release"
    return Call(method="POST", path=path, read=reading(LeaseView))

"""The gateway's line to the control plane: snapshots in, grants in, journal out, escrow back.

Two loops, so that neither waits for the other: one long poll for the next snapshot, one for what is
urgent (escrow that requests wait for) and what is due (journal lines, returns). It tolerates a
control plane that is away, killed in the middle of a call, or restarted. Money given back is
never offered twice: what may have reached the leader counts as returned.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any, Final, Protocol

import orjson

from moulin.domain.errors import MoulinError
from moulin.domain.limits import is_users
from moulin.domain.snapshot import SyncReply, Want
from moulin.domain.units import NS_PER_S
from moulin.domain.wire import decode, encode
from moulin.gateway.http_client import HttpClient, NotSent, Unreachable
from moulin.gateway.journal import JournalReader, Shipment
from moulin.gateway.limits import Limits
from moulin.gateway.load import LoadTale, present_load
from moulin.gateway.service import Service
from moulin.gateway.trust import Trust

SYNC_PATH: Final = "/api/v1/gateway/sync"
SHIP_EVERY_S: Final = 0.25
TELL_EVERY_S: Final = 2.0
"""Without anything to ship, the leader hears this often that there was nothing: intervals close."""
KEEP_EVERY_NS: Final = NS_PER_S
"""How old the time on disk may be, of a snapshot that each reply confirms; older is always safe."""
_CALL_TIMEOUT_S: Final = 10.0
_LOG: Final = logging.getLogger(__name__)
# Asking costs next to nothing, and nobody is served before the answer: never long.
_BACKOFF_S: Final = (0.1, 0.2, 0.25)


class Superseded(Exception):
    """Another process took over this gateway's name; this one must stop."""


class SnapshotSink(Protocol):
    """Where received snapshots are kept for the next start."""

    def keep(self, snapshot: Any, confirmed_at_ns: int) -> None:
        """Keep a snapshot in its wire form."""
        ...

    def confirm(self, confirmed_at_ns: int) -> None:
        """Note that the kept snapshot was current at that time."""
        ...


class ControlLink:
    """See the module. `run` ends only by cancellation or `Superseded`."""

    def __init__(
        self,
        *,
        service: Service,
        url: str,
        key: str,
        name: str,
        epoch: int,
        readers: list[JournalReader],
        sink: SnapshotSink,
        limits: Limits,
        trust: Trust | None = None,
    ) -> None:
        self._service = service
        self._name = name
        self._epoch = epoch
        self._readers = readers
        self._sink = sink
        self._limits = limits
        self._poll_client = HttpClient(url, key, trust=trust)
        self._client = HttpClient(url, key, trust=trust)
        self._wake = asyncio.Event()
        self._returns: dict[str, int] = {}
        self._told_at_s = 0.0
        self._kept_at_ns = 0
        self._load_tale = LoadTale()
        self._was_away = False
        # A reply that never came may have granted something, or a return may not have arrived.
        self._is_unsure = False
        service.wake_control = self._wake.set

    async def run(self) -> None:
        """Keep both loops going; raises `Superseded` when this process must stop."""
        loops = [asyncio.ensure_future(self._poll()), asyncio.ensure_future(self._ship())]
        try:
            await asyncio.gather(*loops)
        finally:
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    async def finish(self, deadline_s: float) -> bool:
        """Ship everything, give all escrow back, close the epoch; False when time ran out."""
        self._collect_returns(is_last=True)
        self._readers[-1].is_finished = True
        with contextlib.suppress(TimeoutError, Unreachable, MoulinError, Superseded):
            async with asyncio.timeout(deadline_s):
                while self._readers:
                    await self._exchange_once()
        self._client.close()
        self._poll_client.close()
        return not self._readers

    # -- loops --------------------------------------------------------------------------------

    async def _poll(self) -> None:
        failures = 0
        while True:
            snapshot = self._service.snapshot
            fresh_s = 0 if snapshot is None else max(1, snapshot.staleness_max_s // 3)
            wait_s = min(self._limits.sync_wait_s, fresh_s)
            # Naming our own epoch while a predecessor's journal waits would declare that one lost.
            body = self._request(self._readers[0].epoch, b"", {"wait_s": wait_s})
            try:
                await self._call(self._poll_client, body, wait_s + _CALL_TIMEOUT_S)
            except (Unreachable, MoulinError) as cause:
                self._say_away(cause)
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1
            else:
                failures = 0
                if self._service.snapshot is None:
                    await asyncio.sleep(_BACKOFF_S[-1])

    async def _ship(self) -> None:
        failures = 0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SHIP_EVERY_S):
                    await self._wake.wait()
            self._wake.clear()
            self._collect_returns(is_last=False)
            try:
                while await self._exchange_once():
                    pass
                failures = 0
            except (Unreachable, MoulinError) as cause:
                self._say_away(cause)
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1

    # -- calls --------------------------------------------------------------------------------

    async def _exchange_once(self) -> bool:
        """Send what there is; True when there is more to ship at once."""
        reader = self._readers[0]
        shipment = reader.next_shipment()
        is_complete = reader.is_finished and shipment.is_end
        until_ns = self._journal_until_ns(reader, shipment)
        returns: dict[str, int] = {}
        closed: tuple[str, ...] = ()
        if until_ns:
            # Never before the END that freed it: a journal lost then is charged from what is left.
            returns, self._returns = self._returns, {}
            closed = self._service.users.closing()
        wants = self._wants(closed)
        load, now_s = present_load(self._service), self._service.loop.time()
        has_something = bool(shipment.data or is_complete or wants or returns or closed)
        is_due = self._is_tale_due(until_ns) or self._load_tale.is_due(load, now_s)
        if not (has_something or is_due):
            return False
        body = self._request(
            reader.epoch,
            shipment.records,
            {
                "is_epoch_complete": is_complete,
                "journal_until_ns": str(until_ns),
                "wants": [encode(want) for want in wants],
                "returns": encode(returns),
                "closed": closed,
                "kept": encode(self._kept() if self._is_unsure else {}),
                "load": encode(load),
            },
        )
        try:
            reply = await self._call(self._client, body, _CALL_TIMEOUT_S)
        except (NotSent, Unreachable, MoulinError) as cause:
            self._after_failure(cause, wants, returns)
            raise
        self._is_unsure = False
        self._service.users.closed(closed)
        self._load_tale.told(load, now_s)
        if until_ns:
            self._told_at_s = self._service.loop.time()
        reader.acknowledge(shipment, reply.acknowledged_sequence)
        if reader.epoch == self._epoch:
            reader.offset -= await self._service.journal.drop_before(reader.offset)
        if is_complete and reader.acknowledged == shipment.last:
            reader.path.unlink(missing_ok=True)
            self._readers.pop(0)
            return bool(self._readers)
        return bool(shipment.data) and not shipment.is_end

    def _journal_until_ns(self, reader: JournalReader, shipment: Shipment) -> int:
        """Return until when this shipment tells all that requests of this process did, 0 if not all.

        A line's time is taken when it is handed to the journal and nothing else runs between the
        reading of the file and here, so only lines that wait to be written are missing from it.
        """
        is_whole = shipment.is_end and reader.epoch == self._epoch
        is_written = not self._service.journal.is_behind
        return self._service.now_ns() if is_whole and is_written else 0

    def _is_tale_due(self, until_ns: int) -> bool:
        return until_ns > 0 and self._service.loop.time() - self._told_at_s >= TELL_EVERY_S

    def _after_failure(
        self, cause: Exception, wants: list[Want], returns: Mapping[str, int]
    ) -> None:
        """Ask again for what was wanted; offer again only what certainly was not received."""
        if not isinstance(cause, NotSent):
            self._is_unsure = True
        else:
            for project, amount_neur in returns.items():
                self._service.account(project).escrow.take_again(amount_neur)
        for want in wants:
            if is_users(want.project):
                self._service.users.ask_again(want.project)
            else:
                self._service.account(want.project).ask_again()

    async def _call(self, client: HttpClient, body: bytes, timeout_s: float) -> SyncReply:
        sent_at_ns = self._service.now_ns()
        status, answer = await client.post(SYNC_PATH, body, timeout_s)
        if status == 409:
            raise Superseded(f"another gateway named {self._name} has started")
        if status != 200:
            raise Unreachable(f"the control plane answered {status}")
        try:
            data = orjson.loads(answer)
        except orjson.JSONDecodeError as cause:
            raise Unreachable("the control plane answered no JSON") from cause
        reply = decode(SyncReply, data)
        try:
            self._take(reply, data, sent_at_ns)
        except ValueError as cause:
            raise Unreachable("the control plane sent a snapshot that cannot be used") from cause
        except OSError as cause:
            _LOG.warning("the snapshot cannot be kept for the next start: %s", cause.strerror)
        return reply

    def _take(self, reply: SyncReply, data: Any, sent_at_ns: int) -> None:
        if self._was_away:
            self._was_away = False
            _LOG.warning("the control plane answers again")
        service = self._service
        current = service.snapshot
        service.quotas.take(reply.share)
        for grant in reply.grants:
            if is_users(grant.project):
                service.users.take(grant)
            else:
                service.account(grant.project).take(grant)
        if reply.snapshot is None:
            service.confirm(sent_at_ns)
            if sent_at_ns - self._kept_at_ns >= KEEP_EVERY_NS:
                self._kept_at_ns = sent_at_ns
                self._sink.confirm(sent_at_ns)
        elif current is None or reply.snapshot.issued_at_ns >= current.issued_at_ns:
            if current is None or reply.snapshot.version != current.version:
                service.apply(reply.snapshot, sent_at_ns)
                self._sink.keep(data["snapshot"], sent_at_ns)
            else:
                service.confirm(sent_at_ns)

    def _request(self, records_epoch: int, records: bytes, more: Mapping[str, Any]) -> bytes:
        """Return a `SyncRequest`; records go in as the bytes the journal holds."""
        snapshot = self._service.snapshot
        head = orjson.dumps(
            {
                "gateway": self._name,
                "epoch": self._epoch,
                "records_epoch": records_epoch,
                "snapshot_version": snapshot.version if snapshot is not None else 0,
                "share": encode(self._service.quotas.share),
                "limited_ago_s": self._service.quotas.limited_ago_s(),
                **more,
            }
        )
        return b'%b,"records":[%b]}' % (head[:-1], records)

    def _wants(self, closed: tuple[str, ...]) -> list[Want]:
        now_ns = self._service.now_ns()
        wants = (account.want(now_ns) for account in self._service.accounts.values())
        found = [want for want in wants if want is not None]
        return found + self._service.users.wants(now_ns, closed)

    def _kept(self) -> dict[str, int]:
        """Return, by project, what was granted less what the leader has been, or is now, told back.

        Wishes go out one exchange at a time, so no grant is on its way when this is called.
        """
        return self._service.users.kept() | {
            project: account.escrow.granted_neur
            - account.escrow.returned_neur
            + self._returns.get(project, 0)
            for project, account in self._service.accounts.items()
        }

    def _collect_returns(self, *, is_last: bool) -> None:
        now_s = float("inf") if is_last else self._service.loop.time()
        if not is_last:
            self._service.users.close_idle(now_s)
        for project, account in self._service.accounts.items():
            amount_neur = account.idle_escrow(now_s)
            if amount_neur:
                self._returns[project] = self._returns.get(project, 0) + amount_neur

    def _say_away(self, cause: Exception) -> None:
        if not self._was_away:
            self._was_away = True
            _LOG.warning("the control plane is away: %s", cause)

"""A simulated inference gateway: the real escrow and protocol, no sockets; its journal survives it.

It does what `moulin.gateway` does at the level of values: hold, BEGIN, END, settle, ship, wish, give
back; it can be killed between any two of them, and its replies can be lost on the way.
"""

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from moulin.controlplane.commands import Answer, Command, SyncGateway
from moulin.domain.errors import StaleGeneration
from moulin.domain.ids import KeyId, OrganisationId, ProjectId
from moulin.domain.principal import Principal, Role
from moulin.domain.snapshot import (
    EndpointLoad,
    GatewayLoad,
    GatewaySnapshot,
    JournalKind,
    JournalRecord,
    ModelView,
    SyncReply,
    SyncRequest,
    Want,
)
from moulin.routing.escrow import Escrow
from tests.simulation.world import SECOND, TrueClock

Call = Callable[[Command], "Future[Answer]"]
PRINCIPAL = Principal(
    key=KeyId("key_gateway"),
    name="gateway",
    role=Role.GATEWAY,
    organisation=OrganisationId(""),
    project=ProjectId(""),
)
TELL_NS = SECOND
IDLE_NS = 30 * SECOND


@dataclass(slots=True)
class Journal:
    """One epoch's file. `shipped` is how far the leader has acknowledged it."""

    epoch: int
    records: list[JournalRecord] = field(default_factory=list)
    shipped: int = 0

    def append(self, record_of: Callable[[int], JournalRecord]) -> None:
        self.records.append(record_of(len(self.records) + 1))


@dataclass(slots=True)
class _InFlight:
    begin: JournalRecord
    model: ModelView


@dataclass(slots=True)
class _Sent:
    """One sync on its way: what it offered, so that a lost answer is handled as the protocol says."""

    future: "Future[Answer]"
    journal: Journal
    last: int
    is_complete: bool
    wants: tuple[Want, ...]


@dataclass(slots=True)
class Gateway:
    """One gateway name over all its processes; `journals` and `lost` are what is on its disk.

    `lost` are journals that a broken disk took away, kept here for the judge alone.
    """

    name: str
    clock: TrueClock
    rng: random.Random
    journals: list[Journal] = field(default_factory=list)
    written: list[Journal] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)
    epoch: int = 0
    is_alive: bool = False
    is_finishing: bool = False
    accounts: dict[str, Escrow] = field(default_factory=dict)
    wishes: dict[str, int] = field(default_factory=dict)
    inflight: dict[str, _InFlight] = field(default_factory=dict)
    snapshot: GatewaySnapshot | None = None
    request_count: int = 0
    told_ns: int = 0
    used_ns: dict[str, int] = field(default_factory=dict)
    cold_ns: dict[str, int] = field(default_factory=dict)
    _sent: _Sent | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether an answer is awaited."""
        return self._sent is not None

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a process: a new epoch with an empty journal, after those that are left."""
        newest = max((journal.epoch for journal in self.written), default=0)
        self.epoch = max(self.clock.now_ns() // 1_000_000, newest + 1)
        own = Journal(self.epoch)
        self.journals.append(own)
        self.written.append(own)
        self.is_alive = True

    def kill(self) -> None:
        """SIGKILL: only the journals are left."""
        self.is_alive = False
        self.accounts, self.wishes, self.inflight, self.cold_ns = {}, {}, {}, {}
        self.snapshot, self._sent = None, None

    def lose_journals(self) -> None:
        """The disk of a dead gateway is gone."""
        self.lost.update(journal.epoch for journal in self.journals)
        self.journals.clear()

    # -- requests -----------------------------------------------------------------------------

    def begin(self) -> bool:
        """Take a client's request if a key, a ready replica and the money are there."""
        snapshot = self.snapshot
        if not self.is_alive or snapshot is None or not snapshot.keys:
            return False
        if self.clock.now_ns() - self.told_ns > snapshot.staleness_max_s * SECOND:
            return False
        key = self.rng.choice(snapshot.keys)
        models = [
            model
            for model in snapshot.models
            if (model.replicas or model.cold_start_s)
            and (model.is_public or model.project == key.project)
        ]
        if not models:
            return False
        model = self.rng.choice(models)
        if not model.replicas:
            self.cold_ns.setdefault(model.endpoint, self.clock.now_ns())
            return False
        replica = self.rng.choice(model.replicas)
        tokens_input, tokens_output = self.rng.randint(1, 60), self.rng.randint(1, 90)
        amount_neur = model.cost_neur(tokens_input, tokens_output)
        account = self.accounts.setdefault(key.project, Escrow())
        self.used_ns[key.project] = self.clock.now_ns()
        if not account.hold(amount_neur):
            self.wishes[key.project] = max(self.wishes.get(key.project, 0), amount_neur)
            return False
        self.request_count += 1
        request = f"req_{self.name}-{self.epoch}-{self.request_count}"
        at_ns = self.clock.now_ns()

        def record(sequence: int) -> JournalRecord:
            return JournalRecord(
                sequence=sequence,
                kind=JournalKind.BEGIN,
                request=request,
                at_ns=at_ns,
                organisation=key.organisation,
                project=key.project,
                key=key.id,
                model=model.name,
                endpoint=model.endpoint,
                replica=replica.attempt,
                zone=replica.zone,
                tokens_input=tokens_input,
                tokens_output=tokens_output,
                amount_neur=amount_neur,
            )

        self.journals[-1].append(record)
        self.inflight[request] = _InFlight(self.journals[-1].records[-1], model)
        return True

    def end(self) -> bool:
        """End the oldest request: completed, cut short, or failed before its first byte."""
        if not self.inflight:
            return False
        request, one = next(iter(self.inflight.items()))
        del self.inflight[request]
        share = self.rng.choice([0, 1, 4, 10])
        begin, tokens_output = one.begin, one.begin.tokens_output * share // 10
        tokens_input = begin.tokens_input if share else 0
        amount_neur = one.model.cost_neur(tokens_input, tokens_output)

        def record(sequence: int) -> JournalRecord:
            return JournalRecord(
                sequence=sequence,
                kind=JournalKind.END,
                request=request,
                at_ns=self.clock.now_ns(),
                organisation=begin.organisation,
                project=begin.project,
                key=begin.key,
                model=begin.model,
                endpoint=begin.endpoint,
                replica=begin.replica,
                zone=begin.zone,
                tokens_input=tokens_input,
                tokens_output=tokens_output,
                amount_neur=amount_neur,
                outcome="completed" if share else "upstream_failed",
            )

        self.journals[-1].append(record)
        self.accounts[begin.project].settle(begin.amount_neur, amount_neur)
        return True

    # -- replicas -----------------------------------------------------------------------------

    def may_send(self, attempt: str) -> bool:
        """Say whether a request that came now might go to this replica."""
        snapshot = self.snapshot
        if snapshot is None or not self.is_alive:
            return False
        is_fresh = self.clock.now_ns() - self.told_ns <= snapshot.staleness_max_s * SECOND
        return is_fresh and attempt in _attempts(snapshot)

    def load(self) -> GatewayLoad:
        """Return what is under way; a request for a model without replicas waits for one."""
        attempts = _attempts(self.snapshot) if self.snapshot else set()
        served = (
            {m.endpoint for m in self.snapshot.models if m.replicas} if self.snapshot else set()
        )
        self.cold_ns = {name: ns for name, ns in self.cold_ns.items() if name not in served}
        at_replicas = Counter(one.begin.endpoint for one in self.inflight.values())
        return GatewayLoad(
            endpoints=tuple(
                EndpointLoad(
                    endpoint=name,
                    in_flight=at_replicas[name],
                    queued=int(name in self.cold_ns),
                    oldest_wait_ms=(self._now_ns() - self.cold_ns.get(name, self._now_ns()))
                    // 10**6,
                )
                for name in sorted(at_replicas.keys() | self.cold_ns.keys())
            ),
            busy=tuple(sorted({one.begin.replica for one in self.inflight.values()} - attempts)),
        )

    # -- the control plane --------------------------------------------------------------------

    def poll(self, call: Call) -> "Future[Answer]":
        """Ask for a newer snapshot alone; this says nothing about any journal."""
        version = self.snapshot.version if self.snapshot else 0
        epoch = self.journals[0].epoch if self.journals else self.epoch
        return call(self._command(epoch, (), snapshot_version=version))

    def ship(self, call: Call, *, is_last: bool = False) -> None:
        """Send the oldest journal's next lines with wishes and returns, one call at a time."""
        if not self.is_alive or self._sent is not None or not self.journals:
            return
        journal = self.journals[0]
        is_finished = journal is not self.journals[-1] or is_last
        count = self.rng.choice([1, 3, 100])
        records = tuple(journal.records[journal.shipped : journal.shipped + count])
        last = journal.shipped + len(records)
        is_complete = is_finished and last == len(journal.records)
        is_all_told = journal is self.journals[-1] and last == len(journal.records)
        wants = tuple(
            Want(project=project, amount_neur=self.accounts[project].wish(needed, self._now_ns()))
            for project, needed in sorted(self.wishes.items())
        )
        self.wishes = {}
        returns = self._returns(is_last=is_last) if is_all_told and not wants else {}
        command = self._command(
            journal.epoch,
            records,
            is_epoch_complete=is_complete,
            journal_until_ns=self._now_ns() if is_all_told else 0,
            wants=wants,
            returns=returns,
            snapshot_version=self.snapshot.version if self.snapshot else 0,
            load=self.load(),
        )
        self._sent = _Sent(call(command), journal, last, is_complete, wants)

    def hear(self, *, is_lost: bool) -> bool:
        """Take the answer of the last call if it is there; False while it is awaited."""
        sent = self._sent
        if sent is None:
            return True
        if not sent.future.done() and not is_lost:
            return False
        self._sent = None
        error = sent.future.exception() if sent.future.done() else None
        if is_lost or error is not None:
            for want in sent.wants:
                self.wishes[want.project] = want.amount_neur
            if isinstance(error, StaleGeneration) and "has taken over" in error.message:
                self.kill()
            return True
        reply = sent.future.result()
        assert isinstance(reply, SyncReply)
        sent.journal.shipped = max(
            sent.journal.shipped, min(reply.acknowledged_sequence, sent.last)
        )
        if sent.is_complete and sent.journal.shipped == sent.last:
            self.journals.remove(sent.journal)
        self.take(reply)
        return True

    def take(self, reply: SyncReply) -> None:
        """Take in a reply's snapshot and grants."""
        self.told_ns = self.clock.now_ns()
        if reply.snapshot is not None:
            self.snapshot = reply.snapshot
        for grant in reply.grants:
            self.accounts.setdefault(grant.project, Escrow()).grant(grant.amount_neur)

    def _returns(self, *, is_last: bool) -> dict[str, int]:
        """Give back what is idle. A call that may have arrived is never offered again."""
        returns = {}
        for project, account in sorted(self.accounts.items()):
            idle_ns = self._now_ns() - self.used_ns.get(project, 0)
            if is_last or idle_ns > IDLE_NS:
                amount_neur = account.give_back()
                if amount_neur:
                    returns[project] = amount_neur
        return returns

    def _command(
        self, records_epoch: int, records: tuple[JournalRecord, ...], **more: object
    ) -> SyncGateway:
        request = SyncRequest(
            gateway=self.name,
            epoch=self.epoch,
            records_epoch=records_epoch,
            records=records,
            **more,  # type: ignore[arg-type]
        )
        return SyncGateway(principal=PRINCIPAL, request=request)

    def _now_ns(self) -> int:
        return self.clock.now_ns()


def _attempts(snapshot: GatewaySnapshot) -> set[str]:
    return {replica.attempt for model in snapshot.models for replica in model.replicas}


def truths(gateways: list[Gateway]) -> dict[str, tuple[int, int]]:
    """Return what each begun request must be charged, as (least, most) n€.

    An END says it exactly, a BEGIN alone its reservation; of a journal that is lost the leader knows
    a part: nothing, the END, or only the BEGIN.
    """
    found: dict[str, tuple[int, int]] = {}
    for gateway in gateways:
        for journal in gateway.written:
            for record in journal.records:
                amount_neur = record.amount_neur
                if journal.epoch in gateway.lost:
                    least, most = found.get(record.request, (0, amount_neur))
                    found[record.request] = (least, max(most, amount_neur))
                else:
                    found[record.request] = (amount_neur, amount_neur)
    return found

"""Money and evidence judged from the log and the store's rows, by plain tallies of its own.

Every usage is charged once; what is held is what was promised and neither spent nor freed, and stays
until all that a workload used is charged; energy is split to the millijoule; the Merkle log commits to
exactly the receipts there are.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from moulin.controlplane.books import Books
from moulin.domain.events import (
    ChargedUsage,
    EndpointRolledOut,
    Event,
    FactoryApplied,
    IntervalMetered,
    NodeLeft,
    UsagesCharged,
    WorkloadSubmitted,
)
from moulin.domain.factory import PriceBook, Project
from moulin.domain.gateway_events import (
    GatewayEpochClosed,
    GatewayEpochOpened,
    GrantIssued,
    GrantReturned,
    JournalRecorded,
)
from moulin.domain.snapshot import JournalKind, JournalRecord
from moulin.domain.usage import Meter
from moulin.domain.views import ReceiptView
from moulin.domain.workload import WorkloadKind, WorkloadSpec, units_wanted
from moulin.ledger import (
    Frontier,
    VerifierKey,
    append,
    leaf_hash,
    make_receipt,
    open_checkpoint,
    root,
)
from moulin.policy.admit import OPEN_ENDED_HOLD_S
from moulin.ports.store import Store
from tests.simulation.holds import OF_METERING, Holds
from tests.simulation.invariants import must
from tests.simulation.world import OPERATOR_SECRET, SECOND, Signer

# A gateway may serve from a snapshot this old, which changes with the next event only, and its clock
# may be this far from the control plane's.
STALE_NS = 150 * SECOND
# What can make a project's debt larger.
OF_MONEY = (FactoryApplied, WorkloadSubmitted, UsagesCharged, GrantIssued, JournalRecorded)
# A receipt's price is rounded once for each of three meters.
ROUNDING_NEUR = 2
EpochKey = tuple[str, int]


@dataclass(slots=True)
class Purse:
    """One project's money as the log promised and spent it.

    `debt_neur` is by how much the budget was overdrawn when it was last judged, and `excess_neur` by
    how much it may be overdrawn more since, for one of three reasons, all told by the log: a workload
    used more than was estimated and held for it (a retry, an endpoint's second hour, the time until a
    stop took effect, prices that rose after its admission); a request was reserved at prices that have
    changed since; a budget was lowered below what is spent and promised.
    """

    budget_neur: int = -1
    spent_neur: int = 0
    debt_neur: int = 0
    excess_neur: int = 0
    reserved: dict[str, int] = field(default_factory=dict)
    escrow: dict[EpochKey, int] = field(default_factory=dict)
    settled: dict[str, int] = field(default_factory=dict)

    @property
    def held_neur(self) -> int:
        return sum(self.reserved.values()) + sum(self.escrow.values()) + sum(self.settled.values())

    @property
    def overdraft_neur(self) -> int:
        if self.budget_neur < 0:
            return 0
        return max(0, self.spent_neur + self.held_neur - self.budget_neur)


@dataclass(slots=True)
class Auditor:
    """Reads the same log as the judge, and the ledger's and the evidence log's rows."""

    reader: Store
    signer: Signer
    holds: Holds
    purses: dict[str, Purse] = field(default_factory=dict)
    promised: dict[str, tuple[WorkloadSubmitted, int]] = field(default_factory=dict)
    project_of: dict[str, str] = field(default_factory=dict)
    charged: dict[str, ChargedUsage] = field(default_factory=dict)
    charged_requests: dict[str, int] = field(default_factory=dict)
    journals: dict[EpochKey, dict[str, JournalRecord]] = field(default_factory=dict)
    through: dict[EpochKey, int] = field(default_factory=dict)
    intervals: dict[str, tuple[int, int]] = field(default_factory=dict)
    gaps: set[str] = field(default_factory=set)
    windows: dict[tuple[str, str], int] = field(default_factory=dict)
    frontiers: dict[str, Frontier] = field(default_factory=dict)
    repriced: set[str] = field(default_factory=set)
    repriced_ns: list[tuple[int, int]] = field(default_factory=list)
    rolled_out: set[str] = field(default_factory=set)
    metered_mj: int = 0
    receipted_mj: int = 0
    entry_count: int = 0
    entry_neur: int = 0
    charged_neur: int = 0
    last_entry: str = ""
    last_receipt: str = ""
    receipts: dict[str, ReceiptView] = field(default_factory=dict)

    # -- the log ------------------------------------------------------------------------------

    def read(self, event: Event) -> None:
        """Judge one event, with its rows, before the next one is folded."""
        if not isinstance(event.payload, OF_METERING):
            self._end_holds()
        self.holds.read(event)
        self._read_money(event)
        if isinstance(event.payload, OF_MONEY):
            for project, purse in self.purses.items():
                _judge_debt(project, purse)

    def _read_money(self, event: Event) -> None:
        match event.payload:
            case FactoryApplied() as applied:
                for change in applied.changes:
                    if isinstance(change.value, Project):
                        purse = self._purse(change.name)
                        purse.budget_neur = change.value.budget_neur
                        purse.excess_neur += purse.overdraft_neur
                    if isinstance(change.value, PriceBook):
                        self.repriced_ns.append((change.value.effective_from_ns, event.at_ns))
            case WorkloadSubmitted(submission=submission, reserved_neur=reserved_neur):
                self.project_of[submission.id] = submission.project
                self._purse(submission.project).reserved[submission.id] = reserved_neur
                self.promised[submission.id] = (event.payload, event.at_ns)
                self._judge_promise(submission.project, f"admitting {submission.id}")
            case EndpointRolledOut(workload=workload):
                self.rolled_out.add(workload)
            case UsagesCharged() as charged:
                self._charge(charged)
            case IntervalMetered() as metered:
                self._judge_interval(metered)
            case NodeLeft(node=node):
                self.gaps.add(node)
            case _:
                self._read_gateway(event)

    def _read_gateway(self, event: Event) -> None:
        match event.payload:
            case GatewayEpochOpened(gateway=gateway, gateway_epoch=epoch):
                must((gateway, epoch) not in self.journals, f"epoch {epoch} opens twice")
                self.journals[(gateway, epoch)], self.through[(gateway, epoch)] = {}, 0
            case GrantIssued(gateway=gateway, gateway_epoch=epoch, project=project) as issued:
                escrow = self._purse(project).escrow
                escrow[(gateway, epoch)] = escrow.get((gateway, epoch), 0) + issued.amount_neur
                self._judge_promise(project, f"granting to {gateway}")
            case GrantReturned(gateway=gateway, gateway_epoch=epoch, project=project) as returned:
                self._take_escrow((gateway, epoch), project, returned.amount_neur)
            case JournalRecorded() as recorded:
                self._record(recorded)
            case GatewayEpochClosed(gateway=gateway, gateway_epoch=epoch):
                begun = self.journals.pop((gateway, epoch))
                must(not begun, f"epoch {epoch} closes with {sorted(begun)} open")
                for purse in self.purses.values():
                    purse.escrow.pop((gateway, epoch), None)
            case _:
                pass

    def _purse(self, project: str) -> Purse:
        return self.purses.setdefault(project, Purse())

    def _end_holds(self) -> None:
        """Give back the holds of workloads of which everything is charged."""
        for workload in self.holds.over():
            self._purse(self.project_of[workload]).reserved.pop(workload)

    def _judge_promise(self, project: str, doing: str) -> None:
        """What is promised fits the budget at that moment, whatever becomes of it later."""
        purse = self._purse(project)
        must(
            purse.overdraft_neur == 0,
            f"{doing}: {project} spent {purse.spent_neur} and holds {purse.held_neur} of "
            f"{purse.budget_neur}",
        )

    def _take_escrow(self, key: EpochKey, project: str, amount_neur: int) -> None:
        escrow = self._purse(project).escrow
        left_neur = escrow.get(key, 0) - amount_neur
        must(left_neur >= 0, f"gateway epoch {key} used {-left_neur} more than it was granted")
        escrow[key] = left_neur

    def _record(self, recorded: JournalRecorded) -> None:
        key = (recorded.gateway, recorded.gateway_epoch)
        begun = self.journals[key]
        for record in recorded.records:
            self.through[key] += 1
            must(
                record.sequence == self.through[key], f"the journal of {key} has a gap or a repeat"
            )
            if record.kind is JournalKind.BEGIN:
                begun[record.request] = record
                continue
            must(record.request in begun, f"{record.request} ends without a beginning, or twice")
            begin = begun.pop(record.request)
            must(record.amount_neur <= begin.amount_neur, f"{record.request} is above its hold")
            self._take_escrow(key, begin.project, record.amount_neur)
            self._purse(begin.project).settled[record.request] = record.amount_neur
        must(recorded.through_sequence == self.through[key], "through_sequence is another")

    def _charge(self, charged: UsagesCharged) -> None:
        if charged.items[-1].receipt not in self.receipts:
            self.read_rows()
        frontier = self.frontiers.get(charged.origin, Frontier())
        start = frontier.size
        must(
            [item.leaf_index for item in charged.items]
            == list(range(start, start + len(charged.items))),
            f"leaves of {charged.origin} are not in order",
        )
        leaves = self.reader.leaves(charged.origin, start, start + len(charged.items))
        frontier, _ = append(frontier, leaves)
        must(
            frontier.size == charged.tree_size and root(frontier).hex() == charged.root,
            f"the root of {charged.origin} at {charged.tree_size} is not that of its leaves",
        )
        self.frontiers[charged.origin] = frontier
        for item in charged.items:
            self._charge_item(item)

    def _charge_item(self, item: ChargedUsage) -> None:
        must(item.usage not in self.charged, f"{item.usage} is charged twice")
        self.charged[item.usage] = item
        self.charged_neur += item.amount_neur
        purse = self._purse(item.project)
        purse.spent_neur += item.amount_neur
        if item.is_from_grant:
            must(item.workload in purse.settled, f"{item.workload} is charged and not settled")
            settled = purse.settled.pop(item.workload)
            must(
                item.amount_neur == settled
                or self._is_repriced(item)
                # Two models may answer then, and the dearer one is what is held for.
                or (item.amount_neur < settled and self._is_rolled_out(item)),
                f"{item.workload} settled {settled} and is charged {item.amount_neur}",
            )
            self.charged_requests[item.workload] = item.amount_neur
            purse.excess_neur += max(0, item.amount_neur - settled)
            if item.amount_neur != settled:
                self.repriced.add(item.workload)
        else:
            must(
                item.workload in purse.reserved,
                f"{item.usage} is charged after the hold of {item.workload} has ended",
            )
            left_neur = purse.reserved[item.workload] - item.amount_neur
            purse.reserved[item.workload] = max(0, left_neur)
            purse.excess_neur += max(0, -left_neur)
        receipt = self.receipts[item.receipt]
        must(
            receipt.charge.amount_neur == item.amount_neur and receipt.usage.id == item.usage,
            f"the receipt of {item.usage} says something else",
        )
        if not item.is_from_grant:
            self._judge_window(receipt)

    def _is_repriced(self, item: ChargedUsage) -> bool:
        """Whether the gateway may have reserved at prices that were changing when it did."""
        start_ns = self.receipts[item.receipt].usage.start_ns
        return any(
            min(times_ns) - STALE_NS <= start_ns <= max(times_ns) + STALE_NS
            for times_ns in self.repriced_ns
        )

    def _is_rolled_out(self, item: ChargedUsage) -> bool:
        return self.receipts[item.receipt].usage.workload in self.rolled_out

    def _judge_window(self, receipt: ReceiptView) -> None:
        """What an attempt held is charged for each moment at most once."""
        usage = receipt.usage
        node = usage.id.removeprefix(f"use_{usage.attempt}.").rsplit(".", 1)[0]
        key = (usage.attempt, node)
        must(
            usage.start_ns >= self.windows.get(key, 0) and usage.end_ns >= usage.start_ns,
            f"{usage.id} is charged from {usage.start_ns}, was until {self.windows.get(key)}",
        )
        self.windows[key] = usage.end_ns

    def _judge_interval(self, metered: IntervalMetered) -> None:
        allocated = sum(metered.task_energy_mj.values())
        must(
            allocated + metered.idle_mj + metered.unattributed_mj == metered.energy_mj
            and min(metered.idle_mj, metered.unattributed_mj, metered.overhead_mj) >= 0,
            f"{metered.node}: {allocated} + {metered.idle_mj} + {metered.unattributed_mj} is not "
            f"{metered.energy_mj} mJ",
        )
        until_ns, counter_ns = self.intervals.get(metered.node, (metered.start_ns, 0))
        is_continued = metered.start_ns == until_ns
        if metered.node in self.gaps and metered.start_ns > until_ns:
            self.gaps.discard(metered.node)
            is_continued = True
        must(
            is_continued and metered.end_ns >= metered.start_ns,
            f"{metered.node} is metered from {metered.start_ns}, was until {until_ns}",
        )
        is_read = metered.node_cpu_ns >= 0
        must(
            not is_read or metered.node_cpu_ns >= counter_ns,
            f"the counter of {metered.node} went back",
        )
        self.intervals[metered.node] = (metered.end_ns, max(metered.node_cpu_ns, counter_ns))
        self.metered_mj += allocated + sum(metered.task_overhead_mj.values())

    # -- rows ---------------------------------------------------------------------------------

    def read_rows(self) -> None:
        """Read new receipts and entries; each entry is balanced."""
        for receipt in self.reader.receipts(after=self.last_receipt, limit=10_000):
            must(receipt.id not in self.receipts, f"receipt {receipt.id} is issued twice")
            self.receipts[receipt.id] = receipt
            self.receipted_mj += receipt.usage.energy_mj
            self.last_receipt = receipt.id
        for entry in self.reader.entries(after=self.last_entry, limit=10_000):
            debit = sum(p.debit_neur for p in entry.postings)
            credit = sum(p.credit_neur for p in entry.postings)
            must(debit == credit, f"entry {entry.id} is not balanced")
            self.entry_count += 1
            self.entry_neur += debit
            self.last_entry = entry.id

    def judge_sums(self, books: Books) -> None:
        """The ledger, the receipts and the balances all say what the log says."""
        self._end_holds()
        must(
            self.entry_count == len(self.charged) == len(self.receipts)
            and self.entry_neur == self.charged_neur,
            f"{len(self.charged)} charges, {self.entry_count} entries, {len(self.receipts)} receipts",
        )
        for project, purse in sorted(self.purses.items()):
            money = books.balances.projects[project]
            must(
                (money.spent_neur, money.reserved_neur)
                == (purse.spent_neur, sum(purse.reserved.values()))
                and money.granted_neur == sum(purse.escrow.values())
                and money.settled_neur == sum(purse.settled.values())
                and money.budget_neur == purse.budget_neur,
                f"the balance of {project} is {money}, the log says {purse}",
            )

    def judge_estimates(self) -> None:
        """Who used no more than was estimated is charged no more than was held, but for rounding."""
        used: dict[str, list[ReceiptView]] = {}
        for receipt in self.receipts.values():
            if not receipt.usage.request:
                used.setdefault(receipt.usage.workload, []).append(receipt)
        for workload, receipts in used.items():
            submitted, at_ns = self.promised[workload]
            # A clock set back can put the work before its submission, and a new price between them.
            first_ns = min(at_ns, *(receipt.usage.start_ns for receipt in receipts))
            is_repriced = any(max(times_ns) > first_ns for times_ns in self.repriced_ns)
            is_repriced |= workload in self.rolled_out
            if is_repriced or not _is_within(submitted.submission.spec, receipts):
                continue
            charged_neur = sum(receipt.charge.amount_neur for receipt in receipts)
            must(
                charged_neur <= submitted.reserved_neur + ROUNDING_NEUR * len(receipts),
                f"{workload} used what was estimated, held {submitted.reserved_neur} for it and is "
                f"charged {charged_neur}",
            )

    def judge_evidence(self) -> None:
        """Accounts sum to zero, checkpoints verify, and each leaf opens to its receipt."""
        must(sum(self.reader.account_totals().values()) == 0, "the accounts do not sum to zero")
        key = VerifierKey(name=self.signer.key_name, public_key=self.signer.public_key)
        for origin, frontier in sorted(self.frontiers.items()):
            found = self.reader.checkpoint(origin)
            must(found is not None, f"{origin} has no checkpoint")
            assert found is not None
            head = open_checkpoint(found.note, key, _is_signed)
            must(
                head.size == frontier.size and head.root == root(frontier),
                f"the checkpoint of {origin} is not its tree's",
            )
        for receipt in self.receipts.values():
            made = make_receipt(
                receipt.usage,
                receipt.charge,
                bytes.fromhex(receipt.salt_hex),
                (receipt.origin, receipt.leaf_index),
                OPERATOR_SECRET,
            )
            stored = self.reader.leaves(receipt.origin, receipt.leaf_index, receipt.leaf_index + 1)
            must(stored == [leaf_hash(made.leaf_bytes)], f"{receipt.id} does not open its leaf")

    def judge_energy(self, books: Books) -> None:
        """What tasks were allocated is on receipts, or waits in intervals that are still open."""
        waiting_mj = sum(_open_energy_mj(books))
        must(
            self.metered_mj == self.receipted_mj + waiting_mj,
            f"{self.metered_mj} mJ metered, {self.receipted_mj} on receipts, {waiting_mj} open",
        )


def _is_within(spec: WorkloadSpec, receipts: Iterable[ReceiptView]) -> bool:
    """Whether a workload held what its reservation counts on; a lease's depends on its nodes."""
    if spec.kind is WorkloadKind.LEASE:
        return False
    held_ms = (spec.time_limit_s or OPEN_ENDED_HOLD_S) * 1000 * spec.nodes * units_wanted(spec)
    used: Counter[str] = Counter()
    for receipt in receipts:
        used.update(receipt.usage.quantities)
    return (
        used[Meter.CPU_MILLI_MS] <= spec.resources.cpu_milli * held_ms
        and used[Meter.MEMORY_MB_MS] * 10**6 <= spec.resources.memory_bytes * held_ms
        and used[Meter.ACCELERATOR_MS] <= spec.resources.accelerators * held_ms
    )


def _judge_debt(project: str, purse: Purse) -> None:
    """A budget is overdrawn only by what nobody could have held for."""
    overdraft_neur = purse.overdraft_neur
    must(
        overdraft_neur <= purse.debt_neur + purse.excess_neur,
        f"{project} has {overdraft_neur} n€ more spent and held than its budget, it was "
        f"{purse.debt_neur} n€, and only {purse.excess_neur} n€ more are explained",
    )
    purse.debt_neur, purse.excess_neur = overdraft_neur, 0


def _open_energy_mj(books: Books) -> Iterator[int]:
    for interval in books.cursors.open.intervals:
        yield interval.energy_mj + interval.overhead_mj
    for carried in books.cursors.open.carried.values():
        yield carried.energy_mj + carried.overhead_mj


def _is_signed(public_key: bytes, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except InvalidSignature:
        return False
    return True

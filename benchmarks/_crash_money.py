"""Judges money: balanced entries, receipts for everything that was used, nobody beyond the budget."""

import itertools
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

from benchmarks._crash_load import Call, Job
from benchmarks._crash_world import (
    LAB,
    LAB_BUDGET_NEUR,
    NEUR_PER_TOKEN_INPUT,
    NEUR_PER_TOKEN_OUTPUT,
    SMALL,
    SMALL_BUDGET_NEUR,
    World,
)
from moulin.domain.errors import MoulinError
from moulin.domain.usage import Meter
from moulin.domain.views import BalanceView, ReceiptView
from moulin.domain.wire import decode
from moulin.routing.requests import INPUT_TOKENS_MARGIN

BUDGETS = {LAB: LAB_BUDGET_NEUR, SMALL: SMALL_BUDGET_NEUR}
PERIOD_S = 1.0


class BudgetWatch(threading.Thread):
    """Asks for the balances all the time; `found` is what must never be."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self.world = world
        self.found: list[str] = []
        self._stopping = threading.Event()

    def run(self) -> None:
        """Look until stopped."""
        with self.world.client() as operator:
            while not self._stopping.wait(PERIOD_S):
                with suppress(MoulinError):
                    self.found.extend(beyond_budget(operator.status().balances))

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        self.join()


def beyond_budget(balances: Sequence[BalanceView]) -> Iterator[str]:
    """Yield projects that spent, or were promised, more than their budget."""
    for each in balances:
        held_neur = each.reserved_neur + each.granted_neur
        if each.budget_neur != BUDGETS[each.project]:
            yield f"{each.project}: its budget is {each.budget_neur} n€"
        if min(each.spent_neur, each.reserved_neur, each.granted_neur) < 0:
            yield f"{each.project}: a balance is below zero: {each}"
        if each.spent_neur + held_neur > each.budget_neur:
            yield f"{each.project}: {each.spent_neur} spent and {held_neur} held of {each.budget_neur}"


def cost_neur(tokens: tuple[int, int]) -> int:
    """Return the price of a call in n€."""
    return tokens[0] * NEUR_PER_TOKEN_INPUT + tokens[1] * NEUR_PER_TOKEN_OUTPUT


def judge_calls(calls: Sequence[Call], receipts: Mapping[str, ReceiptView]) -> Iterator[str]:
    """Yield calls that were charged wrong, or not at all."""
    for call in calls:
        receipt = receipts.get(call.receipt or f"rcp_{call.request}")
        if receipt is None:
            if call.has_begun:
                yield f"{call.request}: got an answer{'' if call.is_full else ' in part'}, no receipt"
            continue
        amount_neur = receipt.charge.amount_neur
        reserved = (call.body_bytes + INPUT_TOKENS_MARGIN, call.tokens_output_max)
        if amount_neur > cost_neur(reserved):
            yield f"{call.request}: charged {amount_neur} n€, more than was reserved"
        if call.is_full and call.tokens is not None:
            if amount_neur != cost_neur(call.tokens) or _tokens(receipt) != call.tokens:
                yield (
                    f"{call.request}: used {call.tokens} tokens, charged for {_tokens(receipt)}: "
                    f"{amount_neur} n€"
                )
        elif call.status >= 400 and amount_neur:
            yield f"{call.request}: refused with {call.status} and charged {amount_neur} n€"
    strangers = {r.usage.request for r in receipts.values() if r.usage.request}
    strangers -= {call.request for call in calls}
    unanswered = sum(not call.request for call in calls)
    if len(strangers) > unanswered:
        yield f"{len(strangers)} requests charged of which {unanswered} could be somebody's"


def judge_jobs(
    jobs: Sequence[Job], ran: set[str], receipts: Sequence[ReceiptView]
) -> Iterator[str]:
    """Yield jobs that ran and have no receipt, and times of an attempt that were charged twice."""
    windows: dict[tuple[str, str], list[tuple[int, int]]] = {}
    charged = set()
    for receipt in receipts:
        usage = receipt.usage
        if not usage.request:
            charged.add(usage.workload)
            held = (usage.attempt, usage.id.rpartition(".")[0])
            windows.setdefault(held, []).append((usage.start_ns, usage.end_ns))
    for job in jobs:
        if job.id and job.name in ran and job.id not in charged:
            yield f"{job.name}: ran and has no receipt"
    for (attempt, _), found in sorted(windows.items()):
        found.sort()
        for former, latter in itertools.pairwise(found):
            if latter[0] < former[1]:
                yield f"{attempt}: charged twice for {(former[1] - latter[0]) / 1e9:.3f} s"


def judge_balances(
    balances: Sequence[BalanceView], receipts: Sequence[ReceiptView], reserved: Mapping[str, int]
) -> Iterator[str]:
    """Yield projects whose spending is not the sum of their receipts, or whose holds lack a holder."""
    yield from beyond_budget(balances)
    charged = _charged(receipts)
    for each in balances:
        charged_neur = charged.get(each.project, 0)
        if each.spent_neur != charged_neur:
            yield f"{each.project}: spent {each.spent_neur} n€, receipts say {charged_neur} n€"
        if each.reserved_neur != reserved.get(each.project, 0):
            yield f"{each.project}: {each.reserved_neur} n€ reserved, workloads hold {reserved}"
        if each.granted_neur:
            yield f"{each.project}: {each.granted_neur} n€ granted while nobody calls"


def judge_ledger(database: Path) -> Iterator[str]:
    """Yield entries that do not balance, and what entries, accounts and receipts say differently.

    Read with plain SQL from the file, after everything has stopped.
    """
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rows = connection.execute("select entry, account, debit_neur, credit_neur from postings")
        postings = [(e, a, int(debit) - int(credit)) for e, a, debit, credit in rows]
        totals = connection.execute("select account, total_neur from accounts").fetchall()
        causes = [cause for (cause,) in connection.execute("select cause from entries")]
        bodies = [json.loads(body) for (body,) in connection.execute("select body from receipts")]
    receipts = [decode(ReceiptView, body) for body in bodies]
    by_account: dict[str, int] = {}
    by_entry: dict[str, int] = {}
    for entry, account, amount in postings:
        by_account[account] = by_account.get(account, 0) + amount
        by_entry[entry] = by_entry.get(entry, 0) + amount
    yield from (f"{entry} is out of balance by {n} n€" for entry, n in by_entry.items() if n)
    if sum(by_account.values()):
        yield f"all accounts add up to {sum(by_account.values())} n€"
    stored: dict[str, int] = {}
    for account, total in totals:
        stored[account] = stored.get(account, 0) + int(total)
    for account in sorted({*stored, *by_account}):
        if stored.get(account, 0) != by_account.get(account, 0):
            yield f"{account}: {stored.get(account)} n€ stored, {by_account.get(account)} n€ posted"
    for project, owed_neur in _charged(receipts).items():
        if by_account.get(f"project:{project}:payable", 0) != owed_neur:
            yield f"{project}: its account differs from its receipts, {owed_neur} n€"
    if sorted(causes) != sorted(receipt.usage.id for receipt in receipts):
        yield f"{len(causes)} entries for {len(receipts)} receipts"


def unreceipted(database: Path) -> Iterator[str]:
    """Yield requests whose end a gateway has told and that have no receipt (yet)."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        settled = set(_settled(connection))
        bodies = connection.execute("select body from receipts").fetchall()
    missing = settled - {json.loads(body)["usage"]["request"] for (body,) in bodies}
    yield from (f"{request}: settled and without receipt" for request in sorted(missing))


def judge_energy(receipts: Sequence[ReceiptView]) -> Iterator[str]:
    """Yield requests that produced tokens out of nothing, and not because a reading is missing."""
    for receipt in receipts:
        usage = receipt.usage
        has_worked = usage.request and usage.quantities.get(Meter.TOKENS_OUTPUT)
        if has_worked and not usage.energy_mj and not usage.is_estimated:
            yield f"{usage.request}: {usage.quantities} for 0 mJ"


def _charged(receipts: Sequence[ReceiptView]) -> Mapping[str, int]:
    charged: dict[str, int] = {}
    for receipt in receipts:
        charged[receipt.project] = charged.get(receipt.project, 0) + receipt.charge.amount_neur
    return charged


def _tokens(receipt: ReceiptView) -> tuple[int, int]:
    quantities = receipt.usage.quantities
    return quantities.get(Meter.TOKENS_INPUT, 0), quantities.get(Meter.TOKENS_OUTPUT, 0)


def _settled(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield the requests whose end gateways have told."""
    query = "select payload from events where kind = 'journal.recorded'"
    for (payload,) in connection.execute(query):
        for record in json.loads(payload)["records"]:
            if record["kind"] == "end":
                yield record["request"]

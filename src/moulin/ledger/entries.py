"""Decide the balanced entries of charges, reservations and invoices; totals are Python integers.

Never changes an entry: what was wrong is corrected by another entry. Accounts are text:
`project:NAME:payable` (what a project owes), `revenue:SKU`, `project:NAME:held` against
`holds:open` (money set aside), `rounding:residual` (what invoices round away).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from moulin.domain.errors import check
from moulin.domain.ids import OrganisationId, ProjectId
from moulin.domain.units import divide_round_half_even
from moulin.domain.usage import Charge, Entry, Posting, Usage

NEUR_PER_CENT: Final = 10_000_000
HOLDS: Final = "holds:open"
RESIDUAL: Final = "rounding:residual"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Money set aside for a workload or a gateway's grant; `id` names the reservation."""

    id: str
    organisation: OrganisationId
    project: ProjectId
    amount_neur: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceLine:
    """What one SKU adds to an invoice, exact."""

    sku: str
    amount_neur: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """The sum of a project's entries: exact, rounded once to whole cents, and their difference.

    `payable_neur` = `exact_neur` + `rounding_neur` is a whole number of cents; `entry` moves the
    rounding to the residual account.
    """

    id: str
    project: ProjectId
    lines: tuple[InvoiceLine, ...]
    exact_neur: int
    rounding_neur: int
    payable_neur: int
    entry: Entry


def payable_account(project: str) -> str:
    """Name the account of what a project owes."""
    return f"project:{project}:payable"


def held_account(project: str) -> str:
    """Name the account of what is set aside of a project's budget."""
    return f"project:{project}:held"


def revenue_account(sku: str) -> str:
    """Name the account of what was sold of a SKU."""
    return f"revenue:{sku}"


def post(charge: Charge, usage: Usage) -> Entry:
    """Return the entry of a charge: the project owes, each SKU earns.

    Named by the usage, so that a usage is charged at most once. A charge of nothing gives an
    entry without postings: it happened and cost nothing.
    Raises `InvariantViolated` when the charge is another usage's or its lines do not add up.
    """
    check(charge.usage == usage.id, "a charge is posted with its own usage")
    check(
        charge.amount_neur == sum(line.amount_neur for line in charge.lines),
        "a charge is the sum of its lines",
    )
    earned: dict[str, int] = {}
    for line in charge.lines:
        earned[line.sku] = earned.get(line.sku, 0) + line.amount_neur
    entry = Entry(
        id=f"ent_{usage.id}",
        at_ns=usage.end_ns,
        organisation=usage.organisation,
        project=usage.project,
        cause=usage.id,
        postings=(
            *_moves(payable_account(usage.project), charge.amount_neur),
            *(p for sku in sorted(earned) for p in _moves(revenue_account(sku), -earned[sku])),
        ),
        labels={"price_book": charge.price_book},
    )
    check_balanced((entry,))
    return entry


def reserve(hold: Hold, at_ns: int) -> Entry:
    """Return the entry that sets a hold's money aside."""
    return _hold_entry(hold, "reserve", hold.amount_neur, at_ns)


def settle(hold: Hold, left_neur: int, amount_neur: int, *, at_ns: int, usage: str) -> Entry:
    """Return the entry that frees what a charge takes from a hold of which `left_neur` is left.

    A charge above the hold frees what is left; the charge itself is posted whole by `post`.
    """
    freed_neur = min(left_neur, amount_neur)
    return _hold_entry(hold, f"settle.{usage}", -freed_neur, at_ns)


def release(hold: Hold, left_neur: int, at_ns: int) -> Entry:
    """Return the entry that gives back what is left of a hold when its purpose ends."""
    return _hold_entry(hold, "release", -left_neur, at_ns)


def check_balanced(entries: Iterable[Entry]) -> None:
    """Raise `InvariantViolated` unless each entry's debits equal its credits, one side a posting."""
    for entry in entries:
        for posting in entry.postings:
            check(
                min(posting.debit_neur, posting.credit_neur) == 0
                and max(posting.debit_neur, posting.credit_neur) > 0,
                f"entry {entry.id}: exactly one side of each posting is above zero",
            )
        check(
            sum(p.debit_neur - p.credit_neur for p in entry.postings) == 0,
            f"entry {entry.id}: debits must equal credits",
        )


def totals(entries: Iterable[Entry]) -> dict[str, int]:
    """Return debit minus credit per account, by account; the values add up to zero."""
    sums: dict[str, int] = {}
    for entry in entries:
        for posting in entry.postings:
            change = posting.debit_neur - posting.credit_neur
            sums[posting.account] = sums.get(posting.account, 0) + change
    return dict(sorted(sums.items()))


def invoice(invoice_id: str, project: ProjectId, entries: Sequence[Entry], at_ns: int) -> Invoice:
    """Sum a project's charges and round once, half to even, to whole cents.

    `entries` are those not invoiced before; entries of other projects and of holds are ignored.
    Raises `InvariantViolated` when an entry is not balanced.
    """
    check_balanced(entries)
    own = [entry for entry in entries if entry.project == project]
    account = payable_account(project)
    exact_neur = totals(own).get(account, 0)
    sold: dict[str, int] = {}
    for posting in (p for entry in own for p in entry.postings if p.account.startswith("revenue:")):
        sku = posting.account.removeprefix("revenue:")
        sold[sku] = sold.get(sku, 0) + posting.credit_neur - posting.debit_neur
    payable_neur = divide_round_half_even(exact_neur, NEUR_PER_CENT) * NEUR_PER_CENT
    rounding_neur = payable_neur - exact_neur
    entry = Entry(
        id=f"ent_{invoice_id}.rounding",
        at_ns=at_ns,
        organisation=own[0].organisation if own else OrganisationId(""),
        project=project,
        cause=invoice_id,
        postings=(*_moves(account, rounding_neur), *_moves(RESIDUAL, -rounding_neur)),
    )
    check_balanced((entry,))
    return Invoice(
        id=invoice_id,
        project=project,
        lines=tuple(InvoiceLine(sku=sku, amount_neur=sold[sku]) for sku in sorted(sold)),
        exact_neur=exact_neur,
        rounding_neur=rounding_neur,
        payable_neur=payable_neur,
        entry=entry,
    )


def _moves(account: str, amount_neur: int) -> tuple[Posting, ...]:
    """Return the posting that debits an amount, credits a negative one, and none for zero."""
    if amount_neur == 0:
        return ()
    return (
        Posting(
            account=account,
            debit_neur=max(amount_neur, 0),
            credit_neur=max(-amount_neur, 0),
        ),
    )


def _hold_entry(hold: Hold, verb: str, amount_neur: int, at_ns: int) -> Entry:
    entry = Entry(
        id=f"ent_{hold.id}.{verb}",
        at_ns=at_ns,
        organisation=hold.organisation,
        project=hold.project,
        cause=hold.id,
        postings=(*_moves(held_account(hold.project), amount_neur), *_moves(HOLDS, -amount_neur)),
    )
    check_balanced((entry,))
    return entry

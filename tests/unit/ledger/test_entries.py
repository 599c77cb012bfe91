"""Balanced entries: charges, money set aside and given back, and invoices rounded once."""

from dataclasses import replace

import pytest

from moulin.domain.errors import InvariantViolated
from moulin.domain.ids import OrganisationId, ProjectId
from moulin.domain.usage import Entry, Posting
from moulin.ledger import Hold, check_balanced, invoice, post, release, reserve, settle, totals
from tests.unit.ledger.examples import ASKED, FREE, JOB, charged

HOLD = Hold(
    id="job_1",
    organisation=OrganisationId("o"),
    project=ProjectId("chat"),
    amount_neur=1_000,
)
(_, ASKED_CHARGE), (_, JOB_CHARGE), (_, FREE_CHARGE) = charged()


def entry(*postings):
    return Entry(
        id="e",
        at_ns=0,
        organisation=OrganisationId("o"),
        project=ProjectId("chat"),
        cause="c",
        postings=postings,
    )


def test_a_charge_debits_the_project_and_credits_each_sku():
    posted = post(ASKED_CHARGE, ASKED)
    assert posted.id == f"ent_{ASKED.id}"
    assert (posted.cause, posted.at_ns) == (ASKED.id, ASKED.end_ns)
    assert totals([posted]) == {
        "project:chat:payable": 499_950,
        "revenue:input": -300_150,
        "revenue:output": -199_800,
    }


def test_a_charge_of_nothing_is_an_entry_without_postings():
    assert post(FREE_CHARGE, FREE).postings == ()


def test_a_charge_is_posted_with_its_own_usage_only():
    with pytest.raises(InvariantViolated, match="own usage"):
        post(ASKED_CHARGE, JOB)


def test_a_charge_that_is_not_its_lines_is_a_bug():
    with pytest.raises(InvariantViolated, match="sum of its lines"):
        post(replace(ASKED_CHARGE, amount_neur=1), ASKED)


def test_held_money_is_visible_until_it_is_settled_or_released():
    taken = reserve(HOLD, 1)
    assert totals([taken]) == {"holds:open": -1000, "project:chat:held": 1000}
    first = settle(HOLD, 1000, 300, at_ns=2, usage="use_a")
    assert totals([taken, first])["project:chat:held"] == 700
    above = settle(HOLD, 700, 900, at_ns=3, usage="use_b")
    assert totals([taken, first, above])["project:chat:held"] == 0
    assert totals([taken, first, release(HOLD, 700, 3)])["holds:open"] == 0
    assert len({taken.id, first.id, above.id, release(HOLD, 1, 3).id}) == 4


def test_releasing_nothing_moves_nothing():
    assert release(HOLD, 0, 1).postings == ()


@pytest.mark.parametrize(
    "postings",
    [
        (Posting(account="a", debit_neur=1),),
        (Posting(account="a", debit_neur=2), Posting(account="b", credit_neur=1)),
        (Posting(account="a", debit_neur=1, credit_neur=1),),
        (Posting(account="a"),),
        (Posting(account="a", debit_neur=-1), Posting(account="b", credit_neur=-1)),
    ],
    ids=["one-sided", "unequal", "both sides", "no side", "negative"],
)
def test_unbalanced_entries_are_found(postings):
    with pytest.raises(InvariantViolated, match="entry e"):
        check_balanced([entry(*postings)])


@pytest.mark.parametrize(
    ("exact_neur", "payable_neur"),
    [
        (0, 0),
        (4_999_999, 0),
        (5_000_000, 0),
        (5_000_001, 10_000_000),
        (15_000_000, 20_000_000),
        (10**30 + 1, 10**30),
    ],
)
def test_an_invoice_is_rounded_once_to_cents_and_the_rest_is_residual(exact_neur, payable_neur):
    entries = [reserve(HOLD, 1)]
    if exact_neur:
        entries.append(
            entry(
                Posting(account="project:chat:payable", debit_neur=exact_neur),
                Posting(account="revenue:input", credit_neur=exact_neur),
            )
        )
    bill = invoice("inv_1", ProjectId("chat"), entries, 9)
    assert (bill.exact_neur, bill.payable_neur) == (exact_neur, payable_neur)
    assert sum(line.amount_neur for line in bill.lines) + bill.rounding_neur == bill.payable_neur
    after = totals([*entries, bill.entry])
    assert after.get("project:chat:payable", 0) == payable_neur
    assert after.get("rounding:residual", 0) == exact_neur - payable_neur


def test_an_invoice_takes_only_its_own_project():
    other = post(ASKED_CHARGE, replace(ASKED, project=ProjectId("other")))
    bill = invoice("inv_1", ProjectId("chat"), [post(ASKED_CHARGE, ASKED), other], 9)
    assert bill.exact_neur == 499_950
    assert [(x.sku, x.amount_neur) for x in bill.lines] == [("input", 300_150), ("output", 199_800)]


def test_an_invoice_of_nothing_is_nothing():
    bill = invoice("inv_1", ProjectId("chat"), [], 9)
    assert (bill.lines, bill.payable_neur, bill.entry.postings) == ((), 0, ())

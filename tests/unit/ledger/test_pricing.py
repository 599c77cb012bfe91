"""Prices: which book, which price, one rounding, and the operator's cost apart."""

from dataclasses import replace

import pytest

from moulin.domain.errors import InvariantViolated
from moulin.domain.factory import Price, PriceBook, Site
from moulin.ledger import book_at, find_price, price, price_book_digest
from tests.unit.ledger.examples import ASKED, BOOK, FREE, JOB, SITE


def test_each_line_is_rounded_once_and_the_charge_is_their_sum():
    charge = price(ASKED, [BOOK], SITE)
    # 2001 x 150 n€ and 333 x 600.000001 n€ = 199800.000333 n€.
    assert [(x.sku, x.meter, x.quantity, x.amount_neur) for x in charge.lines] == [
        ("input", "tokens_input", 2001, 300_150),
        ("output", "tokens_output", 333, 199_800),
    ]
    assert charge.amount_neur == 499_950
    assert (charge.usage, charge.price_book) == (ASKED.id, "standard")
    assert charge.price_book_digest == price_book_digest(BOOK)


def test_the_operators_cost_is_energy_at_the_sites_price_and_apart():
    # 41.234 J at 0.07 €/kWh.
    assert price(ASKED, [BOOK], SITE).operator_cost_neur == 802
    assert price(ASKED, [BOOK], replace(SITE, energy_price_neur_per_kwh=0)).operator_cost_neur == 0


def test_amounts_past_64_bits_stay_exact():
    charge = price(JOB, [BOOK], SITE)
    assert charge.amount_neur == (2**70 * 40_000_000 + 1_800_000_000) // 3_600_000_000


@pytest.mark.parametrize(
    ("quantity", "amount_neur"), [(1, 0), (2, 1), (3, 2), (5, 2), (7, 4)], ids=str
)
def test_halves_go_to_even(quantity, amount_neur):
    book = PriceBook(
        name="b",
        effective_from_ns=0,
        prices=(Price(sku="s", meter="tokens_input", unit_price_neur=1, per=2),),
    )
    usage = replace(ASKED, quantities={"tokens_input": quantity})
    assert price(usage, [book], SITE).amount_neur == amount_neur


def books(*times):
    return [PriceBook(name=f"b{at}", effective_from_ns=at) for at in times]


@pytest.mark.parametrize(
    ("at_ns", "name"), [(0, None), (9, None), (10, "b10"), (19, "b10"), (20, "b20"), (99, "b20")]
)
def test_the_latest_book_in_force_applies(at_ns, name):
    found = book_at(books(20, 10), at_ns)
    assert (found.name if found else None) == name


def test_the_price_of_the_usages_start_applies_not_of_its_end():
    later = replace(BOOK, name="dearer", effective_from_ns=ASKED.start_ns + 1)
    assert price(ASKED, [later, BOOK], SITE).price_book == "standard"


def test_a_price_for_the_subject_comes_before_the_default():
    special = Price(
        sku="special", meter="tokens_input", unit_price_neur=1, per=1, subject=ASKED.subject
    )
    other = replace(special, sku="other", subject="another model")
    book = replace(BOOK, prices=(*BOOK.prices, other, special))
    assert price(ASKED, [book], SITE).lines[0].sku == "special"
    assert find_price(book, "tokens_input", "unknown") == BOOK.prices[0]
    assert find_price(book, "memory_mb_ms", "") is None


@pytest.mark.parametrize("usage", [FREE, replace(ASKED, quantities={"memory_mb_ms": 5})])
def test_what_has_no_price_costs_nothing(usage):
    charge = price(usage, [BOOK], SITE)
    assert (charge.lines, charge.amount_neur) == ((), 0)


def test_before_the_first_book_nothing_is_charged_and_no_book_named():
    charge = price(ASKED, [], Site(name="s", country="FR"))
    assert (charge.price_book, charge.price_book_digest, charge.amount_neur) == ("", "", 0)


def test_a_price_for_no_units_is_a_bug():
    book = replace(BOOK, prices=(replace(BOOK.prices[0], per=0),))
    with pytest.raises(InvariantViolated, match="at least one unit"):
        price(ASKED, [book], SITE)


def test_a_books_digest_covers_all_it_says_but_not_the_order():
    digest = price_book_digest(BOOK)
    assert digest.startswith("sha256:")
    assert price_book_digest(replace(BOOK, prices=BOOK.prices[::-1])) == digest
    for changed in (
        replace(BOOK, name="other"),
        replace(BOOK, currency="CHF"),
        replace(BOOK, effective_from_ns=1),
        replace(BOOK, prices=BOOK.prices[1:]),
        replace(BOOK, prices=(replace(BOOK.prices[0], per=7), *BOOK.prices[1:])),
    ):
        assert price_book_digest(changed) != digest

"""Properties of money and evidence: exact, balanced, append-only, and no byte unchecked."""

from dataclasses import replace
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from moulin.domain.factory import Price, PriceBook
from moulin.domain.ids import OrganisationId, ProjectId
from moulin.ledger import (
    Frontier,
    Hold,
    append,
    check_balanced,
    consistency_proof,
    inclusion_proof,
    invoice,
    leaf_hash,
    nodes_from_tiles,
    post,
    price,
    read_frontier,
    release,
    reserve,
    root,
    settle,
    totals,
    verify_consistency,
    verify_inclusion,
    verify_receipt,
)
from moulin.ledger.receipts import canonical_form
from moulin.ledger.verification import canonical_bytes
from tests.unit.ledger.examples import ASKED, KEY, SITE, file_of, is_signed
from tests.unit.ledger.reference import kept, naive_root

FILES = [file_of(index) for index in range(3)]
HASHES = [leaf_hash(number.to_bytes(4, "big")) for number in range(1000)]
METERS = ("tokens_input", "tokens_output", "cpu_milli_ms")
AMOUNTS = st.integers(0, 2**90)


@given(st.lists(st.integers(0, 80), max_size=12))
def test_a_frontier_grown_in_any_steps_has_the_defined_root(steps):
    frontier, grown = Frontier(), 0
    nodes: list[tuple[int, int, bytes]] = []
    for step in steps:
        frontier, made = append(frontier, HASHES[grown : grown + step])
        nodes += made
        grown += step
        assert root(frontier) == naive_root(HASHES[:grown])
        assert read_frontier(grown, nodes_from_tiles(kept(HASHES[:grown]))) == frontier
    defined = [(8, i, naive_root(HASHES[i << 8 : (i + 1) << 8])) for i in range(grown >> 8)]
    assert nodes == defined


@given(st.integers(1, 1000), st.data())
def test_every_leaf_is_provable_and_no_other_is(size, data):
    index = data.draw(st.integers(0, size - 1))
    grown = data.draw(st.integers(size, 1000))
    proof = inclusion_proof(index, size, nodes_from_tiles(kept(HASHES[:grown])))
    tree = naive_root(HASHES[:size])
    assert len(proof) <= (size - 1).bit_length()
    assert verify_inclusion(HASHES[index], index, size, proof, tree)
    other = data.draw(st.integers(0, size - 1))
    assert verify_inclusion(HASHES[index], other, size, proof, tree) is (other == index)
    if proof:
        place = data.draw(st.integers(0, len(proof) - 1))
        bit = 1 << data.draw(st.integers(0, 255))
        changed = (int.from_bytes(proof[place], "big") ^ bit).to_bytes(32, "big")
        wrong = [*proof[:place], changed, *proof[place + 1 :]]
        assert not verify_inclusion(HASHES[index], index, size, wrong, tree)


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 999))
def test_a_log_proves_that_it_only_grew(first, second, place):
    old, new = sorted((first, second))
    proof = consistency_proof(old, new, nodes_from_tiles(kept(HASHES[:new])))
    roots = naive_root(HASHES[:old]), naive_root(HASHES[:new])
    assert verify_consistency((old, roots[0]), (new, roots[1]), proof)
    if place < old:
        rewritten = [*HASHES[:place], leaf_hash(b"another"), *HASHES[place + 1 : new]]
        lie = consistency_proof(old, new, nodes_from_tiles(kept(rewritten)))
        assert not verify_consistency((old, roots[0]), (new, naive_root(rewritten)), lie)


@st.composite
def charged(draw):
    prices = tuple(
        Price(
            sku=draw(st.sampled_from(["a", "b"])),
            meter=meter,
            unit_price_neur=draw(AMOUNTS),
            per=draw(st.integers(1, 2**70)),
        )
        for meter in METERS
    )
    usage = replace(
        ASKED,
        id=f"use_{draw(st.integers(0, 2**64))}",
        quantities={meter: draw(AMOUNTS) for meter in METERS},
        energy_mj=draw(AMOUNTS),
    )
    return usage, price(usage, [PriceBook(name="b", effective_from_ns=0, prices=prices)], SITE)


@given(charged())
def test_a_line_is_within_half_a_nano_euro_of_the_exact_product(case):
    usage, charge = case
    for line in charge.lines:
        exact = Fraction(usage.quantities[line.meter] * line.unit_price_neur, line.per)
        assert line.amount_neur == round(exact)
    assert charge.amount_neur == sum(line.amount_neur for line in charge.lines)
    exact = Fraction(usage.energy_mj * SITE.energy_price_neur_per_kwh, 3_600_000_000)
    assert charge.operator_cost_neur == round(exact)


@given(
    st.lists(charged(), max_size=6),
    st.lists(st.tuples(st.integers(0, 2**70), st.integers(0, 2**70)), max_size=4),
)
def test_a_ledger_always_adds_up_to_zero_and_held_money_comes_back(cases, holds):
    entries = [post(charge, usage) for usage, charge in cases]
    for number, (amount_neur, used_neur) in enumerate(holds):
        hold = Hold(
            id=f"h{number}",
            organisation=OrganisationId("o"),
            project=ProjectId("chat"),
            amount_neur=amount_neur,
        )
        left_neur = amount_neur - min(amount_neur, used_neur)
        entries += [
            reserve(hold, 0),
            settle(hold, amount_neur, used_neur, at_ns=1, usage="u"),
            release(hold, left_neur, 2),
        ]
    check_balanced(entries)
    sums = totals(entries)
    assert sum(sums.values()) == 0
    assert sums.get("project:chat:held", 0) == 0
    bill = invoice("inv", ProjectId("chat"), entries, 3)
    assert bill.exact_neur == sum(charge.amount_neur for _, charge in cases)
    assert bill.payable_neur % 10_000_000 == 0
    assert abs(bill.rounding_neur) <= 5_000_000
    after = totals([*entries, bill.entry])
    assert sum(after.values()) == 0
    assert after.get("project:chat:payable", 0) == bill.payable_neur


def test_every_single_changed_byte_of_a_receipt_file_is_found():
    """Every position, with the changes that text survives best: case, digit, neighbour, high bit."""
    for data in FILES:
        assert verify_receipt(data, KEY, is_signed).ok
        for place in range(len(data)):
            for mask in (0x01, 0x02, 0x04, 0x10, 0x20, 0x80):
                changed = bytearray(data)
                changed[place] ^= mask
                assert not verify_receipt(bytes(changed), KEY, is_signed).ok, (place, mask)


@given(st.sampled_from(FILES), st.data())
@settings(max_examples=300)
def test_no_edit_of_a_receipt_file_goes_unseen(data, draws):
    place = draws.draw(st.integers(0, len(data)))
    removed = draws.draw(st.integers(0, 3))
    added = draws.draw(st.binary(max_size=3))
    changed = data[:place] + added + data[place + removed :]
    assert verify_receipt(changed, KEY, is_signed).ok is (changed == data)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_get_a_verdict(data):
    assert not verify_receipt(data, KEY, is_signed).ok


TEXTS = st.text(max_size=20) | st.sampled_from(
    ["\x7f", "é", "\u2028", '"\\/', "\x00\x1f\n\r\t\b\f"]
)


@given(st.dictionaries(TEXTS, TEXTS | st.booleans() | st.lists(st.dictionaries(TEXTS, TEXTS))))
def test_the_quick_form_of_a_receipt_is_the_canonical_one(document):
    assert canonical_form(document) == canonical_bytes(document)

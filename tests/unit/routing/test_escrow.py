"""Holding, settling, asking for more and giving back."""

import pytest

from moulin.domain.errors import InvariantViolated
from moulin.domain.units import NS_PER_S
from moulin.routing.escrow import CHUNK_REQUESTS, CHUNK_REQUESTS_MAX, Escrow


def test_a_request_holds_settles_and_frees_the_rest() -> None:
    escrow = Escrow()
    assert not escrow.hold(1)
    escrow.grant(100)
    assert escrow.hold(60)
    assert not escrow.hold(41)
    escrow.settle(60, 25)
    assert (escrow.left_neur, escrow.spent_neur, escrow.held_neur) == (75, 25, 0)
    assert escrow.give_back() == 75
    assert escrow.give_back() == 0
    escrow.take_again(75)
    assert escrow.left_neur == 75


def test_what_costs_nothing_needs_no_grant() -> None:
    assert Escrow().hold(0)


@pytest.mark.parametrize(
    ("step", "amounts"),
    [
        ("grant", (-1,)),
        ("hold", (-1,)),
        ("settle", (10, 11)),
        ("settle", (10, -1)),
        ("settle", (11, 1)),
        ("take_again", (1,)),
    ],
)
def test_mistakes_of_the_caller_are_bugs(step: str, amounts: tuple[int, ...]) -> None:
    escrow = Escrow()
    escrow.grant(10)
    escrow.hold(10)
    with pytest.raises(InvariantViolated):
        getattr(escrow, step)(*amounts)


def test_a_wish_covers_the_need_and_grows_with_haste() -> None:
    escrow = Escrow(typical_neur=10)
    assert escrow.wish(5000, 100 * NS_PER_S) == 5000
    assert escrow.wish(0, 101 * NS_PER_S) == 2 * CHUNK_REQUESTS * 10
    assert escrow.wish(0, 102 * NS_PER_S) == 4 * CHUNK_REQUESTS * 10
    assert escrow.wish(0, 107 * NS_PER_S) == 4 * CHUNK_REQUESTS * 10
    assert escrow.wish(0, 200 * NS_PER_S) == 2 * CHUNK_REQUESTS * 10
    assert escrow.wish(0, 300 * NS_PER_S) == CHUNK_REQUESTS * 10
    wishes = [escrow.wish(0, 300 * NS_PER_S) for _ in range(40)]
    assert wishes[-1] == CHUNK_REQUESTS_MAX * 10


def test_a_wish_counts_what_is_left() -> None:
    escrow = Escrow()
    escrow.grant(30)
    assert escrow.wish(100, 0) == 70
    assert escrow.wish(20, 0) == 0


def test_running_low_is_known_before_it_is_empty() -> None:
    escrow = Escrow(typical_neur=100)
    escrow.grant(10_000)
    assert not escrow.is_running_low()
    for _ in range(98):
        escrow.hold(100)
    assert escrow.is_running_low()

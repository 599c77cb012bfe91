"""Rates: in any 60 seconds no more than the limit, whatever comes, and waiting as long as told helps."""

import copy

from hypothesis import given
from hypothesis import strategies as st

from moulin.routing.rates import NEVER_S, SLOTS, WINDOW_S, MinuteCount

STEPS = st.lists(
    st.tuples(st.integers(0, 40_000), st.integers(1, 9), st.integers(0, 9)), max_size=120
)


@given(limit=st.integers(1, 30), steps=STEPS)
def test_no_minute_holds_more_than_the_limit(limit: int, steps: list[tuple[int, int, int]]) -> None:
    count, now_ms, used = MinuteCount(), 0, []
    for passed_ms, wanted, unused in steps:
        now_ms += passed_ms
        second = now_ms // 1000
        if count.wait_s(wanted, limit, second) != 0:
            continue
        counted_at = count.add(wanted, second)
        back = min(unused, wanted)
        count.give_back(back, counted_at)
        used.append((now_ms, wanted - back))
    for start_ms, _ in used:
        within = [n for at_ms, n in used if start_ms <= at_ms < start_ms + WINDOW_S * 1000]
        assert sum(within) <= limit


@given(limit=st.integers(1, 30), steps=STEPS, wanted=st.integers(1, 40))
def test_what_is_told_to_wait_is_exact(
    limit: int, steps: list[tuple[int, int, int]], wanted: int
) -> None:
    count, second = MinuteCount(), 0
    for passed_ms, amount, _ in steps:
        second += passed_ms // 1000
        if count.wait_s(amount, limit, second) == 0:
            count.add(amount, second)
    wait_s = count.wait_s(wanted, limit, second)
    if wanted > limit:
        assert wait_s == NEVER_S
        return
    assert 0 <= wait_s <= SLOTS
    assert copy.deepcopy(count).room(limit, second + wait_s) >= wanted
    if wait_s:
        assert copy.deepcopy(count).room(limit, second + wait_s - 1) < wanted
    reset_s = count.reset_s(second)
    assert copy.deepcopy(count).room(limit, second + reset_s) == limit


def test_what_comes_back_late_changes_nothing() -> None:
    count = MinuteCount()
    counted_at = count.add(5, 100)
    count.add(1, 100 + SLOTS)
    count.give_back(5, counted_at)
    assert count.room(10, 100 + SLOTS) == 9

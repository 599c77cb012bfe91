"""Laws of routing: nothing leaves its country, retries stay a fraction, weights are kept."""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from moulin.domain.factory import CountryBasis
from moulin.domain.snapshot import ReplicaView
from moulin.routing.affinity import seat_of
from moulin.routing.breaker import Circuit, Failure
from moulin.routing.canary import pick
from moulin.routing.replicas import choose, is_permitted
from moulin.routing.retry import BURST_MIN, RATIO_PERCENT, RetryBudget

COUNTRIES = st.sampled_from(["FR", "SE", "US"])
LISTS = st.lists(COUNTRIES, max_size=3).map(tuple)


@dataclass(eq=False)
class Load:
    outstanding: int
    parallel_requests: int
    work: int
    served: int
    seat: int
    circuit: Circuit = field(default_factory=Circuit)


@st.composite
def loads(draw: st.DrawFn) -> list[Load]:
    count = draw(st.integers(0, 6))
    made = []
    for number in range(count):
        load = Load(
            outstanding=draw(st.integers(0, 4)),
            parallel_requests=draw(st.integers(1, 4)),
            work=draw(st.integers(0, 5000)),
            served=draw(st.integers(0, 50)),
            seat=seat_of(f"r{number}"),
        )
        for failure in draw(st.lists(st.sampled_from(list(Failure)), max_size=3)):
            load.circuit.failed(failure, draw(st.floats(0.0, 10.0)))
        made.append(load)
    return made


@given(COUNTRIES, st.sampled_from(list(CountryBasis)), st.lists(LISTS, max_size=3), LISTS)
def test_a_narrower_request_never_reaches_more(
    country: str,
    basis: CountryBasis,
    restrictions: list[tuple[str, ...]],
    narrower: tuple[str, ...],
) -> None:
    view = ReplicaView(
        attempt="a", address="h:1", key="", zone="z", country=country, country_basis=basis.value
    )
    is_open = is_permitted(view, restrictions)
    is_narrow = is_permitted(view, [*restrictions, narrower])
    assert is_open or not is_narrow
    if is_narrow and narrower:
        assert country in narrower


@given(loads(), st.integers(0, 2**64 - 1), st.integers(0, 3000), st.data())
def test_whoever_is_chosen_has_a_slot_and_was_not_tried(
    made: list[Load], prefix: int, own: int, data: st.DataObject
) -> None:
    tried = data.draw(st.lists(st.sampled_from(made), unique_by=id)) if made else []
    chosen = choose(made, 20.0, tried, prefix, own)
    left = [load for load in made if load not in tried]
    free = [load for load in left if load.outstanding < load.parallel_requests]
    healthy = [load for load in left if not load.circuit.rests_until_s]
    if chosen is None:
        # To wait is right only where somebody will become free.
        assert not free or (healthy and not any(load in free for load in healthy))
        return
    assert chosen in free
    if chosen.circuit.rests_until_s and not chosen.circuit.is_due(20.0):
        assert not healthy


@given(loads(), st.integers(1, 2**64 - 1), st.integers(0, 3000))
def test_a_preference_costs_a_bounded_wait(made: list[Load], prefix: int, own: int) -> None:
    least, liked = choose(made, 20.0), choose(made, 20.0, (), prefix, own)
    assert (least is None) is (liked is None)
    if least is not None and liked is not None and not liked.circuit.rests_until_s:
        assert liked.work <= least.work + least.work // 4 + 2 * own


@given(st.lists(st.booleans(), max_size=2000))
def test_retries_stay_a_fraction_of_requests_beyond_the_first_burst(steps: list[bool]) -> None:
    budget, requests, retries = RetryBudget(), 0, 0
    for is_request in steps:
        if is_request:
            budget.earn()
            requests += 1
        else:
            retries += budget.spend()
        assert retries * 100 <= requests * RATIO_PERCENT + BURST_MIN * 100
        assert 0 <= budget.left <= BURST_MIN


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 600))
def test_a_budget_of_another_size_never_has_more_than_fits(old: int, new: int, spent: int) -> None:
    budget = RetryBudget(old)
    for _ in range(spent):
        budget.spend()
    used = max(old, BURST_MIN) - budget.left
    budget.resize(new)
    assert budget.left == max(0, max(new, BURST_MIN) - used)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=5).filter(any), st.binary(max_size=16))
def test_an_id_always_goes_the_same_way_and_never_to_no_weight(
    weights: list[int], identifier: bytes
) -> None:
    targets = [(f"m{number}", weight) for number, weight in enumerate(weights)]
    chosen = pick(targets, identifier)
    assert chosen == pick(targets, identifier)
    assert dict(targets)[chosen] > 0


def test_shares_follow_weights() -> None:
    drawn = Counter(pick([("a", 90), ("b", 9), ("c", 1)], b"%d" % n) for n in range(20_000))
    assert 17_700 < drawn["a"] < 18_300
    assert 1_650 < drawn["b"] < 1_950
    assert 140 < drawn["c"] < 260


@given(st.integers(1, 100), st.binary(max_size=16))
def test_a_canary_that_grows_takes_nobody_back(weight: int, identifier: bytes) -> None:
    """Who got the new one at a smaller share gets it at a larger one."""
    before = pick([("new", weight), ("old", 100 - weight)], identifier)
    after = pick([("new", min(weight + 7, 100)), ("old", max(93 - weight, 0))], identifier)
    assert before == "old" or after == "new"
